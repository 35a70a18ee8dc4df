"""What to do after a command: one line on stderr that ends with a command to paste.

    next: facesyn pack --config admis --work runs/a
    next (JUDGE: weights of a recognizer other than the one of the contexts): facesyn report --judge JUDGE

The command has the folders and options of this run. A word in capitals stands for an input that is neither in the work
folder nor in the recipe.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.header import HEADER, read_header
from facesyn_cli.artifacts.preview_pictures import SHEET, picture_path
from facesyn_cli.artifacts.starter_files import PACKAGED, is_packaged
from facesyn_cli.artifacts.work import OUTPUTS, Work
from facesyn_cli.config.recipe import STAGES, load_recipe
from facesyn_cli.console import is_first_process, log

_NEXT = {
    "align": "embed", "embed": "train-ldm", "train-embedder": "train-ldm", "train-autoencoder": "train-ldm",
    "train-identity": "train-ldm",
    "train-ldm": "gen-contexts", "gen-contexts": "sample", "sample": "pack", "select": "pack", "augment": "pack",
    "pack": "train-fr", "train-fr": "eval", "eval": "report", "study": "sample",
}
_ASIDE = ("select", "study")  # no steps on the way of a recipe
_TAKES = {  # command -> finished stage -> option that names its folder
    "embed": {"align": "--images"},
    "train-embedder": {"align": "--images", "embed": "--embeddings"},
    "train-autoencoder": {"align": "--images"},
    "train-identity": {"align": "--images", "embed": "--embeddings", "train-autoencoder": "--autoencoder"},
    "train-ldm": {"align": "--images", "embed": "--embeddings", "train-autoencoder": "--autoencoder"},
    "gen-contexts": {"train-ldm": "--ldm"},
    "sample": {"train-ldm": "--ldm", "gen-contexts": "--contexts"},
    "augment": {"sample": "--in", "select": "--in"},
    "pack": {"sample": "--in", "select": "--in", "augment": "--in"},
    "train-fr": {"pack": "--in"},
    "eval": {"train-fr": "--weights"},
    "report": {"eval": "--table"},
}
_SHARED = {  # (finished stage, next command) -> options of the first that the second needs as well
    ("embed", "train-ldm"): ("images",), ("embed", "train-embedder"): ("images",),
    ("embed", "train-autoencoder"): ("images",), ("train-embedder", "train-ldm"): ("images", "embeddings"),
    ("train-identity", "train-ldm"): ("images", "embeddings", "autoencoder"),
    ("embed", "train-identity"): ("images",), ("train-autoencoder", "train-identity"): ("images",),
    ("train-embedder", "train-autoencoder"): ("images",), ("train-autoencoder", "train-ldm"): ("images",),
    ("gen-contexts", "sample"): ("ldm", "autoencoder"), ("study", "sample"): ("ldm", "autoencoder", "contexts"),
    ("sample", "augment"): ("contexts",),
}


@dataclass(frozen=True)
class _Input:
    """An input of a command.

    Args:
        words: The option and, in capitals, what stands for its value.
        about: What that is.
        settings: Settings of a recipe that give it.
        folder: Folder of the run that holds it.
        part_of_starter: A starter has it.
    """

    words: tuple[str, ...]
    about: str
    settings: tuple[str, ...]
    folder: str = ""
    part_of_starter: bool = False


_FACES = _Input(("--images", "FACES"), "FACES: folder or zip of aligned faces", ("images",), "images")
_INPUTS = {
    "embed": (_FACES, _Input(("--weights", "RECOGNIZER"), "RECOGNIZER: weights of a face recognizer",
                             ("weights", "backbone"), part_of_starter=True)),
    "train-embedder": (_FACES,),
    "train-identity": (_FACES,),
    "train-autoencoder": (_FACES,),
    "train-ldm": (_FACES, _Input(("--autoencoder", "AUTOENCODER"), "AUTOENCODER: weights of an autoencoder",
                                 ("autoencoder", "autoencoder_model"), "autoencoder", part_of_starter=True)),
    "gen-contexts": (_Input(("--weights", "RECOGNIZER"), "RECOGNIZER: weights of the recognizer of the LDM",
                            ("weights", "backbone"), "embeddings"),
                     _Input(("--count", "100"), "", ("count",))),
    "sample": (_Input(("--ldm", "LDM"), "LDM: weights of a latent diffusion model", ("ldm",), "ldm",
                      part_of_starter=True),),
    "eval": (_Input(("--benchmarks", "lfw"), "", ("benchmarks", "pairs")),
             _Input(("--data", "BENCHMARKS"), "BENCHMARKS: folder that holds lfw.bin", ("data", "pairs"))),
    "report": (_Input(("--judge", "JUDGE"), "JUDGE: weights of a recognizer other than the one of the contexts",
                      ("judges",)),),
}


@dataclass(frozen=True)
class _Finished:
    """A stage that has run, with the options that had a value; see `after_stage`."""

    stage: str
    folder: Path
    work: Work
    given: Mapping[str, Any]
    options: Mapping[str, str]

    @property
    def is_in_work(self) -> bool:
        """True where the folder is the one that the next stages read without an option."""
        return self.stage in OUTPUTS and self.folder == self.work.folder(OUTPUTS[self.stage])


def after_stage(
    stage: str, folder: Path, work: Work, given: Mapping[str, Any], options: Mapping[str, str]
) -> str | None:
    """Return the line after a stage; None where its folder is unfinished, as that of one part of several.

    Args:
        stage: Its name.
        folder: Where it wrote.
        work: The work folder.
        given: Options of the command line; None: not given.
        options: Stage -> names of its optional options, separated by blanks.
    """
    done = _Finished(stage, folder, work, {key: value for key, value in given.items() if value is not None}, options)
    if not (done.folder / HEADER).is_file():
        return None
    command = _following(done)
    if command is None:
        return after_page(done.folder if done.stage == "report" else done.work.folder("report"))
    if done.stage == "eval" and not done.work.folder("samples").exists():
        weights = done.given.get("weights") or done.work.folder("fr")
        words = ["compare", "PHOTO_1", "PHOTO_2", "--weights", weights, "--table", done.folder]
        return line(words, ["PHOTO_1, PHOTO_2: two aligned faces, or folders of them"])
    words, notes = [command], []
    if not done.is_in_work and (option := _TAKES.get(command, {}).get(done.stage)):
        words += [option, done.folder]
    for key in _SHARED.get((done.stage, command), ()):
        words += [f"--{key}", done.given[key]] if key in done.given and f"--{key}" not in words else []
    if done.stage == "study":
        words += ["--scheduler", "SCHEDULER", "--steps", "STEPS"]
        notes.append("SCHEDULER, STEPS: those of a row of the table")
    if done.stage == "sample" and (sheet := picture_path(done.folder, SHEET)).is_file():
        notes.append(f"faces to look at: {done.folder.with_name(sheet.name)}")
    _add_inputs(words, notes, done)
    accepted = options.get(command, "").split()
    for key in ("config", "work", "tree", "device", "seed"):
        if key in done.given and (key in ("config", "work") or key in accepted):
            words += [f"--{key}", done.given[key]]
    return line(words, notes)


def after_page(folder: Path) -> str:
    """Return the line after a report."""
    return f"next: open {folder / 'report.html'} in a browser"


def after_conversion(kind: str, form: str, folder: Path) -> str | None:
    """Return the line after `models convert`: what loads the folder; None where that is no command of ours.

    Args:
        kind: Kind of network.
        form: safetensors, published or onnx.
        folder: Where it was written.
    """
    if form == "onnx":
        return line(["embed", "--images", "FACES", "--weights", folder / "model.onnx"], [_FACES.about])
    words: dict[str, list[Any]] = {
        "backbone": ["embed", "--images", "FACES", "--weights", folder],
        "denoiser": ["sample", "--ldm", folder, "--contexts", "CONTEXTS"],
        "autoencoder": ["train-ldm", "--images", "FACES", "--embeddings", "EMBEDDINGS", "--autoencoder", folder],
        "head": ["train-fr", "--in", "RECORDS", f"initial_head={folder / 'head.safetensors'}"],
    }
    about = {
        "FACES": _FACES.about, "CONTEXTS": "CONTEXTS: folder or .npy of embeddings of new identities",
        "EMBEDDINGS": "EMBEDDINGS: folder of their embeddings", "RECORDS": "RECORDS: packed faces",
    }
    if form != "safetensors" or kind not in words:
        return None
    return line(words[kind], [text for word, text in about.items() if word in words[kind]])


def after_pull(kind: str, folder: Path) -> str | None:
    """Return the line after a pushed folder was pulled: what takes the folder; None for a kind that nothing takes.

    Args:
        kind: Kind of the folder by its manifest.
        folder: Where it is.
    """
    header = read_header(folder)
    made_by = header.command if header is not None and kind == "Weights" else kind
    options = {
        "ImageSet": ("pack", "--in"), "RecordSet": ("train-fr", "--in"), "EmbeddingSet": ("train-ldm", "--embeddings"),
        "ContextSet": ("sample", "--contexts"), "Starter": ("sample", "--starter"), "train-ldm": ("sample", "--ldm"),
        "train-autoencoder": ("sample", "--autoencoder"), "train-fr": ("eval", "--weights"),
        "train-embedder": ("embed", "--weights"),
    }
    if kind == "Report":
        return after_page(folder)
    return line([*options[made_by], folder]) if made_by in options else None


def line(words: Sequence[Any], notes: Sequence[str] = ()) -> str:
    """Return the line of a command that follows, with what a reader has to know about it in front."""
    about = f" ({'; '.join(notes)})" if notes else ""
    return f"next{about}: {shlex.join(['facesyn', *map(str, words)])}"


def show(text: str | None, as_json: bool = False) -> None:
    """Write a line to stderr, unless the result is for a program."""
    if text is not None and not as_json and is_first_process():
        log.info(text)


def _following(done: _Finished) -> str | None:
    """Return the next command that has not run: first those of the recipe, then those of `_NEXT`; None at the end."""
    later: list[str] = []
    if done.stage not in _ASIDE:
        sections = _sections(done)
        later += [name for name in STAGES[STAGES.index(done.stage) + 1 :] if name in sections and name not in _ASIDE]
    while (name := _NEXT.get(later[-1] if later else done.stage)) is not None:
        later.append(name)
    if not done.is_in_work:
        return later[0] if later else None
    return next((name for name in later if not (done.work.folder(OUTPUTS[name]) / HEADER).is_file()), None)


def _sections(done: _Finished) -> dict[str, dict[str, Any]]:
    return load_recipe(str(done.given["config"])) if "config" in done.given else {}


def _add_inputs(words: list[Any], notes: list[str], done: _Finished) -> None:
    """Add the inputs that the command needs and nothing gives: of a starter where it has them, else in capitals."""
    command = words[0]
    section = _sections(done).get(command, {})
    is_bare = "work" not in done.given and "config" not in done.given
    for use in _INPUTS.get(command, ()):
        is_known = use.words[0] in words or any(section.get(key) for key in use.settings)
        is_in_tree = "tree" in done.given and command != "report"
        if is_known or is_in_tree or (use.folder and done.work.folder(use.folder).exists()):
            continue
        starter = done.given.get("starter") or (PACKAGED if is_packaged() else None)
        if not use.part_of_starter or starter is None:
            words += use.words
            notes += [use.about] if use.about else []
        elif not (is_bare and starter == PACKAGED):  # a bare command takes the packaged one by itself
            words += ["--starter", starter]
