"""The starter: small networks and a bank of contexts that come with the package.

    starter.json     digests of the parts, and recommended settings
    ldm/             contexts -> latents        model.safetensors  config.json  README.md
    embedder/        faces -> embeddings        model.safetensors  config.json  README.md
    contexts/        identities to generate     contexts.npy  contexts.jsonl  facesyn.json  README.md
    autoencoder/     faces <-> latents          model.safetensors  config.json  README.md
    identity/        latents -> embeddings      model.safetensors  config.json  README.md

The part `autoencoder` is there only where the LDM was trained on the latents of an autoencoder of its own; otherwise
`ldm/config.json` names one that comes with the package, `taesd3`. The part `identity`, for the identity loss of
`train-ldm`, is there where the run trained one. `facesyn starter pack` makes such a folder from a
finished run; `--starter DIR` uses it instead of the packaged one. A recipe or command line names the parts of the
packaged one as `starter-embedder`, `starter-ldm`, ... wherever a file or folder is expected; see `packaged_networks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import read_json
from facesyn_cli.artifacts.context_set import ROWS, VECTORS
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import HEADER
from facesyn_cli.artifacts.weights import CONFIG, read_config
from facesyn_cli.errors import UserError

INDEX = "starter.json"
CARD = "README.md"
FORMAT = 2  # 1: always with an autoencoder
MAX_BYTES = 40 * 10**6
PART_PREFIX = "starter-"  # of the names of the packaged parts
PACKAGED = "packaged"  # the value of `--starter` for the folder inside the package
TENSORS = "model.safetensors"
PARTS: dict[str, tuple[str, ...]] = {  # part -> its files; the first one has the digest
    "ldm": (TENSORS, CONFIG, CARD),
    "embedder": (TENSORS, CONFIG, CARD),
    "contexts": (VECTORS, ROWS, HEADER, CARD),
    "autoencoder": (TENSORS, CONFIG, CARD),
    "identity": (TENSORS, CONFIG, CARD),
}
AUTOENCODER, IDENTITY = "autoencoder", "identity"  # the parts that may be absent


@dataclass(frozen=True)
class Starter:
    """A complete starter.

    Args:
        folder: Its folder.
        settings: Stage -> recommended settings.
        digests: Part -> digest of its first file when it was packed; only the parts that it has.
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
            digests = {name: str(index["parts"][name]["digest"]) for name in _parts_of(index)}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / INDEX} does not describe a starter: {error!r}") from error
        return Starter(folder, settings, digests)

    def part(self, name: str) -> Path:
        """Return the folder of a part, one of `PARTS`."""
        return self.folder / name

    def autoencoder(self) -> str:
        """Return the folder of its autoencoder, or the name of the packaged one that its LDM was trained with.

        Raises:
            UserError: The settings of the LDM name none.
        """
        if AUTOENCODER in self.digests:
            return str(self.part(AUTOENCODER))
        section = read_config(self.part("ldm")).get("autoencoder")
        if not isinstance(section, dict) or not isinstance(section.get("path"), str):
            raise UserError(f"{self.part('ldm') / CONFIG} names no autoencoder, and {self.folder} has none")
        return section["path"]

    def describe(self) -> dict[str, Any]:
        """Return size, digest and card of every part; every file with a digest is read.

        Raises:
            UserError: A file is not the one that was packed.
        """
        parts: dict[str, Any] = {}
        for name, packed in self.digests.items():
            path = self.part(name) / PARTS[name][0]
            digest = file_digest(path)
            if digest != packed:
                raise UserError(f"{path} has changed: it is {digest[:19]}, but {packed[:19]} was packed")
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
    try:
        index = {} if absent else read_json(folder / INDEX)
    except UserError:  # damaged, which `Starter.open` says
        index = {}
    for part in _parts_of(index):
        files = PARTS[part]
        gone = [name for name in files if not (folder / part / name).is_file()]
        absent += [f"{part}/"] if len(gone) == len(files) else [f"{part}/{name}" for name in gone]
    return absent


def _parts_of(index: Any) -> list[str]:
    """Return the parts that a starter has by its index; those that no starter lacks in any case."""
    named = index.get("parts") if isinstance(index, dict) else None
    return [part for part in PARTS
            if part not in (AUTOENCODER, IDENTITY) or isinstance(named, dict) and part in named]


def num_bytes(folder: Path) -> int:
    """Return the size of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
