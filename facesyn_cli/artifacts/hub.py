"""Fetch weights from the Hugging Face Hub; its own client resumes and checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.errors import UserError

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+?)(@(?P<revision>[\w./-]+?))?(/(?P<file>[\w-][\w ./-]*\.\w+))?")
_LEFT_OUT = ["*.msgpack", "*.h5", "*.ot", "*.tflite", "flax_*", "tf_*"]  # the same weights for other frameworks


def is_hub_name(name: str) -> bool:
    """True for `owner/name`, `owner/name@revision` and `owner/name/file.ending`."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def fetch_from_hub(name: str, folder: Path, sha256: str | None = None) -> dict[str, Any]:
    """Fetch a whole repository, or one file of it, into a folder.

    Raises:
        UserError: Not reachable, no such repository or file, no access, or another checksum.
    """
    match = _NAME.fullmatch(name)
    repo, revision, file = match["repo"], match["revision"], match["file"]
    if sha256 is not None and file is None:
        raise UserError(f"--sha256 belongs to a single file; {name} is a whole repository (name a file: {name}/FILE)")
    import huggingface_hub

    try:
        with signals.interruptible():
            if file is None:
                huggingface_hub.snapshot_download(repo, revision=revision, local_dir=folder, ignore_patterns=_LEFT_OUT)
                _require_files(folder, name)  # its client takes any folder that is there where it reaches nobody
                return {"folder": str(folder), "hub": name}
            path = Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, local_dir=folder))
    except (OSError, ValueError, RuntimeError) as error:  # the client's own errors are of these kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name} does not come from the hub: {reason}") from error
    digest = file_digest(path)
    if sha256 is not None and sha256.lower().removeprefix("sha256:") != digest.removeprefix("sha256:"):
        path.unlink()
        raise UserError(f"{name}: has checksum {digest}, expected {sha256}; the file is removed")
    return {"file": str(path), "hub": name, "digest": digest}


def _require_files(folder: Path, name: str) -> None:
    if not any(path.is_file() and ".cache" not in path.relative_to(folder).parts for path in folder.rglob("*")):
        raise UserError(f"{name} does not come from the hub: nothing has arrived in {folder}; is this machine online?")
