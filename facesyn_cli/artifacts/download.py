"""Fetch one file over HTTP: resumable, checked, complete or not there.

The bytes go to `<name>.part`; `<name>.part.json` says which file of which server they belong to. A server that
answers with another version, or cannot go on from the middle, starts the file anew. The final name appears by
rename after length and checksum were right.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import as_user_error, read_json, write_json
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.console import progress
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import GIB
from facesyn_cli.untrusted.parsing import validated

TIMEOUT_SECONDS = 30
MAX_BYTES = 512 * GIB           # of a file whose length the server announces
MAX_UNANNOUNCED = 2 * GIB       # of one whose length it does not
_BLOCK = 1 << 20
_MAX_NAME = 200                 # bytes of a file name
_VERSION = r"[!-~ ]{1,500}"     # an ETag or a date that can be sent back


@dataclass(frozen=True)
class Fetched:
    """What lies there now.

    Args:
        path: The file.
        digest: `sha256:<hex>` of its content.
        reused: Bytes that were there from earlier; all of them where nothing was fetched.
    """

    path: Path
    digest: str
    reused: int


def fetch(url: str, path: Path, sha256: str | None = None) -> Fetched:
    """Fetch a file, going on where an earlier attempt stopped.

    Args:
        url: http or https.
        path: Final name.
        sha256: Expected checksum, 64 hex digits with or without `sha256:` in front; None: not checked.

    Raises:
        UserError: No connection, the server refuses, the connection broke, the content is not what was
            expected, or no space left. What has arrived is kept for the next attempt unless it is wrong.
    """
    address = _address(url)
    expected = _checksum(sha256)
    if path.exists():
        digest = file_digest(path)
        if expected not in (None, digest):
            raise UserError(f"{path} is there with another content ({digest}; expected {expected}); remove it first")
        return Fetched(path, digest, path.stat().st_size)
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Lock(path.parent, f"pull-{path.name}"):
            reused = _fetch_part(url, address, path)
            part = _part(path)
            digest = file_digest(part)
            if expected not in (None, digest):
                part.unlink()
                _state_path(path).unlink(missing_ok=True)
                raise UserError(f"{url}: has checksum {digest}, expected {expected}; what was fetched is thrown away")
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            _state_path(path).unlink(missing_ok=True)
    except OSError as error:
        raise as_user_error(error, path) from error
    finally:
        if is_new:
            with suppress(OSError):
                path.parent.rmdir()  # goes only where nothing has arrived
    return Fetched(path, digest, reused)


def file_name(url: str) -> str:
    """Return the name of the file that an address ends in.

    Raises:
        UserError: It is no http or https address, or names no file.
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
    except ValueError as error:  # brackets, ports and names of hosts that are none
        raise UserError(f"{url[:300]!r} is no address ({error}); {expected}") from error
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[0-9A-Za-z._:-]+", host):
        raise UserError(f"{url[:300]!r}: {expected}")
    if "@" in parts.netloc:
        raise UserError("an address with a user's name or password in it is not fetched; the plain one was expected")
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    path, query = (urllib.parse.quote(text, safe="/%:;=@&+$,!~*'()?-._") for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, place, path, query, ""))


def _fetch_part(url: str, address: str, path: Path) -> int:
    """Bring `<name>.part` to its full length; return how much of it was there."""
    part = _part(path)
    if part.exists() and not part.is_file():
        raise UserError(f"{part} is no regular file; remove it first")
    state = _read_state(path, url)
    start = part.stat().st_size if state and part.is_file() else 0
    if state and start == state.size != 0:
        return start
    request = urllib.request.Request(address, headers={"User-Agent": "facesyn"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", state.version)
    try:
        with signals.interruptible(), _opener().open(request, timeout=TIMEOUT_SECONDS) as response:
            goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            start = start if goes_on else 0
            size = _announced_size(response, url, start)
            if size > shutil.disk_usage(part.parent).free + start:
                raise UserError(f"no space for the {size} bytes of {url} in {part.parent}; free some space and run the "
                                "same command again")
            version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            can_resume = re.fullmatch(_VERSION, version) is not None and not version.startswith("W/")
            write_json(_state_path(path), {"url": url, "version": version if can_resume else None, "size": size})
            _copy(response, url, part, start, size)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is longer than the file: another version
            part.unlink(missing_ok=True)
        raise UserError(f"{url}: the server answers {error.code} {_one_line(error.reason)}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: cannot be reached ({_one_line(error.reason)}); is this machine online?") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _broken(url, error) from error
    except ValueError as error:  # an address that the server sends us to
        raise UserError(f"{url}: the server's answer cannot be understood ({_one_line(error)})") from error
    have = part.stat().st_size
    if size and have != size:
        raise UserError(f"{url}: the connection broke after {have} of {size} bytes; the same command goes on "
                        "from there")
    return start


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Closes the connection where the address of the next one is none."""

    def http_error_302(self, request: Any, answer: Any, *rest: Any) -> Any:
        try:
            return super().http_error_302(request, answer, *rest)
        except ValueError:
            answer.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """http and https only, wherever a server sends us."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        _Redirects, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _announced_size(response: Any, url: str, start: int) -> int:
    """Return the size of the whole file as the server announces it; 0 where it does not."""
    length = response.headers.get("Content-Length")
    if length is None or response.chunked:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", length.strip(), re.ASCII):
        raise UserError(f"{url}: the server announces a length of {length[:60]!r}; a number of bytes was expected")
    if start + int(length) > MAX_BYTES:
        raise UserError(f"{url}: the server announces {start + int(length)} bytes; at most {MAX_BYTES} are fetched")
    return start + int(length)


def _copy(response: Any, url: str, part: Path, start: int, size: int) -> None:
    have, limit = start, size or MAX_UNANNOUNCED
    with open(part, "ab" if start else "wb") as file, progress(part.stem, size, unit="bytes", done=start) as bar:
        while True:
            try:
                block = response.read1(_BLOCK)
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                raise
            except OSError as error:
                raise _broken(url, error) from error
            if not block:
                return
            have += len(block)
            if have > limit:
                break
            file.write(block)
            bar.advance(len(block))
    part.unlink()
    _state_path(part.with_suffix("")).unlink(missing_ok=True)
    raise UserError(f"{url}: the server sends more than {limit} bytes"
                    + (", as many as it announced" if size else " without a word about the length")
                    + "; what was fetched is thrown away")


class _State(BaseModel):
    """What `<name>.part.json` says of the partial file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    url: str
    version: str = Field(pattern=f"^{_VERSION}$")
    size: int = Field(ge=0, le=MAX_BYTES)


def _read_state(path: Path, url: str) -> _State | None:
    """Return what is known about the partial file, or None where it cannot be gone on with."""
    try:
        state = validated(_State, read_json(_state_path(path)), _state_path(path), "the state of a download")
    except UserError:
        return None
    return state if state.url == url else None


def _broken(url: str, error: Exception) -> UserError:
    return UserError(f"{url}: the connection broke ({_one_line(error)}); the same command goes on from there")


def _one_line(text: object) -> str:
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:200]


def _checksum(text: str | None) -> str | None:
    if text is None:
        return None
    digits = text.strip().lower().removeprefix("sha256:")
    if len(digits) != hashlib.sha256().digest_size * 2 or set(digits) - set("0123456789abcdef"):
        raise UserError(f"sha256 {text!r}: 64 hexadecimal digits were expected")
    return f"sha256:{digits}"


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _state_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")
