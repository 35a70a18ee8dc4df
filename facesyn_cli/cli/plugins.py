"""`facesyn plugins`: list plugins, or show the settings of one."""

from typing import Annotated, Any

import typer

from facesyn_cli.cli.setting_listing import list_settings, text_table
from facesyn_cli.cli.stage_command import Json, print_result, start

EXAMPLES = (
    "facesyn plugins",
    "facesyn plugins scheduler",
    "facesyn plugins scheduler unipc",
)


def command(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="A kind of plugin.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One plugin of that kind.")] = None,
    json: Json = False,
) -> None:
    """List plugins, or show the settings of one."""
    from facesyn_cli.plugins import registry
    from facesyn_cli.plugins.builtin import INTERFACES, KINDS

    start()
    if kind is None:
        listing = {
            k: {"about": about, "interface": INTERFACES[k], "names": registry.available(k)}
            for k, about in KINDS.items()
        }
        print_result(listing, json, _list_kinds)
    elif name is None:
        print_result(registry.available(kind), json, lambda names: _list_plugins(kind, names))
        if not json:
            typer.echo(f"a builder of a {kind} returns {INTERFACES[kind]}", err=True)
    else:
        plugin = registry.get(kind, name)
        print_result(describe(kind, name), json, lambda description: _render(description, plugin))


def _list_kinds(listing: dict[str, dict]) -> str:
    rows = [(kind, entry["about"], ", ".join(entry["names"])) for kind, entry in listing.items()]
    return text_table(("kind", "what it is", "plugins"), rows)


def _list_plugins(kind: str, names: list[str]) -> str:
    from facesyn_cli.config.setting_table import setting_table

    known = setting_table()["plugins"][kind]
    other = f"of another package; `facesyn plugins {kind} NAME` describes it"
    rows = [(name, known[name]["about"] if name in known else other) for name in names]
    return text_table(("plugin", "what it is"), rows)


def describe(kind: str, name: str) -> dict:
    """Return a plugin's card and settings as JSON values."""
    from facesyn_cli.config.setting_rows import type_text
    from facesyn_cli.plugins import registry
    from facesyn_cli.plugins.builtin import INTERFACES

    plugin = registry.get(kind, name)
    settings = [
        {
            "key": key,
            "type": type_text(info.annotation),
            "default": "(required)" if info.is_required() else info.get_default(call_default_factory=True),
            "doc": info.description or "",
        }
        for key, info in plugin.config_class.model_fields.items()
        if key != "name"
    ]
    return {
        "kind": kind, "name": name, **vars(plugin.card),
        "builder": f"{plugin.build.__module__}.{plugin.build.__qualname__}",
        "interface": INTERFACES[kind], "settings": settings,
    }


def _render(description: dict, plugin: Any) -> str:
    from facesyn_cli.config.setting_rows import plugin_rows

    lines = [f"{description['kind']} {description['name']}"]
    for key in ("about", "paper", "input", "license", "builder", "interface"):
        if description[key]:
            lines.append(f"  {key}: {description[key]}")
    rows = plugin_rows(plugin)
    return "\n".join([*lines, "", list_settings(rows) if rows else "no settings"])
