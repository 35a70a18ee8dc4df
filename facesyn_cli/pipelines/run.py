"""Run or plan all stages of a recipe in order, skipping finished ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.work import OUTPUTS, Work
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.errors import UserError
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
    names = _stages_between(sections, first, last)
    words = _words_by_stage(overrides)
    requests = {name: Request(name, sections[name], words[name], flags) for name in names}
    configs = {name: request.resolve() for name, request in requests.items()}
    skipped: dict[str, str] = {}
    if tree is not None:
        forced = {name for name in names if words[name] or name == first}
        configs, skipped = _with_tree(PublishedTree.open(tree), requests, configs, forced, Work(work))
    if dry_run:
        plans = {name: {"state": "skipped", "reason": reason} for name, reason in skipped.items()}
        return plans | {name: _plan(requests[name], cfg, Work(work)) for name, cfg in configs.items()}
    steps = [Step(name, name, configs.get(name), skipped.get(name, "")) for name in names]
    return run_steps(steps, Work(work))


def _stages_between(sections: dict[str, dict[str, Any]], first: str | None, last: str | None) -> list[str]:
    for name in (first, last):
        if name is not None and name not in STAGES:
            raise UserError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
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
            raise UserError(f"{word!r} is not stage.key=value; stages are {', '.join(STAGES)}")
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
