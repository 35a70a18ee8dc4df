"""Compare two configs of one stage: decides whether an unfinished or finished folder can be resumed.

Configs are grouped by the role of their fields (`StageConfig.to_json`):

    identity   affects the result: must be equal
    growing    can be raised, not lowered; None means without limit
    recorded   batch sizes: a change is allowed, with a warning
    runtime    ignored
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH = 80          # of a table of changes, in columns
_SETTING_WIDTH = 28  # of its first column, at most


@dataclass(frozen=True)
class Change:
    """A difference between a folder and the present run.

    Args:
        setting: Dotted name of the setting; empty: another line about the one before.
        before: Its value in the folder.
        now: Its value now.
    """

    setting: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.setting}: was {self.before}, is {self.now}"


@dataclass(frozen=True)
class Comparison:
    """The differences between two configs.

    Args:
        problems: Differences that forbid a resume.
        changes: Differences of changeable settings, which unfinished work may resume with.
        warnings: Differences that are allowed with a warning.
        grown: A growable setting was raised.
    """

    problems: list[Change]
    changes: list[Change]
    warnings: list[str]
    grown: bool


def compare_configs(before: dict[str, Any], now: dict[str, Any], changeable: Collection[str] = ()) -> Comparison:
    """Compare two configs in the grouped form of `StageConfig.to_json`.

    Args:
        before: Of the folder.
        now: Of the present run.
        changeable: Settings of the group `identity` that may change while there is work to do.
    """
    problems, changes, warnings, grown = [], [], [], False
    old, new = flatten(before.get("identity", {})), flatten(now.get("identity", {}))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):  # an option that is off equals one that did not exist yet
            kind = changes if key in changeable else problems
            kind.append(Change(key, _show(old, key), _show(new, key)))
    old, new = flatten(before.get("growing", {})), flatten(now.get("growing", {}))
    for key in sorted(set(old) | set(new)):
        was, now_is = _limit(old.get(key)), _limit(new.get(key))
        if now_is < was:
            problems.append(Change(key, _show(old, key), f"{_show(new, key)} (can only be raised)"))
        grown = grown or now_is > was
    old, new = flatten(before.get("recorded", {})), flatten(now.get("recorded", {}))
    for key in sorted(set(old) & set(new)):
        if old[key] != new[key]:
            warnings.append(f"{key} was {old[key]}, is {new[key]}; results may differ in rounding")
    return Comparison(problems, changes, warnings, grown)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts into one dict with dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _limit(value: float | None) -> float:
    return float("inf") if value is None else value


def _show(flat: dict[str, Any], key: str) -> str:
    value = flat.get(key, "absent")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def change_table(changes: Sequence[Change]) -> list[str]:
    """Return the lines of a table of changes, in columns that fit 80; long values are shortened in the middle."""
    rows = [Change("setting", "in the folder", "now"), *changes]
    first = min(_SETTING_WIDTH, max(len(row.setting) for row in rows))
    most = (_WIDTH - first - 6) // 2
    cells = [(_shortened(row.setting, first), _shortened(row.before, most), _shortened(row.now, most)) for row in rows]
    second = max(len(before) for _, before, _ in cells)
    return [f"  {setting:{first}}  {before:{second}}  {now}" for setting, before, now in cells]


def _shortened(text: str, width: int) -> str:
    """Return a text of at most `width` columns; a longer one loses its middle."""
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]}...{text[head + 3 - width :]}"
