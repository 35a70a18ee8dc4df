"""Inputs that stages take from a directory in the published layout (`--tree`).

Priority: defaults < tree < folders of `--work` < recipe < `key=value` < flag.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facesyn_cli.artifacts.header import BEGUN, HEADER, read_header
from facesyn_cli.artifacts.work import FOLDERS, OUTPUTS, Work
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.published_tree import (
    EMBEDDER,
    INPUTS,
    ITEMS,
    KNOWN_BINS,
    PRODUCTS,
    SOURCES,
    Found,
    PublishedTree,
    StageInput,
)
from facesyn_cli.pipelines.stage import Request
from facesyn_cli.plugins.settings import PluginConfig

if TYPE_CHECKING:
    from facesyn_cli.config.fields import StageConfig

_LISTS = ("inputs", "sets")  # settings that hold several paths


@dataclass(frozen=True)
class TreeInputs:
    """What one stage takes from a tree.

    Args:
        settings: Settings with their values; the user has stated none of them.
        looked_for: Setting -> the search result of its item.
        chosen: Settings that follow from what was found, for messages.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    looked_for: dict[str, Found] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)


def tree_inputs(
    tree: PublishedTree, request: Request, cfg: StageConfig, work: Work, made: Collection[str] = ()
) -> TreeInputs:
    """Find what a stage can take from a tree: nothing that the request states or that the work folder holds.

    Args:
        cfg: The config without the tree.
        made: Names of folders of the run that earlier stages make.

    Raises:
        UserError: The tree holds nothing for this stage.
    """
    stage, stated = request.name, request.stated
    if stage not in INPUTS:
        raise UserError(f"{stage} does not use a published tree; leave --tree out")
    found = TreeInputs()
    made = {*made, *(name for name in FOLDERS if work.folder(name).exists())}
    if stage == "augment" and _has_other_contexts(tree, work):
        made.add("contexts")
    plugins = _plugins(cfg)
    if stage == "gen-contexts" and "source" not in stated:
        source = next((name for name, item in SOURCES.items() if tree.find(item).path), None)
        if source is not None:
            found.settings["source"], found.chosen["source"] = {"name": source}, source
            plugins = {*_plugins(cfg, leave_out="source"), source}
    for use in _inputs_of(request, plugins):
        if use.key in found.settings or not _is_wanted(use, found.settings, made):
            continue
        match = found.looked_for[use.key] = tree.find(use.item)
        if match.path is not None:
            found.settings[use.key] = [str(match.path)] if use.key in _LISTS else str(match.path)
    if stage in ("sample", "study") and {"ldm", "contexts"} <= set(found.settings) and "assume_embedder" not in stated:
        found.settings["assume_embedder"] = found.chosen["assume_embedder"] = EMBEDDER
    if stage == "eval" and "data" in found.settings and "pairs" not in stated:
        _choose_benchmarks(tree, request, cfg, found)
    return found


def _choose_benchmarks(tree: PublishedTree, request: Request, cfg: Any, found: TreeInputs) -> None:
    """Evaluate all benchmarks of the tree, or those of a recipe whose files it has; with none of them, all of a recipe.

    Benchmarks of `key=value` words or flags must exist, so these are left alone.
    """
    if "benchmarks" in request.on_command_line:
        return
    if "benchmarks" not in request.section:
        found.settings["benchmarks"] = tree.benchmarks()
        found.chosen["benchmarks"] = ", ".join(tree.benchmarks())
        return
    wanted = {settings.name: settings for settings in cfg.benchmarks}
    missing = [name for name in wanted if name in KNOWN_BINS and name not in tree.benchmarks()]
    kept = {name: settings for name, settings in wanted.items() if name not in missing}
    if missing and kept:
        found.settings["benchmarks"] = [settings.model_dump(exclude_unset=True) | {"name": name}
                                        for name, settings in kept.items()]
        files = ", ".join(f"{name.replace('-', '_')}.bin" for name in missing)
        found.chosen["benchmarks"] = f"{', '.join(kept)}; missing: {files}"


