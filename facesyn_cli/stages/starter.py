"""Show a starter, or pack a finished run as one: in half precision, with a card for each part.

Packing checks that the packed networks generate the same faces as those of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facesyn_cli.artifacts.atomic_directory import atomic_directory
from facesyn_cli.artifacts.atomic_files import write_atomically, write_json, write_text
from facesyn_cli.artifacts.context_set import ROWS, VECTORS, ContextSet, write_contexts
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.artifacts.header import BEGUN, HEADER, Header, Parent, read_header
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.npy_file import write_npy
from facesyn_cli.artifacts.origins import PHOTO
from facesyn_cli.artifacts.packaged_networks import AUTOENCODERS
from facesyn_cli.artifacts.starter_files import (
    AUTOENCODER,
    CARD,
    FORMAT,
    IDENTITY,
    INDEX,
    MAX_BYTES,
    PACKAGED,
    PARTS,
    TENSORS,
    Starter,
    find_starter,
    num_bytes,
)
from facesyn_cli.artifacts.weights import CONFIG, read_config, read_tensors, write_weights
from facesyn_cli.artifacts.work import FOLDERS, Work
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import (
    LATENTS_OF,
    latents_of,
    load_autoencoder,
    load_backbone,
    load_denoiser,
    open_autoencoder,
)
from facesyn_cli.plugins import registry
from facesyn_cli.report.starter_cards import About, card_of, figures_of, figures_of_samples, overview, write_sheet
from facesyn_cli.sampling.starter_check import Networks, check_same_faces
from facesyn_cli.training.metrics_log import read_lines as read_metrics
from facesyn_cli.untrusted.input_files import read_lines

_MADE_BY = {"ldm": "train-ldm", "embedder": "train-embedder", "contexts": "gen-contexts",
            AUTOENCODER: "train-autoencoder", IDENTITY: "train-identity"}
_CONFIG_KEYS = {  # of config.json, what describes a network; no paths
    AUTOENCODER: ("kind", "autoencoder", LATENTS_OF),
    "embedder": ("kind", "backbone", "input_size", "embedding_size", "distilled_from"),
    IDENTITY: ("kind", "backbone", "input_size", "embedding_size"),
}
_KEPT = {  # stage -> folder of the run, and settings of its header that become recommended settings
    "sample": ("samples", ("scheduler", "guidance", "variation")),
    "gen-contexts": ("contexts", ("source", "filters")),
}


@dataclass(frozen=True)
class Sources:
    """The parts before they are packed.

    Args:
        folders: Part -> folder; no autoencoder where the LDM was trained with one that comes with the package, and no
            recognizer of latents where the run has none.
        given: Parts that were named with `--part`; their lineage only causes warnings.
        work: The run.
    """

    folders: dict[str, Path]
    given: frozenset[str]
    work: Work

    @staticmethod
    def find(work: Work, given: Mapping[str, Path]) -> Sources:
        """Find every part.

        Raises:
            UserError: Parts are missing or unfinished, or a given name is not one of a part.
        """
        if unknown := sorted(set(given) - set(PARTS)):
            raise UserError(f"a starter has no part {', '.join(unknown)}; its parts are {', '.join(PARTS)}")
        folders = {name: Path(given.get(name, work.folder(name))) for name in PARTS}
        if packaged := _packaged_autoencoder(folders["ldm"]):
            if AUTOENCODER in given:
                raise UserError(f"{folders['ldm']} was trained on the latents of {packaged}, which comes with facesyn; "
                                f"leave --part {AUTOENCODER} out")
            del folders[AUTOENCODER]
        if IDENTITY not in given and not folders[IDENTITY].exists():
            del folders[IDENTITY]
        absent = [f"{folder} ({_MADE_BY[name]} makes it)" for name, folder in folders.items() if not folder.is_dir()]
        if absent:
            raise UserError(f"nothing to pack: {', '.join(absent)} missing; --part NAME=FOLDER adds one")
        for name, folder in folders.items():
            if (folder / BEGUN).exists():
                raise UserError(f"{folder} is unfinished; run {_MADE_BY[name]} to its end first")
        return Sources(folders, frozenset(given), work)

    def tensors(self, name: str) -> Path:
        """Return the weights file of a part."""
        return self.folders[name] / TENSORS


def _packaged_autoencoder(ldm: Path) -> str | None:
    """Return the name of an LDM's autoencoder that comes with the package; None: it has another one."""
    section = read_config(ldm).get("autoencoder") if (ldm / CONFIG).is_file() else None
    path = section.get("path") if isinstance(section, dict) else None
    return next((name for name in AUTOENCODERS if name == path), None)


