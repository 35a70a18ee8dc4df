"""The work folder of one run: numbered folders, one per stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDERS = {
    "images": "0-images",
    "embedder": "1-embedder",
    "embeddings": "1-embeddings",
    "autoencoder": "2-autoencoder",
    "identity": "2-identity",
    "ldm": "2-ldm",
    "contexts": "3-contexts",
    "samples": "4-samples",
    "augmented": "5-augmented",
    "records": "6-records",
    "fr": "7-fr",
    "table": "8-table",
    "report": "9-report",
}
OUTPUTS = {  # stage -> the folder that it writes; the other stages write outside of the run's folder
    "align": "images", "embed": "embeddings", "train-embedder": "embedder", "train-autoencoder": "autoencoder",
    "train-identity": "identity",
    "train-ldm": "ldm", "gen-contexts": "contexts", "sample": "samples", "augment": "augmented", "pack": "records",
    "train-fr": "fr", "eval": "table", "report": "report",
}


@dataclass(frozen=True)
class Work:
    """The folder of a run, given by `--work`.

    Args:
        path: Its path; may not exist yet.
    """

    path: Path

    def folder(self, name: str) -> Path:
        """Return the path of one numbered folder by its short name (a key of `FOLDERS`)."""
        return self.path / FOLDERS[name]
