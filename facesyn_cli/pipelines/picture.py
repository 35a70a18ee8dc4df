"""The picture of a recipe's pipeline: `facesyn run --config RECIPE --draw FILE.svg`.

It needs no weights and no data. Where the work folder holds finished folders, the picture shows what they contain, and
faces of the sets that were generated; photos are never shown.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from facesyn_cli.artifacts.config_changes import compare_configs
from facesyn_cli.artifacts.header import Header, read_header
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import predicted_by
from facesyn_cli.artifacts.work import Work
from facesyn_cli.data.pixels import decode_image, encode_jpeg, resize_u8
from facesyn_cli.diffusion.scheduler_choice import with_default_scheduler
from facesyn_cli.pipelines.stage_facts import stage_facts
from facesyn_cli.plugins import registry
from facesyn_cli.report.pipeline_picture import MOST_THUMBS, StageBox, draw_pipeline

_SIDE, _QUALITY = 88, 80          # of a face in the file; it is drawn at half the size
_WRITES = {  # stage -> folder; select and study write to a folder of their own
    "align": "images", "embed": "embeddings", "train-embedder": "embedder", "train-autoencoder": "autoencoder",
    "train-identity": "identity",
    "train-ldm": "ldm", "gen-contexts": "contexts", "sample": "samples", "augment": "augmented", "pack": "records",
    "train-fr": "fr", "eval": "table", "report": "report",
}
_ABOUT = {
    "align": "cuts the face out of each photo", "embed": "describes faces by embeddings",
    "train-embedder": "distills a small recognizer", "train-autoencoder": "faces to latents and back",
    "train-identity": "recognizes people by latents",
    "train-ldm": "learns to generate faces", "gen-contexts": "makes up new identities",
    "sample": "generates their images", "select": "drops identities that look alike",
    "augment": "adds images to each identity", "pack": "writes records with labels",
    "train-fr": "trains a recognizer on the set", "eval": "verifies real faces with it",
    "report": "measures and shows the set", "study": "compares ways to sample",
}
_COUNTED = ("contexts", "images", "embeddings", "steps", "pairs")  # of a header; the first of them is shown
_FACES = ("sample", "augment")    # stages whose sets are shown; their images are generated


class _Read(NamedTuple):
    """One input of a stage: the setting that names it, the folder of the run otherwise, and its name for a reader.

    Without a name it is optional: shown only where the setting is given or the recipe writes the folder.
    """

    setting: str
    folder: str
    title: str


_IMAGES, _EMBEDDINGS = _Read("images", "images", "photos"), _Read("embeddings", "embeddings", "embeddings")
_LDM, _CONTEXTS = _Read("ldm", "ldm", "LDM"), _Read("contexts", "contexts", "contexts")
_READS: dict[str, tuple[_Read, ...]] = {
    "align": (_Read("images", "", "photos"), _Read("detector", "", "face detector")),
    "embed": (_IMAGES, _Read("weights", "", "recognizer")),
    "train-embedder": (_IMAGES, _EMBEDDINGS),
    "train-autoencoder": (_IMAGES,),
    "train-identity": (_IMAGES, _EMBEDDINGS, _Read("autoencoder", "autoencoder", "")),
    "train-ldm": (_IMAGES, _EMBEDDINGS, _Read("autoencoder", "autoencoder", "autoencoder"),
                  _Read("identity_recognizer", "identity", "")),
    "sample": (_CONTEXTS, _LDM, _Read("autoencoder", "", "")),
    "select": (_Read("images", "samples", "images"), _Read("embeddings", "", "embeddings")),
    "augment": (_Read("images", "samples", "images"),),
    "pack": (_Read("inputs", "augmented", "images"),),
    "train-fr": (_Read("inputs", "records", "records"),),
    "eval": (_Read("weights", "fr", "recognizer"),),
    "report": (_Read("sets", "samples", "images"), _Read("judges", "", "judge recognizer"),
               _Read("reference", "images", ""), _Read("table", "table", "")),
    "study": (_LDM, _CONTEXTS, _Read("judge", "", "judge recognizer")),
}
_NEEDED = {  # what a source or filter of contexts needs -> the input
    "images": _Read("images", "", "faces"), "embeddings": _Read("embeddings", "", "embeddings"),
    "known": _Read("known", "embeddings", "known embeddings"), "generator": _Read("generator", "", "generator"),
    "ldm": _LDM,
}


def draw_recipe(name: str, configs: Mapping[str, Any], work: Work, command: str) -> str:
    """Return the picture of a pipeline as an SVG document.

    Args:
        name: Name of the recipe.
        configs: Stage -> config, in the order in which they run.
        work: The work folder; it may not exist.
        command: The command that makes the picture.
    """
    written = {_WRITES[stage]: stage for stage in configs if stage in _WRITES}
    boxes, foreign = [], False
    for stage, stated in configs.items():
        cfg = with_default_scheduler(stated, _prediction(stated, configs, work), is_silent=True)
        reads, inputs = _inputs(stage, cfg, written)
        folder, done, thumbs = _folder(stage, cfg, work), "", []
        header = read_header(folder) if folder is not None and folder.is_dir() else None
        if header is not None:
            is_same = _is_of(header, cfg)
            done = _content(header) if is_same else ""
            thumbs = _faces(folder, one_identity=stage == "augment") if stage in _FACES else []
            foreign |= bool(thumbs) and not is_same
        shown = "" if folder is None else folder.name if cfg.out is None else str(cfg.out)
        boxes.append(StageBox(stage, _ABOUT[stage], shown, stage_facts(stage, cfg), inputs, reads, done, thumbs))
    notes = ["Arrows lead from a folder to the stages that read it. Dashed: files that you give."]
    if foreign:
        notes.append(f"The faces are from the folder {work.path}, made with other settings.")
    lead = "Each box is a stage, which is also a command of its own; at its foot is the folder that it writes."
    return draw_pipeline(f"Pipeline of the recipe {name}", lead, boxes, notes, command)


def _prediction(cfg: Any, configs: Mapping[str, Any], work: Work) -> str:
    """Return what the LDM predicts that a stage reads; `epsilon` of a stage without one."""
    ldm = getattr(cfg, "ldm", None)
    if ldm is None and "train-ldm" in configs:
        return configs["train-ldm"].prediction
    return predicted_by(ldm or work.folder("ldm"))


def _inputs(stage: str, cfg: Any, written: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the earlier stages that a stage reads, and the names of its inputs from outside."""
    reads: list[str] = []
    inputs: list[str] = []
    for read in (*_READS.get(stage, ()), *_of_plugins(stage, cfg)):
        if getattr(cfg, read.setting, None):
            inputs.append(read.title or read.setting)
        elif read.folder in written and written[read.folder] != stage:
            reads.append(written[read.folder])
        elif stage == "pack" and "samples" in written:
            reads.append(written["samples"])
        elif read.title:
            inputs.append(read.title)
    if stage == "eval" and (cfg.benchmarks or cfg.pairs):
        inputs.append("benchmarks")
    if stage.startswith("train-") and getattr(cfg, "features", None):
        inputs.append("recognizer")
    return list(dict.fromkeys(reads)), list(dict.fromkeys(inputs))