def show(folder: Path | None = None) -> dict[str, Any]:
    """Return sizes, digests and settings of a starter, each file checked against its digest.

    Args:
        folder: The starter; None: the packaged one.

    Raises:
        UserError: It is missing, incomplete or changed.
    """
    return find_starter(folder or PACKAGED).describe()


def pack(
    work: Path, out: Path, card: Path | None = None, count: int | None = None, given: Mapping[str, Path] | None = None,
    without: Path | None = None,
) -> dict[str, Any]:
    """Pack a finished run as a starter; the folder appears when everything in it is written and checked.

    Args:
        work: The run.
        out: New or empty folder, or the same starter, which is left unchanged.
        card: YAML with data, split, license, figures and notes for the cards.
        count: Number of contexts, the first ones; None: all.
        given: Part -> folder, for parts outside the run.
        without: List of identities to leave out, one name a line, for example of people whose faces look under age; the
            others keep their names, and so their faces.

    Returns:
        Sizes, digests and how much half precision changes the faces.

    Raises:
        UserError: A part is missing, parts do not match, weights do not fit into fp16 or 40 MB, or the packed networks
            generate other faces or none.
    """
    about, sources = About.read(card), Sources.find(Work(work), given or {})
    with atomic_directory(out) as folder:
        found = _pack(sources, folder, about, count, without)
    return {**found, "folder": str(out), "card": str(out / CARD)}


def _pack(
    sources: Sources, folder: Path, about: About, count: int | None, without: Path | None
) -> dict[str, Any]:
    """Write a starter into an empty folder and check it."""
    embedder_before = file_digest(sources.tensors("embedder"))
    stands_for = _check_lineage(sources, embedder_before)
    embedder = _write_networks(sources, folder, stands_for)
    _write_contexts(sources, folder / "contexts", embedder, count, without)
    settings = {stage: found for stage, (name, keys) in _KEPT.items()
                if (found := _settings_of(sources.work.folder(name), keys))}
    before, after = _networks(sources.folders), _networks({name: folder / name for name in sources.folders})
    contexts = ContextSet.open(folder / "contexts")
    precision = check_same_faces(before, after, contexts.vectors[:4], settings.get("sample", {}))
    _write_cards(sources, folder, about, stands_for, precision)
    parts = {name: {"digest": file_digest(folder / name / PARTS[name][0]), "bytes": num_bytes(folder / name)}
             for name in sources.folders}
    write_json(folder / INDEX, {"format": FORMAT, "parts": parts, "settings": settings})
    sheet = write_sheet(sources.work, folder)
    write_text(folder / CARD, overview(parts, len(contexts.identities), about.license, sheet))
    if (total := num_bytes(folder)) > MAX_BYTES:
        sizes = ", ".join(f"{name} {part['bytes'] / 1e6:.2f} MB" for name, part in parts.items())
        raise UserError(f"the starter has {total / 1e6:.2f} MB, at most {MAX_BYTES / 1e6:.0f} MB are packed: {sizes}")
    held = Starter.open(folder).describe()
    return {"bytes": held["bytes"], "contexts": len(contexts.identities), "half_precision": precision, "parts": parts,
            "settings": settings}


