"""Download one file over HTTP: checked, complete or not there.

The final name appears by rename after length and checksum are verified; an attempt that fails starts anew.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.lock import remove_abandoned
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.input_files import GIB

TIMEOUT_SECONDS = 30
MAX_BYTES = 512 * GIB           # of a file whose length the server announces
MAX_UNANNOUNCED = 2 * GIB       # of one whose length it does not
_BLOCK = 1 << 20
_MAX_NAME = 200                 # bytes of a file name


def fetch(url: str, path: Path, sha256: str | None = None) -> str:
    """Download a file unless it is there; return its digest, `sha256:<hex>`.

    Args:
        url: http or https.
        path: Final name.
        sha256: Expected checksum, 64 hex digits with or without `sha256:` in front; None: not checked.

    Raises:
        UserError: No connection, the server refuses, the connection breaks, the content is not the expected one, or
            no space is left. Nothing stays behind.
    """
    address, expected = _address(url), parse_checksum(sha256)
    if path.exists():
        digest = file_digest(path)
        if expected not in (None, digest):
            raise UserError(f"{path} is there with another content ({digest}; expected {expected}); remove it first")
        return digest
    is_new = not path.parent.exists()
    try:
        with write_atomically(path) as part:
            remove_abandoned(path.parent)
            digest = _download(url, address, part, path.name)
            if expected not in (None, digest):
                raise UserError(f"{url}: has checksum {digest}, expected {expected}; the download is discarded")
    finally:
        if is_new:
            with suppress(OSError):
                path.parent.rmdir()  # succeeds only when it is empty
    return digest


def file_name(url: str) -> str:
    """Return the file name at the end of an address.

    Raises:
        UserError: It is no http or https address, or has no file name.
    """
    name = urllib.parse.urlsplit(_address(url)).path.rpartition("/")[2]
    if name in ("", ".", "..") or len(name) > _MAX_NAME:
        raise UserError(f"{url[:300]}: the address of a file was expected, with its name at the end")
    return name


def _address(url: str) -> str:
    """Return an address as it is sent: in ASCII, without a fragment."""
    expected = "an address that starts with https:// or http:// was expected"
    if not url.isprintable():
        raise UserError(f"{url[:300]!r}: {expected}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
    except ValueError as error:  # invalid brackets, ports and host names
        raise UserError(f"{url[:300]!r} is no address ({error}); {expected}") from error
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[0-9A-Za-z._:-]+", host):
        raise UserError(f"{url[:300]!r}: {expected}")
    if "@" in parts.netloc:
        raise UserError("an address with a user name or password is not supported; a plain one was expected")
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    path, query = (urllib.parse.quote(text, safe="/%:;=@&+$,!~*'()?-._") for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, place, path, query, ""))


def _download(url: str, address: str, part: Path, title: str) -> str:
    """Write what the server sends to `part`; return its digest."""
    request = urllib.request.Request(address, headers={"User-Agent": "facesyn"})
    try:
        with signals.interruptible(), _opener().open(request, timeout=TIMEOUT_SECONDS) as response:
            size = _announced_size(response, url)
            if size > shutil.disk_usage(part.parent).free:
                raise UserError(f"no space for the {size} bytes of {url} in {part.parent}; free some space and run the "
                                "same command again")
            return _copy(response, url, part, size, title)
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{url}: the server answers {error.code} {_one_line(error.reason)}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: cannot be reached ({_one_line(error.reason)}); is this machine online?") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _broken(url, _one_line(error)) from error
    except ValueError as error:  # an invalid address in a redirect
        raise UserError(f"{url}: the server's answer cannot be understood ({_one_line(error)})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Closes the connection where the address of a redirect is invalid."""

    def http_error_302(self, request: Any, answer: Any, *rest: Any) -> Any:
        try:
            return super().http_error_302(request, answer, *rest)
        except ValueError:
            answer.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https only, also after redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        _Redirects, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _announced_size(response: Any, url: str) -> int:
    """Return the file size that the server announces; 0 where it does not."""
    length = response.headers.get("Content-Length")
    if length is None or response.chunked:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", length.strip(), re.ASCII):
        raise UserError(f"{url}: the server announces a length of {length[:60]!r}; a number of bytes was expected")
    if int(length) > MAX_BYTES:
        raise UserError(f"{url}: the server announces {int(length)} bytes; at most {MAX_BYTES} are downloaded")
    return int(length)


def _copy(response: Any, url: str, part: Path, size: int, title: str) -> str:
    have, limit, digest = 0, size or MAX_UNANNOUNCED, hashlib.sha256()
    with open(part, "wb") as file, progress(title, size, unit="bytes") as bar:
        while True:
            try:
                block = response.read1(_BLOCK)
            except OSError as error:
                raise _broken(url, _one_line(error)) from error
            if not block:
                break
            have += len(block)
            if have > limit:
                how = "as many as it announced" if size else "without announcing the length"
                raise UserError(f"{url}: the server sends more than {limit} bytes, {how}; the download is discarded")
            file.write(block)
            digest.update(block)
            bar.advance(len(block))
    if size and have != size:
        raise _broken(url, f"after {have} of {size} bytes")
    return f"sha256:{digest.hexdigest()}"


def _broken(url: str, why: str) -> UserError:
    return UserError(f"{url}: the connection broke ({why}); run the same command again")


def _one_line(text: object) -> str:
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:200]


def parse_checksum(text: str | None) -> str | None:
    """Return a checksum as `sha256:<hex>`; None for None.

    Raises:
        UserError: It is none.
    """
    if text is None:
        return None
    digits = text.strip().lower().removeprefix("sha256:")
    if len(digits) != hashlib.sha256().digest_size * 2 or set(digits) - set("0123456789abcdef"):
        raise UserError(f"sha256 {text!r}: 64 hexadecimal digits were expected")
    return f"sha256:{digits}"
