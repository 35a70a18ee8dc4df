"""Finished analyzes on disk: a run that was killed does not do them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.section import Section


class CachedResults:
    """The sections of each set by each network, one JSON file a pair.

    Args:
        folder: Where the files lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, set_name: str, network: str, compute: Callable[[], dict[str, Section]]) -> dict[str, Any]:
        """Return what one network found in one set: `set`, `judge`, `sections` and `findings` as JSON values.

        Args:
            set_name: Name of the set.
            network: Name of the judge or other network.
            compute: Makes the sections, where no earlier run has.
        """
        path = self._folder / set_name / f"{network}.json"
        if path.is_file():
            try:
                return read_json(path)
            except UserError:
                log.warning(f"{path} is damaged; computing it again")
        sections = compute()
        findings = [
            {**vars(finding), "set": set_name, "judge": network, "section": name}
            for name, section in sections.items() for finding in section.findings
        ]
        contents = {name: section.to_json() for name, section in sections.items()}
        found = {"set": set_name, "judge": network, "sections": contents, "findings": findings}
        write_json(path, found)
        return found
