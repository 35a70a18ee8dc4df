"""The starter: small networks and a bank of contexts that come with the package.

    starter.json     digests of the parts, and recommended settings
    autoencoder/     faces <-> latents          model.safetensors  config.json  README.md
    ldm/             contexts -> latents        model.safetensors  config.json  README.md
    embedder/        faces -> embeddings        model.safetensors  config.json  README.md
    contexts/        identities to generate     contexts.npy  contexts.jsonl  facesyn.json  README.md

`facesyn starter pack` makes such a folder from a finished run; `--starter DIR` uses it instead of the packaged one.
A recipe or command line names the parts of the packaged one as `starter-embedder`, `starter-ldm`, ... wherever a file
or folder is expected; see `packaged_networks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import read_json
from facesyn_cli.artifacts.context_set import ROWS, VECTORS
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import HEADER
from facesyn_cli.artifacts.weights import CONFIG
from facesyn_cli.errors import UserError

INDEX = "starter.json"
CARD = "README.md"
FORMAT = 1
MAX_BYTES = 15 * 10**6
PART_PREFIX = "starter-"  # of the names of the packaged parts
PACKAGED = "packaged"  # the value of `--starter` for the folder inside the package
TENSORS = "model.safetensors"
PARTS: dict[str, tuple[str, ...]] = {  # part -> its files; the first one has the digest
    "autoencoder": (TENSORS, CONFIG, CARD),
    "ldm": (TENSORS, CONFIG, CARD),
    "embedder": (TENSORS, CONFIG, CARD),
    "contexts": (VECTORS, ROWS, HEADER, CARD),
}


@dataclass(frozen=True)
class Starter:
    """A complete starter.

    Args:
        folder: Its folder.
        settings: Stage -> recommended settings.
        digests: Part -> digest of its first file when it was packed.
    """

    folder: Path
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def open(folder: Path) -> Starter:
        """Open a starter; its networks are not read.

        Raises:
            UserError: A file is missing, or the format is newer.
        """
        if absent := missing(folder):
            raise UserError(f"{folder} is no starter: {', '.join(absent)} missing; `facesyn starter pack` makes one")
        index = read_json(folder / INDEX)
        try:
            if index["format"] > FORMAT:
                raise UserError(f"{folder} has starter format {index['format']}, this facesyn reads up to {FORMAT}")
            settings = {str(stage): dict(values) for stage, values in index["settings"].items()}
            digests = {name: str(index["parts"][name]["digest"]) for name in PARTS}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / INDEX} does not describe a starter: {error!r}") from error
        return Starter(folder, settings, digests)

    def part(self, name: str) -> Path:
        """Return the folder of a part, one of `PARTS`."""
        return self.folder / name

    def describe(self) -> dict[str, Any]:
        """Return size, digest and card of every part; every file with a digest is read.

        Raises:
            UserError: A file is not the one that was packed.
        """
        parts: dict[str, Any] = {}
        for name, files in PARTS.items():
            digest = file_digest(self.part(name) / files[0])
            if digest != self.digests[name]:
                raise UserError(f"{self.part(name) / files[0]} has changed: it is {digest[:19]}, but"
                                f" {self.digests[name][:19]} was packed")
            parts[name] = {"bytes": num_bytes(self.part(name)), "digest": digest, "card": str(self.part(name) / CARD)}
        return {"folder": str(self.folder), "bytes": num_bytes(self.folder), "settings": self.settings, "parts": parts}


def packaged_folder() -> Path:
    """Return the folder of the starter inside the package; it may be missing."""
    return Path(__file__).resolve().parents[1] / "starter"


def find_starter(name: str | Path) -> Starter:
    """Open the starter in a folder, or the packaged one by the word `packaged`.

    Raises:
        UserError: It is missing or incomplete.
    """
    if str(name) != PACKAGED:
        return Starter.open(Path(name))
    if absent := missing(packaged_folder()):
        raise UserError(f"no starter is packaged with this facesyn ({', '.join(absent)} missing); name another folder")
    return Starter.open(packaged_folder())


def is_packaged() -> bool:
    """True when the package contains a complete starter."""
    return not missing(packaged_folder())


def missing(folder: Path) -> list[str]:
    """Return the parts, or single files of them, that a folder lacks to be a starter."""
    if not folder.is_dir():
        return [f"folder {folder.name}"]
    absent = [] if (folder / INDEX).is_file() else [INDEX]
    for part, files in PARTS.items():
        gone = [name for name in files if not (folder / part / name).is_file()]
        absent += [f"{part}/"] if len(gone) == len(files) else [f"{part}/{name}" for name in gone]
    return absent


def num_bytes(folder: Path) -> int:
    """Return the size of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
