"""Compare two configs of one stage: decides whether an unfinished or finished folder can be resumed.

Configs are grouped by the role of their fields (`StageConfig.to_json`):

    identity   affects the result: must be equal
    growing    can be raised, not lowered; None means without limit
    recorded   batch sizes: a change is allowed, with a warning
    runtime    ignored
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """The differences between two configs.

    Args:
        problems: Differences that forbid a resume, one phrase each.
        changes: Differences of changeable settings, which unfinished work may resume with.
        warnings: Differences that are allowed with a warning.
        grown: A growable setting was raised.
    """

    problems: list[str]
    changes: list[str]
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
            kind.append(f"{key}: was {_show(old, key)}, is {_show(new, key)}")
    old, new = flatten(before.get("growing", {})), flatten(now.get("growing", {}))
    for key in sorted(set(old) | set(new)):
        was, now_is = _limit(old.get(key)), _limit(new.get(key))
        if now_is < was:
            problems.append(f"{key}: may only be raised, was {_show(old, key)}, is {_show(new, key)}")
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
    return repr(flat[key]) if key in flat else "absent"
