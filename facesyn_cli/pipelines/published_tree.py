"""The directory layout that ADMIS publishes: where each item is, and which stage reads it as which setting.

    dataset/CASIA/                 images/, elasticface_embeddings/, CASIA_namelist.txt, TFR_training_data/
    dataset/context_database/      images/, elasticface_embeddings/
    generative_model_training/     ckpt/{autoencoder,ADMIS_FRCSyn_ckpt,elasticface_fr}, samples/
    recognition_model_training/    ckpt/

Three tables: `ITEMS` (what and where), `INPUTS` (which setting of which stage) and `PRODUCTS` (the item that a stage
makes). Nothing in the tree is ever moved, renamed or written.
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
    """True when the published oversampling ran: 50.png to 54.png of an identity are copies of one file."""
    for folder in sorted(samples.iterdir())[:3]:
        copies = [folder / f"{k}.png" for k in range(50, 55)]
        if not all(path.is_file() for path in copies) or len({path.read_bytes() for path in copies}) != 1:
            return False
    return True


@dataclass(frozen=True)
class TreeItem:
    """An item that a published tree may hold.

    Args:
        title: Name in messages.
        places: Patterns below the tree, best first. An empty folder does not match.
        needs: Names that must exist in it (a folder) or beside it (a file); `{stem}` is the stem of the file.
        is_one: Several matches are an error; otherwise the last in natural order is used (the latest step or epoch).
        unlike: Text that its name must not contain.
        takes_folder: The stage gets the folder of the file.
        instead: Key of `ITEMS` to suggest when this one is missing.
        test: Function that returns False for a path that is not the item.
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
class StageInput:
    """One setting that a stage may take from the tree.

    Args:
        key: The setting.
        item: Key of `ITEMS`.
        work: Folders of the run with a higher priority, if one of them exists.
        beside: Setting that this one belongs to: taken whenever that one comes from the tree, and, without `work`, only
            then.
        unless: Setting that replaces this one when it is given.
        only: Plugins that read it; empty: always read.
    """

    key: str
    item: str
    work: tuple[str, ...] = ()
    beside: str = ""
    unless: str = ""
    only: tuple[str, ...] = ()


_SAMPLES = (f"{_GENERATION}/samples",)
ITEMS: dict[str, TreeItem] = {
    "faces": TreeItem("faces of real people", ("dataset/CASIA/images",)),
    "face list": TreeItem("list of real faces with labels", ("dataset/CASIA/CASIA_namelist.txt",)),
    "face embeddings": TreeItem(
        "embeddings of the real faces", ("dataset/CASIA/elasticface_embeddings/elastic_embed.npy",),
        needs=("image_names.pkl",),
    ),
    "recognizer": TreeItem(
        "the recognizer behind the embeddings",
        (f"{_GENERATION}/ckpt/elasticface_fr/295672backbone.pth", f"{_GENERATION}/ckpt/elasticface_fr/*.pth"),
        is_one=True,
    ),
    "autoencoder": TreeItem(
        "the autoencoder", (f"{_GENERATION}/ckpt/autoencoder",),
        needs=("first_stage_encoder_state_dict.pt", "first_stage_decoder_state_dict.pt"),
    ),
    "decoder": TreeItem(
        "the decoder of the autoencoder", (f"{_GENERATION}/ckpt/autoencoder/first_stage_decoder_state_dict.pt",)
    ),
    "ldm": TreeItem("the LDM", (f"{_GENERATION}/ckpt/ADMIS_FRCSyn_ckpt/ema_averaged_model*.ckpt",)),
    "context faces": TreeItem("faces of the contexts", ("dataset/context_database/images",)),
    "contexts": TreeItem(
        "contexts",
        (
            "dataset/context_database/elasticface_embeddings/elasticface_embeddings.npy",
            "dataset/context_database/elasticface_embeddings.npy",  # written here by the published script
        ),
    ),
    "samples": TreeItem("samples", _SAMPLES),
    "augmented": TreeItem("samples with the context faces among them", _SAMPLES, test=_holds_context_faces),
    "records": TreeItem(
        "training records",
        tuple(f"{place}/{depth}*.index" for place in _RECORD_PLACES for depth in ("", "*/", "*/*/")),
        needs=("{stem}-00000.tfrecord",), is_one=True, unlike="CASIA", instead="face list",
    ),
    "trained recognizer": TreeItem(
        "the trained recognizer", (f"{_RECOGNITION}/ckpt/Backbone_Epoch_*_checkpoint.pth",)
    ),
    "benchmarks": TreeItem(
        "benchmark files",
        ("dataset/lfw.bin", "dataset/*/lfw.bin", f"{_RECOGNITION}/*/lfw.bin", f"{_RECOGNITION}/test/*/lfw.bin"),
        is_one=True, takes_folder=True,
    ),
}

