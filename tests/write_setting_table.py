"""Write `facesyn_cli/config/setting_table.json` from the config classes: `python tests/write_setting_table.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from facesyn_cli.config import setting_table
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.config.setting_rows import SECTION, SettingRow, plugin_rows, setting_rows
from facesyn_cli.pipelines.stage import resolve_stage
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN

FILE = Path(setting_table.__file__).with_name("setting_table.json")


def table() -> dict[str, Any]:
    """Return what the file must hold."""
    plugins = {
        kind: {name: {"about": registry.get(kind, name).card.about,
                      "settings": _choices(plugin_rows(registry.get(kind, name)))} for name in sorted(names)}
        for kind, names in BUILTIN.items()
    }
    return {"stages": {stage: _choices(setting_rows(resolve_stage(stage, {}, [], {}))) for stage in STAGES},
            "plugins": plugins}


def _choices(rows: list[SettingRow]) -> dict[str, Any]:
    """Return the choices by key; the settings of a chosen plugin are found under `plugins`."""
    chosen = [row.key.removesuffix(".name") for row in rows if row.plugin and row.key.endswith(".name")]
    found: dict[str, Any] = {}
    for row in rows:
        section = next((key for key in chosen if row.key.startswith(f"{key}.")), None)
        if section is not None:
            if row.plugin and row.key == f"{section}.name":
                found[section] = {"plugin": row.plugin, "default": row.value}
        elif row.plugin and not row.type.startswith("list"):
            found[row.key] = {"plugin": row.plugin, "default": None}
        elif row.type != SECTION:
            found[row.key] = list(row.choices)
    return found


def as_text(content: dict[str, Any]) -> str:
    """Return the table as JSON, a line for each stage and plugin."""
    lines = ["{", '"stages": {']
    lines.append(",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in content["stages"].items()))
    lines += ["},", '"plugins": {']
    kinds = []
    for kind, names in content["plugins"].items():
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in names.items())
        kinds.append(f"{json.dumps(kind)}: {{\n{inner}\n}}")
    return "\n".join([*lines, ",\n".join(kinds), "}", "}"]) + "\n"


if __name__ == "__main__":
    FILE.write_text(as_text(table()), encoding="utf-8")
