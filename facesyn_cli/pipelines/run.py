"""Run or plan all stages of a recipe in order, skipping finished ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.work import OUTPUTS, Work
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.config.recipe import STAGES, check_stage
from facesyn_cli.errors import UserError, did_you_mean
from facesyn_cli.pipelines.open_inputs import require_inputs
from facesyn_cli.pipelines.published_tree import INPUTS, PublishedTree
from facesyn_cli.pipelines.stage import Request, plan_stage
from facesyn_cli.pipelines.stage_list import Step, run_steps
from facesyn_cli.pipelines.tree_inputs import log_inputs, stages_left, tree_inputs


def run_recipe(
    sections: dict[str, dict[str, Any]],
    work: Path,
    overrides: list[str],
    flags: dict[str, Any],
    first: str | None = None,
    last: str | None = None,
    dry_run: bool = False,
    tree: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Run (or plan) the stages that the recipe has a section for, in the order of the data.

    All sections are validated before the first stage starts. With a published tree, stages whose output it holds are
    skipped, unless they are named by `first` or by a setting, or have begun in the work folder.

    Args:
        sections: Settings of each stage.
        work: Work folder.
        overrides: `stage.key=value` words.
        flags: Settings for every stage.
        first: First stage to run.
        last: Last stage to run.
        dry_run: Plan only.
        tree: Directory in the published layout.

    Returns:
        By stage, with `dry_run` the JSON values of its `Plan`, else what `run_steps` returns. A stage that does not run
        has `state` and `reason` instead: `skipped` where the tree holds its work; `waiting` in a plan, with its
        `settings`, where an earlier stage has yet to write an input.

    Raises:
        UserError: A stage name, setting or input is wrong; earlier stages keep their finished work.
    """
    requests = _requests(sections, overrides, flags, first, last)
    configs = {name: request.resolve() for name, request in requests.items()}
    skipped: dict[str, str] = {}
    if tree is not None:
        forced = {name for name, request in requests.items() if request.overrides or name == first}
        configs, skipped = _with_tree(PublishedTree.open(tree), requests, configs, forced, Work(work))
    if dry_run:
        plans = {name: {"state": "skipped", "reason": reason} for name, reason in skipped.items()}
        return plans | {name: _plan(requests[name], cfg, Work(work)) for name, cfg in configs.items()}
    require_inputs(configs, Work(work))
    steps = [Step(name, name, configs.get(name), skipped.get(name, "")) for name in requests]
    return run_steps(steps, Work(work))


def resolve_recipe(
    sections: dict[str, dict[str, Any]], overrides: list[str], flags: dict[str, Any], first: str | None = None,
    last: str | None = None,
) -> dict[str, StageConfig]:
    """Return the config of every stage that `run_recipe` would run, in order; see there."""
    requests = _requests(sections, overrides, flags, first, last)
    return {name: request.resolve() for name, request in requests.items()}


def _requests(
    sections: dict[str, dict[str, Any]], overrides: list[str], flags: dict[str, Any], first: str | None,
    last: str | None,
) -> dict[str, Request]:
    words = _words_by_stage(overrides)
    if unused := [f"{name}.{word}" for name in words.keys() - sections.keys() for word in words[name]]:
        raise UserError(f"the recipe has no section for {', '.join(sorted(unused))}, which would have no effect")
    return {name: Request(name, sections[name], words[name], flags)
            for name in _stages_between(sections, first, last)}


def _stages_between(sections: dict[str, dict[str, Any]], first: str | None, last: str | None) -> list[str]:
    for name in (first, last):
        if name is not None:
            check_stage(name)
    wanted = STAGES[STAGES.index(first) if first else 0 : STAGES.index(last) + 1 if last else None]
    names = [name for name in wanted if name in sections]
    if not names:
        raise UserError(f"the recipe has no section for {', '.join(wanted) or f'a stage from {first} to {last}'}")
    return names


def _words_by_stage(overrides: list[str]) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {name: [] for name in STAGES}
    for word in overrides:
        stage, _, rest = word.partition(".")
        if stage not in words or "=" not in rest:
            hint = "" if stage in words else f": unknown stage {stage!r}{did_you_mean(stage, STAGES)}"
            raise UserError(f"{word!r} is not stage.key=value{hint}")
        words[stage].append(rest)
    return words


def _with_tree(
    tree: PublishedTree, requests: dict[str, Request], configs: dict[str, StageConfig], forced: set[str], work: Work
) -> tuple[dict[str, StageConfig], dict[str, str]]:
    """Return the configs of the stages to run, with their inputs from the tree, and the skipped stages with reasons."""
    left, skipped = stages_left(tree, requests, configs, forced, work)
    made = {OUTPUTS[name] for name in left if name in OUTPUTS}
    found = {}
    for name in left:
        # with other contexts than the tree's, the tree's faces are of other identities
        has_others = name == "augment" and "sample" in requests and "contexts" in requests["sample"].stated
        coming = made | {"contexts"} if has_others else made
        if name in INPUTS:
            found[name] = tree_inputs(tree, requests[name], configs[name], work, coming)
    log_inputs(found, skipped)
    with_inputs = {name: requests[name].resolve(over=inputs.settings) for name, inputs in found.items()}
    return {name: with_inputs.get(name, configs[name]) for name in left}, skipped


def _plan(request: Request, cfg: StageConfig, work: Work) -> dict[str, Any]:
    try:
        return plan_stage(request.name, cfg, work).to_json()
    except UserError as error:
        return {"state": "waiting", "reason": str(error), "settings": request.section}
