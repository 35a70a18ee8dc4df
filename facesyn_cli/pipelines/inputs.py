"""Resolve one stage together with the inputs that come from a published tree or a starter."""

from __future__ import annotations

from pathlib import Path

from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.published_tree import PublishedTree
from facesyn_cli.pipelines.stage import Request
from facesyn_cli.pipelines.starter_inputs import starter_settings
from facesyn_cli.pipelines.tree_inputs import log_inputs, tree_inputs


def configure(
    request: Request, work: Work, tree: Path | None = None, starter: Path | None = None, use_packaged: bool = False
) -> StageConfig:
    """Return the config of one stage.

    Args:
        request: What the user states.
        work: The work folder.
        tree: Directory in the published layout.
        starter: Folder of a starter, or the word `packaged`.
        use_packaged: Without `tree` and `starter`, take the packaged starter where an input is missing.

    Raises:
        UserError: A setting is wrong, or the tree or starter is not there or holds nothing for this stage.
    """
    if tree is not None:
        if starter is not None:
            raise UserError("--starter and --tree both say where networks come from; give one of them")
        found = tree_inputs(PublishedTree.open(tree), request, request.resolve(), work)
        log_inputs({request.name: found})
        return request.resolve(over=found.settings)
    if starter is None and not use_packaged:
        return request.resolve()
    return request.resolve(below=starter_settings(request, work, starter))