def _of_plugins(stage: str, cfg: Any) -> list[_Read]:
    """Return what an augmentation, or the source and the filters of contexts, need."""
    if stage == "augment":
        needs_faces = registry.build("augmentation", cfg.augmentation).needs_faces
        return [_Read("faces", "contexts", "contexts")] if needs_faces else []
    if stage != "gen-contexts":
        return []
    parts = [registry.build("contexts", cfg.source), *(registry.build("context_filter", one) for one in cfg.filters)]
    needs = frozenset[str]().union(*(part.needs for part in parts))
    found = [read for need, read in _NEEDED.items() if need in needs]
    if "recognizer" in needs:
        found.append(_Read("weights", "", "recognizer"))
    return found


def _folder(stage: str, cfg: Any, work: Work) -> Path | None:
    if cfg.out is not None:
        return Path(cfg.out)
    return work.folder(_WRITES[stage]) if stage in _WRITES else None


def _is_of(header: Header, cfg: Any) -> bool:
    """Return whether a folder was made with these settings; a number format that is measured may be any."""
    problems = compare_configs(header.config, cfg.to_json()).problems
    return not [change for change in problems if change.setting != "precision" or cfg.precision != "auto"]


def _content(header: Header) -> str:
    name = next((name for name in _COUNTED if name in header.counts), "")
    return f"{header.counts[name]:,} {name}" if name else "finished"


def _faces(folder: Path, one_identity: bool) -> list[str]:
    """Return some images of a set as data URIs: of different identities, or all of one."""
    images = open_images(folder)
    people = list(images.by_identity().values())
    chosen = _evenly(people[len(people) // 2]) if one_identity else [one[0] for one in _evenly(people)]
    uris = []
    for entry in chosen:
        jpeg = encode_jpeg(resize_u8(decode_image(images.read(entry)), _SIDE), _QUALITY)
        uris.append(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}")
    return uris


def _evenly(items: list[Any]) -> list[Any]:
    return [items[k * len(items) // MOST_THUMBS] for k in range(MOST_THUMBS)] if len(items) > MOST_THUMBS else items
