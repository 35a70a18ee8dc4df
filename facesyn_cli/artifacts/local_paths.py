"""Remove absolute paths, which name folders of one machine and its user, from JSON before it is published."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath, PureWindowsPath

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_WINDOWS = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\)")


def without_local_paths(text: str) -> str:
    """Return JSON, or lines of JSON, in which every string that is an absolute path is replaced by its last part.

    Everything else stays as it is written, so a text without such strings is returned unchanged. Relative paths stay:
    parts of a starter find each other by them.

    Args:
        text: Of a file that facesyn wrote.
    """
    return _STRING.sub(_replaced, text)


def _replaced(match: re.Match[str]) -> str:
    if match[0][1:2] not in ("/", "~") and not _WINDOWS.match(match[0], 1):
        return match[0]
    try:
        name = _last_part(json.loads(match[0], strict=False))
    except ValueError:  # no JSON
        return match[0]
    return match[0] if name is None else json.dumps(name)


def _last_part(value: str) -> str | None:
    """Return the last part of an absolute path; None for any other text."""
    if _WINDOWS.match(value):
        return PureWindowsPath(value).name
    if value.startswith("/") or re.match(r"~[\w.-]*/", value):
        return PurePosixPath(value).name
    return None
