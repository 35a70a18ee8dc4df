"""`facesyn pack`."""

from typing import Any

from facesyn_cli.cli.stage_command import stage_command


@stage_command("pack")
def command() -> dict[str, Any]:
    """(being written)"""
    return {}
