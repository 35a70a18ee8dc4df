"""`facesyn sample`."""

from typing import Any

from facesyn_cli.cli.stage_command import stage_command


@stage_command("sample")
def command() -> dict[str, Any]:
    """(being written)"""
    return {}
