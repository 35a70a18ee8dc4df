"""facesyn from Python: one function per stage, for notebooks and scripts.

    import facesyn_cli.api as facesyn

    made = facesyn.sample(ids=10, per_id=10, work="runs/a", scheduler={"name": "ddim", "steps": 4})
    made.contact_sheet()                                                     # a PIL image
    facesyn.embed(work="runs/a", images="faces/", weights="backbone.pth").vectors

The keywords of a function are the settings of its command, as `facesyn config --stage sample` lists them; a plugin is
given by its name or as a mapping with its settings. Beside them,

    work      folder of the run, by default `work`
    recipe    settings below the given ones: a recipe by path, or by the name of a built-in one
    starter   where networks and contexts are taken from that are not given: a starter's folder, or "packaged"

A function does what its command does, in the same folders: a finished stage returns at once, an unfinished one is
resumed, and other settings for the same folder are refused. An error that the caller can correct is a `UserError`.
Messages go to the logger `facesyn`, and to stderr unless that logger has a handler. The first Ctrl-C ends a stage
after its step and saves its work (`Stopped`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from facesyn_cli import console, signals
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.packaged_networks import packaged_path
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.ablation_rows import merge_settings
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.config.recipe import STAGES, check_stage, load_recipe
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.pipelines.inputs import configure
from facesyn_cli.pipelines.stage import Request, plan_stage, run_stage
from facesyn_cli.results import Benchmarks, Contexts, Embeddings, Images, Network, Records, Report, Result

__all__ = [
    "Benchmarks", "Contexts", "Embeddings", "Images", "Network", "Plan", "Records", "Report", "Result", "Stopped",
    "UserError", "align", "augment", "embed", "evaluate", "gen_contexts", "open", "pack", "plan", "pull", "push",
    "report", "run", "sample", "select", "study", "train_autoencoder", "train_embedder", "train_fr",
    "train_identity", "train_ldm",
]

PathLike = str | os.PathLike[str]
R = TypeVar("R", bound=Result)
T = TypeVar("T")

_RESULTS: dict[str, type[Result]] = {
    "align": Images, "embed": Embeddings, "train-embedder": Network, "train-autoencoder": Network,
    "train-identity": Network,
    "train-ldm": Network, "gen-contexts": Contexts, "sample": Images, "select": Images, "augment": Images,
    "pack": Records, "train-fr": Network, "eval": Benchmarks, "report": Report, "study": Result,
}
_KINDS: dict[str, type[Result]] = {  # by kind of the header
    "ImageSet": Images, "EmbeddingSet": Embeddings, "ContextSet": Contexts, "RecordSet": Records, "Weights": Network,
    "BenchmarkTable": Benchmarks, "Report": Report,
}


def align(work: PathLike = "work", **settings: Any) -> Images:
    """Cut aligned face crops out of photos: `facesyn align`, settings of `AlignConfig`."""
    return _run("align", Images, work, settings)


def embed(work: PathLike = "work", **settings: Any) -> Embeddings:
    """Embed a folder or zip of faces: `facesyn embed`, settings of `EmbedConfig` (`images`, `weights`, ...)."""
    return _run("embed", Embeddings, work, settings)


def train_embedder(work: PathLike = "work", **settings: Any) -> Network:
    """Train a small recognizer on the embeddings of a larger one: `facesyn train-embedder`, `TrainEmbedderConfig`."""
    return _run("train-embedder", Network, work, settings)


def train_autoencoder(work: PathLike = "work", **settings: Any) -> Network:
    """Train an autoencoder on faces: `facesyn train-autoencoder`, settings of `TrainAutoencoderConfig`."""
    return _run("train-autoencoder", Network, work, settings)


def train_identity(work: PathLike = "work", **settings: Any) -> Network:
    """Train a recognizer of latents for the identity loss of `train_ldm`: `facesyn train-identity`."""
    return _run("train-identity", Network, work, settings)


def train_ldm(work: PathLike = "work", **settings: Any) -> Network:
    """Train a latent diffusion model on faces and embeddings: `facesyn train-ldm`, settings of `TrainLdmConfig`."""
    return _run("train-ldm", Network, work, settings)


def gen_contexts(work: PathLike = "work", **settings: Any) -> Contexts:
    """Make contexts of new identities: `facesyn gen-contexts`, settings of `GenContextsConfig` (`source`, `count`)."""
    return _run("gen-contexts", Contexts, work, settings)


def sample(work: PathLike = "work", **settings: Any) -> Images:
    """Sample images of new identities: `facesyn sample`, settings of `SampleConfig` (`ids`, `per_id`, `scheduler`)."""
    return _run("sample", Images, work, settings)


def select(work: PathLike = "work", **settings: Any) -> Images:
    """Drop or merge identities that are one person to a recognizer: `facesyn select`, settings of `SelectConfig`."""
    return _run("select", Images, work, settings)


def augment(work: PathLike = "work", **settings: Any) -> Images:
    """Add images to every identity of a set: `facesyn augment`, settings of `AugmentConfig`."""
    return _run("augment", Images, work, settings)


def pack(work: PathLike = "work", **settings: Any) -> Records:
    """Pack images into a few large files with integer labels: `facesyn pack`, settings of `PackConfig`."""
    return _run("pack", Records, work, settings)


def train_fr(work: PathLike = "work", **settings: Any) -> Network:
    """Train a recognizer: `facesyn train-fr`, settings of `TrainFrConfig` (`inputs`, `backbone`, `head`, `epochs`)."""
    return _run("train-fr", Network, work, settings)


def evaluate(work: PathLike = "work", **settings: Any) -> Benchmarks:
    """Verify a recognizer on benchmarks: `facesyn eval`, settings of `EvalConfig` (`weights`, `benchmarks`, `data`)."""
    return _run("eval", Benchmarks, work, settings)


def report(work: PathLike = "work", **settings: Any) -> Report:
    """Measure quality, diversity and privacy of image sets: `facesyn report`, settings of `ReportConfig`."""
    return _run("report", Report, work, settings)


def study(work: PathLike = "work", **settings: Any) -> Result:
    """Compare schedulers, steps and identity methods on one LDM: `facesyn study`, settings of `StudyConfig`."""
    return _run("study", Result, work, settings)


def plan(stage: str, work: PathLike = "work", **settings: Any) -> Plan:
    """Return what a stage would do, after all its checks, without doing it: `facesyn STAGE --dry-run`.

    Args:
        stage: Name of the command, for example `train-fr`.
        work: Folder of the run.
        settings: As of the function of that stage.

    Raises:
        UserError: A setting or an input is wrong.
    """
    name = check_stage(stage.replace("_", "-"))
    return plan_stage(name, _config(name, Work(Path(work)), settings), Work(Path(work)))


def run(recipe: str, work: PathLike = "work", **settings: dict[str, Any]) -> dict[str, Result]:
    """Run all stages of a recipe in order, skipping finished ones: `facesyn run`.

    Args:
        recipe: Recipe by path or by the name of a built-in one.
        work: Folder of the run.
        settings: Settings by stage that win over the recipe's: `sample={"ids": 10}, train_fr={"epochs": 2}`.

    Returns:
        Result by name of the stage.

    Raises:
        UserError: A setting or an input of a stage is wrong; earlier stages keep their finished work.
    """
    sections = load_recipe(recipe)
    for name, section in settings.items():
        stage = check_stage(name.replace("_", "-"))
        sections[stage] = merge_settings(sections.get(stage, {}), section)
    configs = {name: Request(name, sections[name]).resolve() for name in STAGES if name in sections}
    return {name: _run_config(name, cfg, _RESULTS[name], Work(Path(work))) for name, cfg in configs.items()}


def open(path: PathLike) -> Result:  # noqa: A001 (`facesyn.open`, as `PIL.Image.open`)
    """Open what a stage wrote, or a published file or folder, by its content.

    Args:
        path: A folder of a run, images, embeddings with names, contexts, records, or weights; or the name of a packaged
            network such as `taesd3` or `starter-embedder`.

    Returns:
        The result class of its kind; a plain `Result` for a kind without one.

    Raises:
        UserError: It does not exist, is unfinished, or is of no known kind.
    """
    path = packaged_path(str(path)) or Path(path)
    if not path.exists():
        raise missing_input(path, "a folder of a run, images, embeddings or weights")
    header = read_header(path) if path.is_dir() else None
    if header is not None:
        return _KINDS.get(header.kind, Result)(path)
    return _foreign(path)


def push(
    folder: PathLike, repo: str, private: bool = True, revision: str | None = None, message: str | None = None,
    license: str | None = None, allow_real: bool = False,
) -> dict[str, Any]:
    """Publish a finished folder on the Hugging Face Hub: `facesyn push`.

    Args:
        folder: A finished folder of a stage, or a starter.
        repo: `owner/name`; made if there is none.
        private: A new repository is for its owner only; an existing public one is refused.
        revision: Branch; None: main.
        message: Message of the commit.
        license: Name of the hub for the license, for example `cc-by-nc-4.0`; None: that of the folder's card.
        allow_real: Also push photos of real people, or faces of unknown origin.

    Returns:
        What `facesyn push --json` prints: `state`, `url`, `commit`, `files`, `bytes`, `left_out`, ...

    Raises:
        UserError: The folder is unfinished, damaged or shows real people; no token, no access, no connection.
    """
    from facesyn_cli.stages.push import push as push_folder

    return _handled(lambda: push_folder(Path(folder), repo, private, revision, message, license, allow_real))


def pull(name: str, out: PathLike | None = None, revision: str | None = None) -> Result:
    """Download a pushed folder, or weights, and verify it: `facesyn pull`.

    Args:
        name: Repository `owner/name` or `datasets/owner/name`, a name in `facesyn models list`, or an https address.
        out: Folder to write; None: the repository's name in the current folder, for weights of others `weights`.
        revision: Branch, tag or commit; None: main.

    Returns:
        The result class of its kind, as of `open`.

    Raises:
        UserError: No such repository, no access, no connection, a damaged file, or `out` has other content.
    """
    from facesyn_cli.stages.pull import pull as pull_folder

    found = _handled(lambda: pull_folder(name, None if out is None else Path(out), revision))
    result = open(found["folder"] if "folder" in found else found["file"])
    result.summary = found
    return result


def _foreign(path: Path) -> Result:
    """Open what facesyn did not write: the first kind whose reader accepts it."""
    from facesyn_cli.artifacts.context_set import ContextSet
    from facesyn_cli.artifacts.embedding_set import EmbeddingSet, is_published
    from facesyn_cli.artifacts.record_set import RecordSet
    from facesyn_cli.models.inspection import inspect

    if RecordSet.recognizes(path):
        return Records(path)
    if _reads(lambda: inspect(path)["kind"] != "unknown"):
        return Network(path)
    if is_published(path) and _reads(lambda: EmbeddingSet.open(path)):
        return Embeddings(path)
    if is_published(path) and _reads(lambda: ContextSet.open(path)):  # rows without names, as published samplers read
        return Contexts(path)
    found = Images(path)
    len(found)  # the reader of images says what was expected
    return found


def _reads(read: Callable[[], Any]) -> bool:
    try:
        return bool(read())
    except UserError:
        return False


def _run(name: str, result: type[R], work: PathLike, settings: dict[str, Any]) -> R:
    return _run_config(name, _config(name, Work(Path(work)), settings), result, Work(Path(work)))


def _config(name: str, work: Work, settings: dict[str, Any]) -> StageConfig:
    """Resolve the settings of one stage; `recipe` and `starter` among them say where others come from."""
    settings = dict(settings)
    recipe, starter = settings.pop("recipe", None), settings.pop("starter", None)
    section = load_recipe(recipe).get(name, {}) if recipe is not None else {}
    request = Request(name, merge_settings(section, settings))
    return configure(request, work, starter=None if starter is None else Path(starter))


def _run_config(name: str, cfg: StageConfig, result: type[R], work: Work) -> R:
    outcome = _handled(lambda: run_stage(name, cfg, work))
    return result(outcome.folder, outcome.summary, outcome.text)


def _handled(call: Callable[[], T]) -> T:
    """Return what a call returns; messages go to stderr unless the caller handles them, and Ctrl-C ends it orderly."""
    if not console.log.handlers:
        console.configure()
    with signals.handled():
        return call()
