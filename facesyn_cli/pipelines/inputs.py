"""Resolve one stage together with the inputs that come from a published tree or a starter.

Priority: defaults < tree or starter < folders of `--work` < recipe < `key=value` < flag. An LDM, its contexts and its
recognizer belong together: with another LDM, nothing is taken from a starter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.packaged_networks import AUTOENCODERS
from facesyn_cli.artifacts.starter_files import AUTOENCODER, PACKAGED, find_starter, missing, packaged_folder
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.published_tree import PublishedTree
from facesyn_cli.pipelines.stage import Request, resolve_stage
from facesyn_cli.pipelines.tree_inputs import log_inputs, tree_inputs
from facesyn_cli.plugins import registry

USERS = ("embed", "train-ldm", "gen-contexts", "sample", "study")  # stages that can take something
_TITLES = {"ldm": "LDM", "contexts": "contexts", "embedder": "recognizer", "autoencoder": "autoencoder"}


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
    return request.resolve(below=_starter_settings(request, work, starter))


def _starter_settings(request: Request, work: Work, named: Path | None) -> dict[str, Any]:
    """Return the settings that come from the named starter; None: from the packaged one, if there is one."""
    if request.name not in USERS:
        if named is not None:
            raise UserError(f"{request.name} does not use a starter; leave --starter out")
        return {}
    absent = missing(packaged_folder()) if named is None else []
    starter = None if absent else find_starter(named or PACKAGED)
    own = starter.settings.get(request.name, {}) if starter is not None else {}
    has_ldm = "ldm" in request.stated or work.folder("ldm").exists()
    if request.name == "gen-contexts" and (has_ldm or request.stated & {"source", "known"}):
        own = {key: value for key, value in own.items() if key != "source"}  # belongs to the starter's networks
    parts = _parts(request, work, own, has_ldm)
    if not parts:
        if named is not None:
            log.warning(f"starter: {request.name} uses nothing of {named}: all inputs are given or in {work.path}")
        return {}
    if starter is None:
        log.warning(f"starter: none is packaged with this facesyn ({', '.join(absent)} missing)")
        return {}
    settings = own if parts.keys() & {"ldm", "known"} else {}
    where = "the packaged starter" if str(named or PACKAGED) == PACKAGED else f"the starter in {starter.folder}"
    found = {key: starter.autoencoder() if part == AUTOENCODER else str(starter.part(part))
             for key, part in parts.items()}
    taken = ", ".join(f"autoencoder {found[key]}" if found[key] in AUTOENCODERS else _TITLES[part]
                      for key, part in parts.items())
    taken += f" and settings of {', '.join(settings)}" if settings else ""
    log.info(f"starter: {taken} of {where}; folders of --work and flags have priority")
    return {**settings, **found}


def _parts(request: Request, work: Work, own: dict[str, Any], has_ldm: bool) -> dict[str, str]:
    """Return setting -> part of the starter for inputs that are missing; `own` are the starter's settings."""
    stated = request.stated
    if request.name == "embed":
        return {} if stated & {"weights", "backbone"} else {"weights": "embedder"}
    if request.name == "train-ldm":
        is_given = stated & {"autoencoder", "autoencoder_model"} or work.folder("autoencoder").exists()
        return {} if is_given else {"autoencoder": "autoencoder"}
    if request.name == "gen-contexts":
        return _parts_for_contexts(request, work, own, has_ldm)
    if has_ldm:
        return {}
    has_contexts = "contexts" in stated or work.folder("contexts").exists()
    return {"ldm": "ldm"} if has_contexts else {"ldm": "ldm", "contexts": "contexts"}


def _parts_for_contexts(request: Request, work: Work, own: dict[str, Any], has_ldm: bool) -> dict[str, str]:
    """Return what the source and the filters of contexts need and do not have."""
    section: dict[str, Any] = {} if has_ldm else {key: own[key] for key in ("source", "filters") if key in own}
    section |= {key: request.section[key] for key in ("source", "filters") if key in request.section}
    about = [w for w in request.overrides if w.partition("=")[0].partition(".")[0] in ("source", "filters")]
    cfg: Any = resolve_stage("gen-contexts", section, about, {"source.name": request.flags.get("source.name")})
    source = registry.build("contexts", cfg.source)
    needs = source.needs.union(*(registry.build("context_filter", f).needs for f in cfg.filters))
    recognizer = {} if request.stated & {"weights", "backbone"} else {"weights": "embedder"}
    has_known = has_ldm or "known" in request.stated or "source" not in own and work.folder("embeddings").exists()
    parts = {"known": "contexts"} if "known" in source.needs and not has_known else {}
    if "ldm" in needs:
        return parts if has_ldm else {**parts, "ldm": "ldm", **recognizer}
    # embeddings or contexts of this run: others must come from the same recognizer
    has_embedder = any(read_header(work.folder(name)) is not None for name in ("embeddings", "contexts"))
    return parts if "recognizer" not in needs or has_embedder else {**parts, **recognizer}
