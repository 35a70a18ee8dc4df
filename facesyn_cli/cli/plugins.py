"""`facesyn plugins`: list plugins, or show the settings of one."""

from typing import Annotated

import typer

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
        print_result(listing, json, _render_kinds)
    elif name is None:
        print_result(registry.available(kind), json, "\n".join)
        if not json:
            typer.echo(f"a builder of a {kind} returns {INTERFACES[kind]}", err=True)
    else:
        print_result(describe(kind, name), json, _render)


def _render_kinds(listing: dict[str, dict]) -> str:
    return "\n".join(f"{kind:18} {entry['about']}\n{'':18} {', '.join(entry['names'])}"
                     for kind, entry in listing.items())


def describe(kind: str, name: str) -> dict:
    """Return a plugin's card and settings as JSON values."""
    from facesyn_cli.plugins import registry
    from facesyn_cli.plugins.builtin import INTERFACES

    plugin = registry.get(kind, name)
    settings = [
        {
            "key": key,
            "type": getattr(info.annotation, "__name__", None) or str(info.annotation),
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


def _render(description: dict) -> str:
    lines = [f"{description['kind']} {description['name']}"]
    for key in ("about", "paper", "input", "license", "builder", "interface"):
        if description[key]:
            lines.append(f"  {key}: {description[key]}")
    if description["settings"]:
        lines.append("  settings:")
    for item in description["settings"]:
        doc = f"  # {item['doc']}" if item["doc"] else ""
        lines.append(f"    {item['key']}: {item['default']}  ({item['type']}){doc}")
    return "\n".join(lines)