def _networks(folders: Mapping[str, Path]) -> Networks:
    embedder = load_backbone(folders["embedder"])
    embed = FaceEmbedder.of(embedder, torch.device("cpu")).embed
    ldm, own = load_denoiser(folders["ldm"]), folders.get(AUTOENCODER)
    return Networks(ldm, load_autoencoder(own) if own else open_autoencoder(ldm.config.autoencoder), embed)


def _check_lineage(sources: Sources, embedder: str) -> str | None:
    """Return the digest of the recognizer that the packed one replaces, None where it is the same.

    A student learned its teacher's embeddings, so it can replace it; its card says so.

    Raises:
        UserError: LDM, contexts and networks do not match, or the contexts are of photos.
    """
    settings = _ldm_settings(sources)
    trained_on = (settings.autoencoder or {}).get("digest")
    if trained_on is not None and AUTOENCODER in sources.folders:
        fits = {file_digest(sources.tensors(AUTOENCODER)), *latents_of(sources.folders[AUTOENCODER])}
        if trained_on not in fits:
            _refuse_or_warn(sources, AUTOENCODER, f"{sources.folders['ldm']} was trained on the latents of another one")
    header = read_header(sources.folders["embedder"])
    teacher = header.extra.get("distilled_from") if header else None
    contexts = ContextSet.open(sources.folders["contexts"])
    if contexts.face_origin == PHOTO:
        raise UserError(f"{contexts.path} holds embeddings of photos of real people; a starter's contexts are of "
                        "people who do not exist")
    beside = settings.embedder_beside(contexts.embedder)
    embedders = {str(contexts.path): contexts.embedder, str(sources.folders["ldm"]): beside}
    other = require_same_embedder(embedders, "pack contexts of the LDM's recognizer")
    if other not in (None, embedder, teacher):
        _refuse_or_warn(sources, "embedder", f"{sources.folders['ldm']} was conditioned on another one, and it is not"
                        " that one's student")
    if IDENTITY in sources.folders:
        _check_identity(sources, settings)
    return None if other == embedder else other


def _check_identity(sources: Sources, settings: LdmSettings) -> None:
    """Check that the recognizer of latents learned the embeddings and latents of the LDM."""
    config = read_config(sources.folders[IDENTITY])
    taught, read = config.get("distilled_from"), config.get("autoencoder")
    if settings.embedder is not None and taught != settings.embedder:
        _refuse_or_warn(sources, IDENTITY, f"{sources.folders['ldm']} was conditioned on embeddings of another one")
    if settings.autoencoder is not None and (read or {}).get("digest") != settings.autoencoder.get("digest"):
        _refuse_or_warn(sources, IDENTITY, f"{sources.folders['ldm']} was trained on latents of another autoencoder")


def _refuse_or_warn(sources: Sources, name: str, why: str) -> None:
    text = f"{sources.folders[name]}: {why}"
    if name not in sources.given:
        raise UserError(f"{text}; --part {name}=FOLDER packs it anyway")
    log.warning(text)


def _write_networks(sources: Sources, folder: Path, teacher: str | None) -> str:
    """Write all networks in half precision; return the digest of the packed recognizer.

    The LDM names the packed recognizer, the teacher that it stands in for, and its autoencoder by a relative path or
    the name of a packaged one.
    """
    for name in (AUTOENCODER, "embedder"):
        if name in sources.folders:
            _write_half(sources.tensors(name), folder / name, _config_of(sources, name))
    embedder = file_digest(folder / "embedder" / TENSORS)
    settings = _ldm_settings(sources)
    section = settings.autoencoder
    if AUTOENCODER in sources.folders:
        section = {**load_autoencoder(folder / AUTOENCODER).section, "path": f"../{AUTOENCODER}"}
    teacher = teacher or settings.teacher
    settings = settings.model_copy(update={"autoencoder": section, "embedder": embedder, "teacher": teacher})
    _write_half(sources.tensors("ldm"), folder / "ldm", settings.model_dump(mode="json"))
    if IDENTITY in sources.folders:
        config = {"distilled_from": embedder, "teacher": teacher, "autoencoder": section}
        _write_half(sources.tensors(IDENTITY), folder / IDENTITY, {**_config_of(sources, IDENTITY), **config})
    return embedder


