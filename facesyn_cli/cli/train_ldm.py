"""`facesyn train-ldm`."""

from typing import Any

from facesyn_cli.cli.stage_command import stage_command


@stage_command("train-ldm")
def command() -> dict[str, Any]:
    """(being written)"""
    return {}