def stages_left(
    tree: PublishedTree, requests: dict[str, Request], configs: dict[str, StageConfig], forced: set[str], work: Work
) -> tuple[list[str], dict[str, str]]:
    """Divide the stages of a run into those to run and those that a tree makes unnecessary.

    A stage is skipped when the tree holds its output, or when only skipped stages would read its output. It runs in
    any case when it is forced, reads the output of a forced stage, or has begun in the work folder.

    Returns:
        The stages to run, in order, and for every skipped one the reason.
    """
    left: list[str] = []
    skipped: dict[str, str] = {}
    wanted: set[str] = set()  # folders that the stages to run read
    spared: set[str] = set()  # folders that the skipped stages would have read
    made_anew: set[str] = set()
    inputs = {name: _inputs_of(request, _plugins(configs[name])) for name, request in requests.items()}
    for stage in configs:
        if stage in forced or made_anew.intersection(name for use in inputs[stage] for name in use.work):
            made_anew.add(OUTPUTS.get(stage, stage))
    for stage in reversed(configs):
        output = OUTPUTS.get(stage, stage)
        product = tree.find(PRODUCTS[stage]) if stage in PRODUCTS else None
        begun = [work.folder(output) / name for name in (HEADER, BEGUN)] if stage in OUTPUTS else []
        if output in made_anew or any(path.exists() for path in begun):
            pass
        elif product is not None and product.path is not None:
            skipped[stage] = f"the tree holds {product.item.title}: {product.path}"
        elif output in spared and output not in wanted:
            skipped[stage] = "no stage that is left to run reads its output"
        if stage in skipped:
            spared |= {name for use in inputs[stage] for name in use.work}
        else:
            left.insert(0, stage)
            wanted |= {name for use in inputs[stage] if tree.find(use.item).path is None for name in use.work}
    return left, dict(reversed(skipped.items()))


def log_inputs(inputs: dict[str, TreeInputs], skipped: dict[str, str] | None = None) -> None:
    """Log the skipped stages, and one line for each item that comes from the tree or is missing there."""
    readers: dict[str, list[str]] = {}
    maker_of = {ITEMS[item].title: stage for stage, item in PRODUCTS.items()}
    for stage, found in inputs.items():
        for key, match in found.looked_for.items():
            can_be_made = match.path is None and match.item.title in maker_of
            hint = f"; `facesyn {maker_of[match.item.title]} --tree` makes it" if can_be_made else ""
            readers.setdefault(match.describe() + hint, []).append(f"{stage} {key}")
        for key, value in found.chosen.items():
            readers.setdefault(f"{key} = {value}", []).append(stage)
    for stage, reason in (skipped or {}).items():
        log.info(f"tree: {stage} is skipped: {reason}")
    for line, names in readers.items():
        log.info(f"tree: {line} (for {', '.join(names)})")


def _is_wanted(use: StageInput, taken: dict[str, Any], made: set[str]) -> bool:
    """True when a setting is to be looked for in the tree."""
    if use.beside and (use.beside in taken or not use.work):
        return use.beside in taken
    return not made.intersection(use.work)


def _has_other_contexts(tree: PublishedTree, work: Work) -> bool:
    """True when the run's samples come from contexts that are not the tree's, whose faces are of other identities."""
    folder, own = work.folder("samples"), tree.find("contexts").path
    header = read_header(folder) if folder.is_dir() else None
    parent = header.parents.get("contexts") if header else None
    return parent is not None and (own is None or Path(parent.path).resolve() != own.resolve())


def _inputs_of(request: Request, plugins: set[str]) -> list[StageInput]:
    """Return the inputs that a stage with these plugins reads from the work folder or a tree: those not stated."""
    return [
        use for use in INPUTS.get(request.name, ())
        if use.key not in request.stated and use.unless not in request.stated
        and (not use.only or plugins.intersection(use.only))
    ]


def _plugins(cfg: StageConfig, leave_out: str = "") -> set[str]:
    """Return the names of all plugins that a config chooses."""
    values = [getattr(cfg, name) for name in type(cfg).model_fields if name != leave_out]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item.name for item in flat if isinstance(item, PluginConfig)}
