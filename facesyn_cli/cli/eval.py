"""`facesyn eval`."""

from typing import Any

from facesyn_cli.cli.stage_command import stage_command


@stage_command("eval")
def command() -> dict[str, Any]:
    """(being written)"""
    return {}
