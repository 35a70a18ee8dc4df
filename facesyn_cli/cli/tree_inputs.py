"""`--tree`: what stages take from a published tree, below every recipe, flag and folder of the run.

Priority: defaults < tree < folders of `--work` < recipe < `key=value` < flag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facesyn_cli.artifacts.header import BEGUN, HEADER, read_header
from facesyn_cli.artifacts.published_tree import (
    EMBEDDER,
    KNOWN_BINS,
    PRODUCTS,
    SOURCES,
    THINGS,
    USES,
    Found,
    PublishedTree,
    Use,
)
from facesyn_cli.artifacts.work import FOLDERS, Work
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.settings import PluginConfig

if TYPE_CHECKING:
    from facesyn_cli.config.fields import (
    StageConfig,
)

OUTPUTS = {
    "align": "images", "embed": "embeddings", "train-embedder": "embedder", "train-autoencoder": "autoencoder",
    "train-ldm": "ldm", "gen-contexts": "contexts", "sample": "samples", "augment": "augmented", "pack": "records",
    "train-fr": "fr", "eval": "table", "report": "report",
}  # folder of the run that each stage writes; the others write elsewhere, for people

_LISTS = ("inputs", "sets")  # settings that hold several paths


@dataclass(frozen=True)
class TreeInputs:
    """What one stage takes from a tree.

    Args:
        settings: To be put below nothing: the user has stated none of these keys.
        looked_for: Setting -> what was found or is missing.
        chosen: Settings that follow from what was found, for messages.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    looked_for: dict[str, Found] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)


def stated_keys(section: dict[str, Any], overrides: Iterable[str], flags: dict[str, Any]) -> set[str]:
    """Return the settings that recipe, `key=value` words or flags speak about; these are never taken from a tree."""
    words = {word.partition("=")[0].partition(".")[0] for word in overrides}
    return {*section, *words, *(key.partition(".")[0] for key, value in flags.items() if value is not None)}


def tree_inputs(
    tree: PublishedTree, stage: str, cfg: StageConfig, stated: set[str], work: Work, made: Collection[str] = ()
) -> TreeInputs:
    """Find what a stage can take from a tree.

    Args:
        tree: The tree.
        stage: Name of the stage.
        cfg: Its config without the tree.
        stated: Settings the user has stated.
        work: The work folder; its folders come before the tree.
        made: Its folders that are not there yet, but will be.

    Raises:
        UserError: No tree holds anything for this stage.
    """
    if stage not in USES:
        raise UserError(f"{stage} takes nothing from a published tree; leave --tree out")
    found = TreeInputs()
    made = {*made, *(name for name in FOLDERS if work.folder(name).exists())}
    if stage == "augment" and _has_other_contexts(tree, work):
        made.add("contexts")
    plugins = _plugins(cfg)
    if stage == "gen-contexts" and "source" not in stated:
        source = next((name for name, thing in SOURCES.items() if tree.find(thing).path), None)
        if source is not None:
            found.settings["source"], found.chosen["source"] = {"name": source}, source
            plugins = {*_plugins(cfg, leave_out="source"), source}
    for use in USES[stage]:
        if use.key in stated or use.key in found.settings or use.unless in stated:
            continue
        if (use.only and not plugins.intersection(use.only)) or not _comes_in(use, found.settings, made):
            continue
        what = found.looked_for[use.key] = tree.find(use.thing)
        if what.path is not None:
            found.settings[use.key] = [str(what.path)] if use.key in _LISTS else str(what.path)
    if stage in ("sample", "study") and {"ldm", "contexts"} <= set(found.settings) and "assume_embedder" not in stated:
        found.settings["assume_embedder"] = found.chosen["assume_embedder"] = EMBEDDER
    if stage == "eval" and "data" in found.settings and not stated & {"benchmarks", "pairs"}:
        found.settings["benchmarks"] = tree.benchmarks()
        found.chosen["benchmarks"] = ", ".join(tree.benchmarks())
    return found


def keep_benchmarks(tree: PublishedTree, found: TreeInputs, cfg: StageConfig) -> None:
    """Of the benchmarks that a recipe asks for, keep those whose files the tree has; with none of them, keep all.

    Call it only where the recipe names them: what is asked for in words or by a flag has to be there.
    """
    asked = {settings.name: settings for settings in getattr(cfg, "benchmarks", ())}
    if "data" not in found.settings or "benchmarks" in found.settings:
        return
    missing = [name for name in asked if name in KNOWN_BINS and name not in tree.benchmarks()]
    kept = {name: settings for name, settings in asked.items() if name not in missing}
    if missing and kept:
        found.settings["benchmarks"] = [settings.model_dump(exclude_unset=True) | {"name": name}
                                        for name, settings in kept.items()]
        files = ", ".join(f"{name.replace('-', '_')}.bin" for name in missing)
        found.chosen["benchmarks"] = f"{', '.join(kept)}; missing: {files}"