_FACES = StageInput("images", "faces", ("images",))
_EMBEDDING = ("images", "two-stage", "diffusers", "guided-diffusion", "quality")
_SAMPLING = (
    StageInput("ldm", "ldm", ("ldm",)),
    StageInput("autoencoder", "decoder", beside="ldm"),
    StageInput("contexts", "contexts", ("contexts",)),
)
INPUTS: dict[str, tuple[StageInput, ...]] = {
    "embed": (_FACES, StageInput("weights", "recognizer")),
    "train-embedder": (_FACES, StageInput("embeddings", "face embeddings", ("embeddings",))),
    "train-autoencoder": (_FACES,),
    "train-ldm": (
        _FACES,
        StageInput("embeddings", "face embeddings", ("embeddings",)),
        StageInput("autoencoder", "autoencoder", ("autoencoder",)),
    ),
    "gen-contexts": (
        StageInput("images", "context faces", only=("images",)),
        StageInput("embeddings", "contexts", only=("embeddings",)),
        StageInput("images", "context faces", beside="embeddings"),
        StageInput("ldm", "ldm", ("ldm",), only=("two-stage", "quality")),
        StageInput("autoencoder", "decoder", beside="ldm"),
        StageInput("weights", "recognizer", ("embeddings",), only=_EMBEDDING),
        StageInput("known", "face embeddings", ("embeddings",), only=("novel", "pca")),
    ),
    "sample": _SAMPLING,
    "augment": (
        StageInput("images", "samples", ("samples",)),
        StageInput("faces", "context faces", ("contexts",), beside="images", unless="contexts", only=("oversample",)),
    ),
    "pack": (
        StageInput("inputs", "augmented", ("augmented", "samples")),
        StageInput("inputs", "samples", ("augmented", "samples")),
    ),
    "train-fr": (StageInput("inputs", "records", ("records",)),),
    "eval": (StageInput("weights", "trained recognizer", ("fr",)), StageInput("data", "benchmarks", unless="pairs")),
    "select": (StageInput("images", "samples", ("samples",)),),
    "study": _SAMPLING,
    "report": (
        StageInput("sets", "samples", ("samples",)),
        StageInput("reference", "faces", ("images",), beside="sets"),
    ),
}
PRODUCTS = {
    "embed": "face embeddings", "train-ldm": "ldm", "gen-contexts": "contexts", "sample": "samples",
    "augment": "augmented", "pack": "records", "train-fr": "trained recognizer",
}
SOURCES = {"embeddings": "contexts", "images": "context faces"}  # default sources of gen-contexts, best first
KNOWN_BINS = ("lfw", "cfp-fp", "cplfw", "agedb-30", "calfw")  # benchmarks of the published evaluation
EMBEDDER = "elasticface"  # of the published LDM and its contexts


@dataclass(frozen=True)
class Found:
    """The result of a search for an item: its path, or why there is none."""

    item: TreeItem
    path: Path | None
    problem: str = ""

    def describe(self) -> str:
        """Return one line: the path and what it is, or what is missing."""
        if self.path is None:
            return f"missing: {self.item.title}, {self.problem}"
        count = f", {sum(1 for _ in self.path.iterdir())} entries" if self.path.is_dir() else ""
        return f"{self.path}: {self.item.title}{count}"


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
            UserError: It is no directory, or has no known item.
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"--tree {root} is not a directory; one laid out as ADMIS describes was expected")
        tree = PublishedTree(root)
        if not tree.is_recognized():
            near = root.absolute().parents[:3]
            above = next((folder for folder in near if PublishedTree(folder).is_recognized()), None)
            hint = f"; did you mean {above}?" if above else ""
            known = ", ".join(item.places[0] for key, item in ITEMS.items() if key in ("faces", "contexts", "ldm"))
            raise UserError(f"--tree {root} holds nothing of the published layout ({known}, ...){hint}")
        return tree

    def is_recognized(self) -> bool:
        """True when at least one item is found."""
        return any(self.find(key).path is not None for key in ITEMS)

    def find(self, key: str) -> Found:
        """Search for an item; the result is cached."""
        if key not in self._found:
            self._found[key] = self._look(ITEMS[key])
        return self._found[key]

    def benchmarks(self) -> list[str]:
        """Return the names of the benchmarks whose `.bin` files exist."""
        first = self.find("benchmarks").path
        return [name for name in KNOWN_BINS if first and (first / f"{name.replace('-', '_')}.bin").is_file()]

    def _look(self, item: TreeItem) -> Found:
        problem = f"{item.places[0]} is not there"
        for place in item.places:
            matches = []
            for path in sorted(self.root.glob(place), key=lambda p: natural_key(p.as_posix())):
                why_not = _why_not(path, item)
                if why_not:
                    problem = f"{path.relative_to(self.root)} {why_not}"
                else:
                    matches.append(path)
            if matches and item.is_one and len(matches) > 1:
                names = ", ".join(str(path.relative_to(self.root)) for path in matches[:5])
                return Found(item, None, f"there are several ({names}); name one of them")
            if matches:
                return Found(item, matches[-1].parent if item.takes_folder else matches[-1])
        if item.instead and (other := self.find(item.instead)).path:
            problem += f"; {other.path} ({other.item.title}) could be given"
        return Found(item, None, problem)


def _why_not(path: Path, item: TreeItem) -> str:
    """Return why a path is not the item; empty when it is."""
    try:
        if item.unlike and item.unlike in path.name:
            return f"is about {item.unlike}"
        if path.is_dir() and next(path.iterdir(), None) is None:
            return "is empty"
        folder = path if path.is_dir() else path.parent
        lacking = [name.format(stem=path.stem) for name in item.needs]
        lacking = [name for name in lacking if not (folder / name).exists()]
        if lacking:
            return f"has no {' and '.join(lacking)} {'in' if path.is_dir() else 'beside'} it"
        if item.test is not None and not item.test(path):
            return f"are not {item.title}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""
