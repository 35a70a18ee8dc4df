"""The files of a finished folder as they are published: what is left out, and headers without local paths.

A folder is published as it is on disk, with three differences: files that only the maker needs are left out, absolute
paths in JSON files are replaced by their last part, and the header of a set states the origin of its faces, which
otherwise follows from folders that are not published. The folder itself is not changed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.file_manifest import CARD, MANIFEST, why_unknown
from facesyn_cli.artifacts.header import HEADER, Header, read_header, read_started
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.local_paths import without_local_paths
from facesyn_cli.artifacts.origins import FACE_ORIGIN, UNKNOWN, Origin, origin_of_faces
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.starter_files import INDEX, TENSORS, Starter
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import GIB, check_input, read_bytes, read_text
from facesyn_cli.untrusted.parsing import read_json

STARTER = "Starter"             # the kind of a starter, which has no header of its own
_MODELS = ("Weights", STARTER)  # kinds that the hub lists as models; all others are data
_LEFT_OUT = {                   # kind -> folder at the top that only the maker needs -> what it is
    "Weights": {"checkpoints": "checkpoints", "previews": "previews, which show training images", "latents": "a cache"},
    "Report": {"cache": "a cache", "results": "a cache"},
    "ContextSet": {"progress": "unfinished work"},
}
# The hub's own limits: at most 10,000 entries in a folder (huggingface.co/docs/hub/storage-limits), and 25,000 large
# files in a commit (docstring of `huggingface_hub.HfApi.create_commit`).
MAX_ENTRIES, MAX_FILES = 10_000, 25_000
_TEXTS = (".html", ".txt", ".csv", ".md", ".yaml", ".yml")


@dataclass
class Publication:
    """A folder that is ready to be published.

    Args:
        folder: The folder.
        kind: Kind of artifact by its header, or `Starter`.
        header: Its header; None for a starter.
        origin: Origin of its faces; None where it holds none.
        contents: Path below the folder, with `/` -> the file, or other bytes that are published in its place. The card
            and the manifest are not among them.
        left_out: Reason -> number of files.
        naming_paths: Files of text, no JSON, that name the home folder of the user or the folder above `folder`.
    """

    folder: Path
    kind: str
    header: Header | None
    origin: Origin | None
    contents: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    naming_paths: list[str] = field(default_factory=list)

    @staticmethod
    def of(folder: Path) -> Publication:
        """Check a folder and list its files.

        Raises:
            UserError: It is missing, unfinished, damaged or not written by facesyn; it holds a file that cannot be
                published; or more files than the hub takes.
        """
        check_input(folder, "a finished folder of facesyn")
        kind, header = check_finished(folder)
        made = Publication(folder, kind, header, origin_of_faces(folder) if header else None)
        made._list(_LEFT_OUT.get(kind, {}))
        private = [str(path).encode() for path in (Path.home(), folder.absolute().parent) if len(path.parts) > 1]
        for name, content in made.contents.items():
            if content.suffix in _TEXTS and any(path in read_bytes(content, GIB) for path in private):
                made.naming_paths.append(name)
            elif content.suffix in (".json", ".jsonl"):
                text = read_text(content, GIB, "a JSON file")
                cleaned = without_local_paths(text)
                if name == HEADER and header.kind != "ContextSet" and made.origin not in (None, UNKNOWN):
                    cleaned = _with_origin(cleaned, made.origin)
                if cleaned != text:
                    made.contents[name] = cleaned.encode("utf-8", "backslashreplace")
        return made

    @property
    def repo_type(self) -> str:
        """`model` for weights and starters; `dataset` for everything else: sets, tables, reports."""
        return "model" if self.kind in _MODELS else "dataset"

    @property
    def replaced(self) -> list[str]:
        """Names of the files that are published with other content than on disk."""
        return sorted(name for name, content in self.contents.items() if isinstance(content, bytes))

    def _list(self, left_out: dict[str, str]) -> None:
        """Fill `contents` and `left_out`. Links are followed: a published set holds files only."""
        queue = [""]
        while queue:
            place = queue.pop()
            with os.scandir(self.folder / place) as listed:
                items = sorted(listed, key=lambda item: item.name)
            if len(items) > MAX_ENTRIES:
                raise self._too_many(f"{len(items)} entries in {self.folder / place}", f"{MAX_ENTRIES} in a folder")
            for item in items:
                name = f"{place}/{item.name}" if place else item.name
                if item.is_dir():
                    if item.is_symlink():
                        raise UserError(f"{item.path} is a link to a folder; a folder or a file was expected")
                    if name in left_out:
                        self.left_out[left_out[name]] += sum(len(files) for _, _, files in os.walk(item.path))
                    else:
                        queue.append(name)
                    continue
                reason = why_unknown(name)
                if reason is None and not item.is_file():
                    raise UserError(f"{item.path} is a link to nothing, or no file; a file was expected")
                if reason is None:
                    self.contents[name] = Path(item.path)
                elif name not in (CARD, MANIFEST):
                    self.left_out[reason] += 1
        if len(self.contents) > MAX_FILES:
            raise self._too_many(f"{len(self.contents)} files", f"{MAX_FILES} in one upload")

    def _too_many(self, found: str, limit: str) -> UserError:
        pack = f"; pack it first: facesyn pack --in {self.folder} --to webdataset" if self.kind == "ImageSet" else ""
        return UserError(f"{found}; the hub takes at most {limit}{pack}")


def check_finished(folder: Path) -> tuple[str, Header | None]:
    """Check that a folder is finished and that its files are the ones that its header or index describes.

    Weights of a training and starters are compared with their digest; sets, tables and reports are opened, and the
    numbers of their images, rows and records compared with the header.

    Returns:
        Its kind and its header; `Starter` and None for a starter.

    Raises:
        UserError: It is not, or it was not written by facesyn.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; a finished folder of facesyn was expected, for example runs/a/7-fr")
    if (folder / INDEX).is_file():
        Starter.open(folder).describe()
        return STARTER, None
    header = read_header(folder)
    if header is None:
        if started := read_started(folder):
            raise UserError(f"{folder} is unfinished; run the same `facesyn {started.command}` command again to finish "
                            "it")
        raise UserError(f"{folder} has no {HEADER}; a finished folder of one stage was expected, for example "
                        "runs/a/7-fr, or a starter")
    _CHECKS.get(header.kind, lambda folder, header: None)(folder, header)
    return header.kind, header


