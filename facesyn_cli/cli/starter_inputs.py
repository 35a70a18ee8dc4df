"""What stages take from a starter: the packaged one where nothing else is there, or one that `--starter` names.

Priority: defaults < starter < folders of `--work` < recipe < `key=value` < flag. An LDM, its contexts and its
recognizer belong together: where the LDM is another, nothing of the starter is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.starter_files import PACKAGED, find_starter, missing, packaged_folder
from facesyn_cli.artifacts.work import Work
from facesyn_cli.cli.stage_command import resolve_stage
from facesyn_cli.cli.tree_inputs import stated_keys
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

USERS = ("embed", "train-ldm", "gen-contexts", "sample", "study")


@dataclass(frozen=True)
class Words:
    """What the user says of one stage: its recipe section, `key=value` words and flags."""

    section: dict[str, Any]
    overrides: list[str]
    flags: dict[str, Any]


def starter_settings(name: str, words: Words, work: Work, asked: Path | None) -> dict[str, Any]:
    """Return the settings of a stage that come from a starter, to be put below a recipe's; empty where none is needed.

    Args:
        name: Name of the stage.
        words: What the user says of it; settings that are spoken of are never taken from a starter.
        work: The work folder; what is in it comes before the starter.
        asked: `--starter`: a folder, or the word `packaged`. None: not given, but neither was a work folder, a recipe
            or a published tree; only then the packaged starter is used unasked, and a mistyped folder never yields
            starter faces.

    Raises:
        UserError: The starter that was asked for is not there, or the stage takes nothing from one.
    """
    if name not in USERS:
        if asked is not None:
            raise UserError(f"{name} takes nothing from a starter; leave --starter out")
        return {}
    absent = missing(packaged_folder()) if asked is None else []
    starter = None if absent else find_starter(asked or PACKAGED)
    own = starter.settings.get(name, {}) if starter is not None else {}
    if name == "gen-contexts" and not _is_like_the_starters(words, work):
        own = {key: value for key, value in own.items() if key != "source"}
    parts = _parts(name, words, work, own)
    if not parts:
        if asked is not None:
            log.warning(f"starter: {name} takes nothing from {asked}, all it needs is given or in {work.path}")
        return {}
    if starter is None:
        log.warning(f"starter: none is packaged with this facesyn ({', '.join(absent)} missing)")
        return {}
    settings = own if parts.keys() & {"ldm", "known"} else {}
    where = "the packaged starter" if str(asked or PACKAGED) == PACKAGED else f"the starter in {starter.folder}"
    log.info(f"starter: {_said(parts, settings)} of {where}; what lies in --work or is named by flags comes before it")
    return {**settings, **{key: str(starter.part(part)) for key, part in parts.items()}}


def _parts(name: str, words: Words, work: Work, own: dict[str, Any]) -> dict[str, str]:
    """Return setting -> part of the starter, whose own settings of the stage are `own`."""
    stated = stated_keys(words.section, words.overrides, words.flags)
    if name == "embed":
        return {} if stated & {"weights", "backbone"} else {"weights": "embedder"}
    if name == "train-ldm":
        is_given = stated & {"autoencoder", "autoencoder_model"} or work.folder("autoencoder").exists()
        return {} if is_given else {"autoencoder": "autoencoder"}
    if name == "gen-contexts":
        return _for_contexts(words, stated, work, own)
    if "ldm" in stated or work.folder("ldm").exists():
        return {}
    has_contexts = "contexts" in stated or work.folder("contexts").exists()
    return {"ldm": "ldm"} if has_contexts else {"ldm": "ldm", "contexts": "contexts"}


def _is_like_the_starters(words: Words, work: Work) -> bool:
    """True when new contexts come from where those of the starter came from: nothing says otherwise."""
    stated = stated_keys(words.section, words.overrides, words.flags)
    return not stated & {"source", "known", "ldm"} and not work.folder("ldm").exists()


def _for_contexts(words: Words, stated: set[str], work: Work, own: dict[str, Any]) -> dict[str, str]:
    from facesyn_cli.plugins import registry

    has_ldm = "ldm" in stated or work.folder("ldm").exists()
    section = {} if has_ldm else {key: own[key] for key in ("source", "filters") if key in own}
    section |= {key: words.section[key] for key in ("source", "filters") if key in words.section}
    about = [w for w in words.overrides if w.partition("=")[0].partition(".")[0] in ("source", "filters")]
    cfg = resolve_stage("gen-contexts", section, about, {"source.name": words.flags.get("source.name")})
    source = registry.build("contexts", cfg.source)
    needs = source.needs.union(*(registry.build("context_filter", f).needs for f in cfg.filters))
    recognizer = {} if stated & {"weights", "backbone"} else {"weights": "embedder"}
    has_known = has_ldm or "known" in stated or "source" not in own and work.folder("embeddings").exists()
    parts = {"known": "contexts"} if "known" in source.needs and not has_known else {}
    if "ldm" in needs:
        return parts if has_ldm else {**parts, "ldm": "ldm", **recognizer}
    return parts if "recognizer" not in needs or _has_embedder(work) else {**parts, **recognizer}


def _has_embedder(work: Work) -> bool:
    """True when the run holds embeddings or contexts: others must come from the same recognizer."""
    return any(read_header(work.folder(name)) is not None for name in ("embeddings", "contexts"))


def _said(parts: dict[str, str], settings: dict[str, Any]) -> str:
    names = {"ldm": "LDM", "contexts": "contexts", "embedder": "recognizer", "autoencoder": "autoencoder"}
    taken = ", ".join(names[part] for part in parts.values())
    return f"{taken} and settings of {', '.join(settings)}" if settings else taken
