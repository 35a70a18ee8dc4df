"""SHA-256 digests of inputs and configs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import files_below, open_input


def bytes_digest(data: bytes) -> str:
    """Return the SHA-256 of bytes as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content as `sha256:<hex>`.

    Raises:
        UserError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open_input(path) as file:
        try:
            while block := file.read(1 << 20):
                digest.update(block)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    log.debug(f"read {path}: sha256:{digest.hexdigest()}")
    return "sha256:" + digest.hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return bytes_digest(text.encode("utf-8", "backslashreplace"))  # file names can have undecodable bytes


def path_digest(path: Path) -> str:
    """Return the digest of a file, or of every file below a folder (relative names and contents)."""
    if not path.is_dir():
        return file_digest(path)
    files = sorted(files_below(path))
    return json_digest([[p.relative_to(path).as_posix(), file_digest(p)] for p in files])

