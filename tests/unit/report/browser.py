"""A real headless browser for the tests of the pages; they are skipped where none is installed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next((found for name in _NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason=f"no headless browser: none of {', '.join(_NAMES)} in PATH")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def print_to_pdf(path: Path) -> bytes:
    """Return a page as PDF, as the browser prints it."""
    target = path.with_suffix(".pdf")
    _run(path, "--no-pdf-header-footer", f"--print-to-pdf={target}")
    return target.read_bytes()


def num_pages(pdf: bytes) -> int:
    """Return the number of pages of a PDF that the browser wrote."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))


def ask(path: Path, script: str, width: int = 1400, height: int = 900) -> Any:
    """Return what a script returns that runs in a page after it has been loaded.

    The page is copied beside itself; its content security policy admits the script and is the same otherwise.

    Args:
        path: The page.
        script: Body of an asynchronous function; it returns a JSON value. Errors of the page are in `errors`.
        width: Of the window, in CSS pixels.
        height: Of the window.
    """
    text = path.read_text(encoding="utf-8")
    before = "const errors = []; addEventListener('error', (e) => errors.push(e.message));"
    after = ("const until = async (is) => { for (let k = 0; k < 200 && !is(); k++) await new Promise((go) => "
             f"setTimeout(go, 20)); }}; addEventListener('load', async () => {{ const answer = await (async () => "
             f"{{ {script} }})(); document.documentElement.setAttribute('data-answer', "
             "encodeURIComponent(JSON.stringify(answer))); });")
    digests = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'"
                      for one in (before, after))
    asked = path.with_name(f"asked-{path.name}")
    text = text.replace("script-src", "script-src" + digests, 1)
    text = text.replace('<meta name="viewport"', f'<script>{before}</script><meta name="viewport"', 1)
    asked.write_text(f"{text}<script>{after}</script>", encoding="utf-8")
    dumped = _run(asked, "--virtual-time-budget=20000", f"--window-size={width},{height}", "--dump-dom")
    answer = re.search(r'data-answer="([^"]*)"', dumped)
    assert answer, f"the script did not end: {dumped[-500:]}"
    return json.loads(unquote(answer.group(1)))


def _run(path: Path, *options: str) -> str:
    profile = path.with_name(f"{path.stem}-profile")
    try:
        ran = subprocess.run(
            [str(PROGRAM), *_OPTIONS, f"--user-data-dir={profile}", *options, path.resolve().as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )
    finally:
        shutil.rmtree(profile, ignore_errors=True)
    return ran.stdout
