"""The list of files of a published folder with their digests, `facesyn-files.json`.

`facesyn push` writes it beside the files, `facesyn pull` verifies every file with it. The card (`README.md` at the top)
is not in the list: its owner may edit it on the hub.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from facesyn_cli.artifacts.digest import bytes_digest, file_digest
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MIB, input_size, inside
from facesyn_cli.untrusted.parsing import MAX_JSON, parse_json, validated

MANIFEST = "facesyn-files.json"
CARD = "README.md"
FORMAT = 1
MAX_CARD = MIB                  # bytes of a card that is read
MAX_MANIFEST = MAX_JSON
_FILE_KINDS = frozenset((       # suffixes of what stages write; all are read by loaders that execute nothing
    ".json", ".jsonl", ".txt", ".csv", ".md", ".html", ".yaml", ".yml",
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".safetensors", ".onnx", ".pth", ".pt", ".ckpt", ".npy", ".npz", ".bin",
    ".tfrecord", ".index", ".rec", ".idx", ".lst", ".tar", ".parquet", ".mdb",
))
_FILE_NAMES = ("property",)     # of files without a suffix: beside a `.rec`


class FileFacts(BaseModel):
    """Size in bytes and digest of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]

    @staticmethod
    def of(content: Path | bytes) -> FileFacts:
        """Return the facts of a file, or of the bytes that it is to hold.

        Raises:
            UserError: The file cannot be read.
        """
        if isinstance(content, bytes):
            return FileFacts(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        return FileFacts(size=input_size(content), sha256=file_digest(content).removeprefix("sha256:"))


class FileManifest(BaseModel):
    """The content of `facesyn-files.json`.

    Args:
        format: Version of this file.
        kind: Kind of the folder, for example `ImageSet`; `Starter` for a starter.
        card: Digest (`sha256:<hex>`) of the card that was pushed; a card with another one was edited since.
        files: Path below the folder, with `/` -> its facts.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    format: int
    kind: str
    card: str
    files: dict[str, FileFacts]

    @staticmethod
    def of(kind: str, card: str, contents: dict[str, Path | bytes]) -> FileManifest:
        """Return the manifest of a folder; every file is read."""
        files = {name: FileFacts.of(content) for name, content in sorted(contents.items())}
        return FileManifest(format=FORMAT, kind=kind, card=bytes_digest(card.encode()), files=files)

    @staticmethod
    def parse(data: bytes, where: str) -> FileManifest:
        """Return a manifest of unknown origin.

        Args:
            data: Content of the file.
            where: Where it comes from, for messages.

        Raises:
            UserError: It is no manifest, of a newer format, or names files that no folder of facesyn holds.
        """
        try:
            value = parse_json(data.decode("utf-8", "replace"))
        except UserError as error:
            raise UserError(f"{where}: {MANIFEST}: {error}") from error
        if isinstance(value, dict) and type(value.get("format")) is int and value["format"] > FORMAT:
            raise UserError(f"{where}: {MANIFEST} has format {value['format']}, this facesyn reads up to {FORMAT}; "
                            "install a newer one")
        manifest = validated(_ADAPTER, value, f"{where}: {MANIFEST}", "a list of files with their digests")
        for name in manifest.files:
            check_name(name, f"{where}: {MANIFEST}")
            if reason := why_unknown(name):
                raise UserError(f"{where}: {MANIFEST} names {name[:200]!r}, {reason}; nothing is downloaded")
        return manifest

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(facts.size for facts in self.files.values())

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()

    def differences(self, folder: Path) -> dict[str, str]:
        """Compare the files of a folder with the manifest; all of them are read.

        Returns:
            Path below the folder -> difference, for files that are missing or differ.
        """
        found = {}
        for name, facts in self.files.items():
            path = folder / name
            if not path.is_file():
                found[name] = "is missing"
            elif input_size(path) != facts.size:
                found[name] = f"has {input_size(path)} bytes instead of {facts.size}"
            elif FileFacts.of(path) != facts:
                found[name] = "has another SHA-256"
        return found


_ADAPTER = TypeAdapter(FileManifest)


def check_name(name: str, where: str) -> None:
    """Check the name of a file in a repository.

    Raises:
        UserError: It is absolute, leads out of the folder, or is no name that every system can write.
    """
    inside(Path("the folder"), name, where)
    if "\\" in name or ":" in name or not name.isprintable():
        raise UserError(f"{where} names the file {name[:200]!r}; a name without backslash, colon and control "
                        "characters was expected")


def why_unknown(name: str) -> str | None:
    """Return why a file is none that a stage writes and its readers use; None for one that is."""
    if any(part.startswith(".") for part in name.split("/")):
        return "a hidden file"
    if name in (CARD, MANIFEST):
        return "a file that push adds itself"
    suffix = Path(name).suffix.lower()
    if suffix in _FILE_KINDS or Path(name).name in _FILE_NAMES:
        return None
    return f"a file of an unknown kind ({suffix or 'no suffix'})"