def _check_weights(folder: Path, header: Header) -> None:
    path = folder / TENSORS
    if header.command.startswith("train-") and file_digest(path) != header.digest:
        raise UserError(f"{path} is not the file that `facesyn {header.command}` wrote: its digest is not the one in "
                        f"{HEADER}")


def _check_count(name: str, folder: Path, header: Header, found: int) -> None:
    if header.counts.get(name, found) != found:
        raise UserError(f"{folder} was written with {header.counts[name]} {name} and holds {found}; is a file gone?")


_CHECKS = {
    "Weights": _check_weights,
    "ImageSet": lambda folder, header: _check_count("images", folder, header, len(ImageSet.open(folder).entries)),
    "RecordSet": lambda folder, header: _check_count("images", folder, header, len(RecordSet.open(folder))),
    "EmbeddingSet": lambda folder, header: _check_count(
        "embeddings", folder, header, len(EmbeddingSet.open(folder).keys)),
    "ContextSet": lambda folder, header: _check_count(
        "contexts", folder, header, len(ContextSet.open(folder).identities)),
    "BenchmarkTable": lambda folder, header: BenchmarkTable.read(folder),
    "Report": lambda folder, header: read_json(folder / "report.json"),
}


def _with_origin(text: str, origin: Origin) -> str:
    value = json.loads(text)
    value["extra"][FACE_ORIGIN] = origin
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
