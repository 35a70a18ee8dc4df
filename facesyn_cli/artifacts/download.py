"""Fetch one file over HTTP: resumable, checked, complete or not there.

The bytes go to `<name>.part`; `<name>.part.json` says which file of which server they belong to. A server that
answers with another version, or cannot go on from the middle, starts the file anew. The final name appears by
rename after length and checksum were right.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.files import explain, write_json
from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.console import progress
from facesyn_cli.errors import UserError

TIMEOUT_SECONDS = 30
_BLOCK = 1 << 20


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
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: an address that starts with https:// or http:// was expected")
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
            reused = _fetch_part(url, path)
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
        raise explain(error, path) from error
    finally:
        if is_new:
            with suppress(OSError):
                path.parent.rmdir()  # goes only where nothing has arrived
    return Fetched(path, digest, reused)


def _fetch_part(url: str, path: Path) -> int:
    """Bring `<name>.part` to its full length; return how much of it was there."""
    part = _part(path)
    state = _read_state(path, url)
    start = part.stat().st_size if state and part.is_file() else 0
    if state and start == state["size"] != 0:
        return start
    request = urllib.request.Request(url, headers={"User-Agent": "facesyn"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", state["version"])
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            start = start if goes_on else 0
            length = response.headers.get("Content-Length")
            size = start + int(length) if length else 0  # 0: the server does not say
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            can_resume = version is not None and not version.startswith("W/")
            write_json(_state_path(path), {"url": url, "version": version if can_resume else None, "size": size})
            _copy(response, part, start, size)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what we have is longer than the file: another version
            part.unlink(missing_ok=True)
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: cannot be reached ({error.reason}); is this machine online?") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise UserError(f"{url}: the connection broke ({error}); the same command goes on from there") from error
    have = part.stat().st_size
    if size and have != size:
        raise UserError(f"{url}: the connection broke after {have} of {size} bytes; the same command goes on "
                        "from there")
    return start


def _copy(response: Any, part: Path, start: int, size: int) -> None:
    with open(part, "ab" if start else "wb") as file, progress(part.stem, size, unit="bytes", done=start) as bar:
        while True:
            try:
                block = response.read(_BLOCK)
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                raise
            if not block:
                return
            file.write(block)
            bar.advance(len(block))
            signals.check()


def _read_state(path: Path, url: str) -> dict[str, Any] | None:
    """Return what is known about the partial file, or None where it cannot be gone on with."""
    try:
        state = json.loads(_state_path(path).read_text(encoding="utf-8"))
        is_ours = state["url"] == url and isinstance(state["version"], str) and isinstance(state["size"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if is_ours else None


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
