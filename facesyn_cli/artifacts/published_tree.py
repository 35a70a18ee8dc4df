"""The directory that ADMIS tells its users to lay out: what lies where, and which stage reads it as which setting.

    dataset/CASIA/                 images/, elasticface_embeddings/, CASIA_namelist.txt, TFR_training_data/
    dataset/context_database/      images/, elasticface_embeddings/
    generative_model_training/     ckpt/{autoencoder,ADMIS_FRCSyn_ckpt,elasticface_fr}, samples/
    recognition_model_training/    ckpt/

Three tables say all of it: `THINGS` (what and where), `USES` (which setting of which stage) and `PRODUCTS` (what a
stage would make). Nothing in the tree is ever moved, renamed or written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from facesyn_cli.artifacts.image_set import natural_key
from facesyn_cli.errors import UserError

_GENERATION, _RECOGNITION = "generative_model_training", "recognition_model_training"
_RECORD_PLACES = ("dataset/CASIA/TFR_training_data", "dataset", _RECOGNITION)


def _holds_context_faces(samples: Path) -> bool:
    """True when the published oversampling was here: 50.png to 54.png of an identity are copies of one file."""
    for folder in sorted(samples.iterdir())[:3]:
        copies = [folder / f"{k}.png" for k in range(50, 55)]
        if not all(path.is_file() for path in copies) or len({path.read_bytes() for path in copies}) != 1:
            return False
    return True


@dataclass(frozen=True)
class Thing:
    """Something a published tree may hold.

    Args:
        title: What it is, in words.
        places: Patterns below the tree, best first. A folder counts only when something is in it.
        needs: Names that must lie in it (a folder) or beside it (a file); `{stem}` is the file's own.
        is_one: Of several matches none is taken; otherwise the last in natural order (the latest step or epoch).
        unlike: Word that its name must not contain.
        takes_folder: The folder of the file is what a stage is given.
        instead: Key of `THINGS`: what could be given in its place, to be said when this is missing.
        test: What else must hold.
    """

    title: str
    places: tuple[str, ...]
    needs: tuple[str, ...] = ()
    is_one: bool = False
    unlike: str = ""
    takes_folder: bool = False
    instead: str = ""
    test: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class Use:
    """One setting that a stage may take from the tree.

    Args:
        key: The setting.
        thing: Key of `THINGS`.
        work: Folders of the run that come first, where one of them is there.
        beside: Setting that this one belongs to: taken whenever that one is taken from the tree, and, without
            `work`, only then.
        unless: Setting that makes this one needless when it is given.
        only: Plugins that read it; empty: always read.
    """

    key: str
    thing: str
    work: tuple[str, ...] = ()
    beside: str = ""
    unless: str = ""
    only: tuple[str, ...] = ()


_SAMPLES = (f"{_GENERATION}/samples",)
THINGS: dict[str, Thing] = {
    "faces": Thing("faces of real people", ("dataset/CASIA/images",)),
    "face list": Thing("list of real faces with labels", ("dataset/CASIA/CASIA_namelist.txt",)),
    "face embeddings": Thing(
        "embeddings of the real faces", ("dataset/CASIA/elasticface_embeddings/elastic_embed.npy",),
        needs=("image_names.pkl",),
    ),
    "recognizer": Thing(
        "the recognizer behind the embeddings",
        (f"{_GENERATION}/ckpt/elasticface_fr/295672backbone.pth", f"{_GENERATION}/ckpt/elasticface_fr/*.pth"),
        is_one=True,
    ),
    "autoencoder": Thing(
        "the autoencoder", (f"{_GENERATION}/ckpt/autoencoder",),
        needs=("first_stage_encoder_state_dict.pt", "first_stage_decoder_state_dict.pt"),
    ),
    "decoder": Thing(
        "the decoder of the autoencoder", (f"{_GENERATION}/ckpt/autoencoder/first_stage_decoder_state_dict.pt",)
    ),
    "ldm": Thing("the LDM", (f"{_GENERATION}/ckpt/ADMIS_FRCSyn_ckpt/ema_averaged_model*.ckpt",)),
    "context faces": Thing("faces of the contexts", ("dataset/context_database/images",)),
    "contexts": Thing(
        "contexts",
        (
            "dataset/context_database/elasticface_embeddings/elasticface_embeddings.npy",
            "dataset/context_database/elasticface_embeddings.npy",  # where the published script saves them
        ),
    ),
    "samples": Thing("samples", _SAMPLES),
    "augmented": Thing("samples with the context faces among them", _SAMPLES, test=_holds_context_faces),
    "records": Thing(
        "training records",
        tuple(f"{place}/{depth}*.index" for place in _RECORD_PLACES for depth in ("", "*/", "*/*/")),
        needs=("{stem}-00000.tfrecord",), is_one=True, unlike="CASIA", instead="face list",
    ),
    "trained recognizer": Thing(
        "the trained recognizer", (f"{_RECOGNITION}/ckpt/Backbone_Epoch_*_checkpoint.pth",)
    ),
    "benchmarks": Thing(
        "benchmark files",
        ("dataset/lfw.bin", "dataset/*/lfw.bin", f"{_RECOGNITION}/*/lfw.bin", f"{_RECOGNITION}/test/*/lfw.bin"),
        is_one=True, takes_folder=True,
    ),
}

_FACES = Use("images", "faces", ("images",))
_EMBEDDING = ("images", "two-stage", "diffusers", "guided-diffusion", "quality")
_SAMPLING = (
    Use("ldm", "ldm", ("ldm",)),
    Use("autoencoder", "decoder", beside="ldm"),
    Use("contexts", "contexts", ("contexts",)),
)
USES: dict[str, tuple[Use, ...]] = {
    "embed": (_FACES, Use("weights", "recognizer")),
    "train-embedder": (_FACES, Use("embeddings", "face embeddings", ("embeddings",))),
    "train-autoencoder": (_FACES,),
    "train-ldm": (
        _FACES,
        Use("embeddings", "face embeddings", ("embeddings",)),
        Use("autoencoder", "autoencoder", ("autoencoder",)),
    ),
    "gen-contexts": (
        Use("images", "context faces", only=("images",)),
        Use("embeddings", "contexts", only=("embeddings",)),
        Use("images", "context faces", beside="embeddings"),
        Use("ldm", "ldm", ("ldm",), only=("two-stage", "quality")),
        Use("autoencoder", "decoder", beside="ldm"),
        Use("weights", "recognizer", ("embeddings",), only=_EMBEDDING),
        Use("known", "face embeddings", ("embeddings",), only=("novel", "pca")),
    ),
    "sample": _SAMPLING,
    "augment": (
        Use("images", "samples", ("samples",)),
        Use("faces", "context faces", ("contexts",), beside="images", unless="contexts", only=("oversample",)),
    ),
    "pack": (Use("inputs", "augmented", ("augmented", "samples")), Use("inputs", "samples", ("augmented", "samples"))),
    "train-fr": (Use("inputs", "records", ("records",)),),
    "eval": (Use("weights", "trained recognizer", ("fr",)), Use("data", "benchmarks", unless="pairs")),
    "select": (Use("images", "samples", ("samples",)),),
    "study": _SAMPLING,
    "report": (Use("sets", "samples", ("samples",)), Use("reference", "faces", ("images",), beside="sets")),
}
PRODUCTS = {
    "embed": "face embeddings", "train-ldm": "ldm", "gen-contexts": "contexts", "sample": "samples",
    "augment": "augmented", "pack": "records", "train-fr": "trained recognizer",
}
SOURCES = {"embeddings": "contexts", "images": "context faces"}  # of gen-contexts where none is named, best first
KNOWN_BINS = ("lfw", "cfp-fp", "cplfw", "agedb-30", "calfw")  # benchmarks of the published evaluation
EMBEDDER = "elasticface"  # behind the published LDM and its contexts


@dataclass(frozen=True)
class Found:
    """What became of looking for a thing.

    Args:
        thing: What was looked for.
        path: Where it lies, or None.
        problem: Why there is no path.
    """

    thing: Thing
    path: Path | None
    problem: str = ""

    def describe(self) -> str:
        """Return one line: the path and what it is, or what is missing."""
        if self.path is None:
            return f"missing: {self.thing.title}, {self.problem}"
        count = f", {sum(1 for _ in self.path.iterdir())} entries" if self.path.is_dir() else ""
        return f"{self.path}: {self.thing.title}{count}"


class PublishedTree:
    """A directory laid out as published; open with `PublishedTree.open`.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[str, Found] = {}

    @staticmethod
    def open(root: Path) -> PublishedTree:
        """Open a tree.

        Raises:
            UserError: It is no directory, or nothing in it is recognized.
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"--tree {root} is not a directory; one laid out as ADMIS describes was expected")
        tree = PublishedTree(root)
        if not tree.is_recognized():
            near = root.absolute().parents[:3]
            above = next((folder for folder in near if PublishedTree(folder).is_recognized()), None)
            hint = f"; did you mean {above}?" if above else ""
            known = ", ".join(thing.places[0] for key, thing in THINGS.items() if key in ("faces", "contexts", "ldm"))
            raise UserError(f"--tree {root} holds nothing of the published layout ({known}, ...){hint}")
        return tree

    def is_recognized(self) -> bool:
        """True when at least one thing was found."""
        return any(self.find(key).path is not None for key in THINGS)

    def find(self, key: str) -> Found:
        """Look for a thing; the answer stays the same for the life of this object."""
        if key not in self._found:
            self._found[key] = self._look(THINGS[key])
        return self._found[key]

    def benchmarks(self) -> list[str]:
        """Return the names of the benchmarks whose `.bin` lie beside the first one, as facesyn calls them."""
        first = self.find("benchmarks").path
        return [name for name in KNOWN_BINS if first and (first / f"{name.replace('-', '_')}.bin").is_file()]

    def _look(self, thing: Thing) -> Found:
        problem = f"{thing.places[0]} is not there"
        for place in thing.places:
            matches = []
            for path in sorted(self.root.glob(place), key=lambda p: natural_key(p.as_posix())):
                why_not = _why_not(path, thing)
                if why_not:
                    problem = f"{path.relative_to(self.root)} {why_not}"
                else:
                    matches.append(path)
            if matches and thing.is_one and len(matches) > 1:
                names = ", ".join(str(path.relative_to(self.root)) for path in matches[:5])
                return Found(thing, None, f"there are several ({names}); name one of them")
            if matches:
                return Found(thing, matches[-1].parent if thing.takes_folder else matches[-1])
        if thing.instead and (other := self.find(thing.instead)).path:
            problem += f"; {other.path} ({other.thing.title}) could be given"
        return Found(thing, None, problem)


def _why_not(path: Path, thing: Thing) -> str:
    """Return what keeps a path from being the thing, or nothing."""
    try:
        if thing.unlike and thing.unlike in path.name:
            return f"is about {thing.unlike}"
        if path.is_dir() and next(path.iterdir(), None) is None:
            return "is empty"
        folder = path if path.is_dir() else path.parent
        lacking = [name.format(stem=path.stem) for name in thing.needs]
        lacking = [name for name in lacking if not (folder / name).exists()]
        if lacking:
            return f"has no {' and '.join(lacking)} {'in' if path.is_dir() else 'beside'} it"
        if thing.test is not None and not thing.test(path):
            return f"are not {thing.title}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""
