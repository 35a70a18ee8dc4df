"""What completion and listings need to know of settings and plugins, without importing their modules.

Importing the modules takes seconds of torch. `setting_table.json` is written by `python tests/write_setting_table.py`,
and a test compares it with the config classes.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def setting_table() -> dict[str, Any]:
    """Return what the file holds.

    * `stages`: stage -> dotted key -> values that can be chosen, an empty list for others; where a plugin is chosen,
      its kind as `plugin` and the one chosen by default as `default`.
    * `plugins`: kind -> name -> `about`, and `settings` as above; built-in plugins only.
    """
    return json.loads(Path(__file__).with_name("setting_table.json").read_text(encoding="utf-8"))