def _ldm_settings(sources: Sources) -> LdmSettings:
    return LdmSettings.from_json(read_config(sources.folders["ldm"]), str(sources.folders["ldm"] / CONFIG))


def _config_of(sources: Sources, name: str) -> dict[str, Any]:
    config = read_config(sources.folders[name])
    return {key: config[key] for key in _CONFIG_KEYS[name] if key in config}


def _write_half(source: Path, folder: Path, config: dict[str, Any]) -> None:
    try:
        write_weights(folder, read_tensors(source), config, precision="fp16")
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _write_contexts(
    sources: Sources, folder: Path, embedder: str, count: int | None, without: Path | None
) -> None:
    """Write the contexts in half precision, without faces and names of real images."""
    given = ContextSet.open(sources.folders["contexts"])
    left_out = {line.strip() for line in read_lines(without, "a list of identities")} - {""} if without else set()
    if unknown := sorted(left_out - set(given.identities)):
        raise UserError(f"{without}: {given.path} has no identity {', '.join(unknown[:5])}")
    rows = [row for row, name in enumerate(given.identities) if name not in left_out]
    if count is not None and count > len(rows):
        raise UserError(f"count is {count}, but {given.path} holds {len(rows)} contexts"
                        + (f" without those of {without}" if without else ""))
    rows = rows[:count]
    identities, vectors = [given.identities[row] for row in rows], given.vectors[rows]
    origins = [{key: given.origins[row][key] for key in ("source", "candidate") if key in given.origins[row]}
               for row in rows]
    write_contexts(folder, identities, vectors, origins, [None] * len(identities))
    with write_atomically(folder / VECTORS) as temporary, open(temporary, "wb") as file:
        write_npy(file, vectors.astype(np.float16))
    digest = json_digest([embedder, *(file_digest(folder / name) for name in (VECTORS, ROWS))])
    parents = {"contexts": Parent(FOLDERS["contexts"], given.digest)}
    extra = {"embedder": embedder}
    header = Header("ContextSet", "starter pack", {}, parents, {"contexts": len(identities)}, extra, digest, digest)
    write_json(folder / HEADER, asdict(header))


def _settings_of(folder: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return settings of a finished stage, without filters that need a file."""
    header = read_header(folder)
    found: dict[str, Any] = {}
    for role in ("identity", "growing", "recorded") if header else ():
        for key in keys:
            value = header.config.get(role, {}).get(key)
            if isinstance(value, list):
                value = [item for item in value
                         if not registry.build("context_filter", registry.configure("context_filter", item)).needs]
            if isinstance(value, dict):
                value = {name: part for name, part in value.items() if name != "groups"}  # packed people have no names
                found[key] = {**found.get(key, {}), **value}
            elif value is not None:
                found[key] = value
    return found


def _write_cards(
    sources: Sources, folder: Path, about: About, stands_for: str | None, precision: dict[str, float]
) -> None:
    for name, source in sources.folders.items():
        header = read_header(source)
        found = figures_of(header, read_metrics(source / "metrics.jsonl"))
        if name == "ldm":
            found |= figures_of_samples(sources.work)
            found |= {f"half precision against fp32, {key}": value for key, value in precision.items()}
        notes = []
        if name == "embedder" and stands_for:
            notes.append(f"It stands in for its teacher ({stands_for}), whose embeddings the LDM is conditioned on.")
        if name == "ldm" and AUTOENCODER not in sources.folders:
            section = read_config(folder / "ldm")["autoencoder"]
            notes.append(f"Its autoencoder, {section['path']} ({section['digest']}), comes with facesyn.")
        text = card_of(name, about, header, found, notes, file_digest(folder / name / PARTS[name][0]))
        write_text(folder / name / CARD, text)