def stages_left(
    tree: PublishedTree, configs: dict[str, StageConfig], stated: dict[str, set[str]], forced: set[str], work: Work
) -> tuple[list[str], dict[str, str]]:
    """Say which stages of a run are left to do when a tree holds the work of others.

    A stage is done when the tree holds what it would make, and needless when only stages that are done would
    have read its output. One that is forced, or reads what a forced one makes, or has begun in the work folder, is
    left in any case.

    Args:
        tree: The tree.
        configs: Config of every stage, in the order of the data.
        stated: Settings of each that the user has stated.
        forced: Stages the user asks for by name.
        work: The work folder.

    Returns:
        The stages to run, in order, and why each of the others is not.
    """
    left: list[str] = []
    why: dict[str, str] = {}
    wanted: set[str] = set()  # folders that stages which are left read
    spared: set[str] = set()  # folders that the others would have read
    reads = {stage: _reads(stage, configs[stage], stated[stage]) for stage in configs}
    made_anew: set[str] = set()
    for stage in configs:
        if stage in forced or made_anew.intersection(name for use in reads[stage] for name in use.work):
            made_anew.add(OUTPUTS.get(stage, stage))
    for stage in reversed(configs):
        output = OUTPUTS.get(stage, stage)
        product = tree.find(PRODUCTS[stage]) if stage in PRODUCTS else None
        if output in made_anew or (stage in OUTPUTS and _has_begun(work.folder(output))):
            pass
        elif product is not None and product.path is not None:
            why[stage] = f"the tree holds {product.thing.title}: {product.path}"
        elif output in spared and output not in wanted:
            why[stage] = "nothing that is left to do reads its output"
        if stage in why:
            spared |= {name for use in reads[stage] for name in use.work}
        else:
            left.insert(0, stage)
            wanted |= {name for use in reads[stage] if tree.find(use.thing).path is None for name in use.work}
    return left, dict(reversed(why.items()))


def say(inputs: dict[str, TreeInputs], skipped: dict[str, str] | None = None) -> None:
    """Say once, one line per thing, what comes from the tree, what is missing, and which stages are skipped."""
    readers: dict[str, list[str]] = {}
    maker_of = {THINGS[thing].title: stage for stage, thing in PRODUCTS.items()}
    for stage, found in inputs.items():
        for key, what in found.looked_for.items():
            is_made = what.path is None and what.thing.title in maker_of
            hint = f"; `facesyn {maker_of[what.thing.title]} --tree` makes it" if is_made else ""
            readers.setdefault(what.describe() + hint, []).append(f"{stage} {key}")
        for key, value in found.chosen.items():
            readers.setdefault(f"{key} = {value}", []).append(stage)
    for stage, reason in (skipped or {}).items():
        log.info(f"tree: {stage} is skipped: {reason}")
    for line, names in readers.items():
        log.info(f"tree: {line} (for {', '.join(names)})")


def _has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in (HEADER, BEGUN))


def _comes_in(use: Use, taken: dict[str, Any], made: set[str]) -> bool:
    """True when a setting is to be looked for in the tree."""
    if use.beside and use.beside in taken:
        return True
    if use.beside and not use.work:
        return False
    return not made.intersection(use.work)


def _has_other_contexts(tree: PublishedTree, work: Work) -> bool:
    """True when the samples of the run come from contexts that are not the tree's: its faces are not theirs."""
    folder, own = work.folder("samples"), tree.find("contexts").path
    header = read_header(folder) if folder.is_dir() else None
    parent = header.parents.get("contexts") if header else None
    return parent is not None and (own is None or Path(parent.path).resolve() != own.resolve())


def _reads(stage: str, cfg: StageConfig, stated: set[str]) -> list[Use]:
    plugins = _plugins(cfg)
    return [
        use for use in USES.get(stage, ())
        if use.key not in stated and use.unless not in stated and (not use.only or plugins.intersection(use.only))
    ]


def _plugins(cfg: StageConfig, leave_out: str = "") -> set[str]:
    """Return the names of all plugins that a config chooses."""
    values = [getattr(cfg, name) for name in type(cfg).model_fields if name != leave_out]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item.name for item in flat if isinstance(item, PluginConfig)}
