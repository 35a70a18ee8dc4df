"""Rows of the tables of `facesyn ablate`.

A table is a recipe with one more section, `ablate`. The sections of the stages hold the settings that all rows share; a
row overrides them, or those of a row above it that it names as its base:

    ablate:
      images: 800
      rows:
        - {name: real, real: true, identities: 80}
        - {name: sphere, gen-contexts: {source: sphere, filters: []}}
        - {name: guided, base: sphere, sample: {guidance: {name: cfg, scale: 2}}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facesyn_cli.config.fields import StageConfig, affects_result, growable, input_path, runtime_only
from facesyn_cli.errors import UserError, did_you_mean
from facesyn_cli.untrusted.parsing import parse_yaml

ROW_STAGES = ("gen-contexts", "sample", "augment")  # stages with settings of a row
SHARED_STAGES = ("train-fr", "eval")                # stages with the same settings in all rows
Settings = dict[str, Any]


class AblateConfig(StageConfig):
    """The section `ablate` of a table."""

    seeds: int = growable(3, "number of seeds, counted from `seed`", ge=1)
    images: int | Literal["smallest"] | None = affects_result(
        None, "images of every row; smallest: as many as the smallest row has; None: all images of each row"
    )
    identities: int | None = affects_result(
        None, "identities of rows of real faces, unless the row sets them; None: all", ge=2
    )
    real: Path | None = input_path(None, "folder or zip of real faces, for rows with `real: true`")
    compare: Literal["accuracy", "auc", "eer"] | None = runtime_only(
        None, "figure whose differences are shown; None: accuracy where the benchmarks have one, else auc"
    )
    wanted: float = runtime_only(
        0.01, "difference for which the table says how many seeds it needs, as a share: 0.01 is a point", gt=0, lt=1
    )
    stop_decided: bool = runtime_only(
        False, "make no further seeds of rows whose difference is decided: shown, or below `wanted`; as every seed is "
        "a look at the table, intervals are wider then"
    )
    rows: list[dict[str, Any]] = affects_result([], "rows: a name, and settings that differ from the shared ones")


class _RowConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")  # in --rows
    title: str | None = None                                     # in the table; None: the name
    base: str | None = None                                      # a row above; this row overrides its settings
    real: bool | Path = False                                    # true, or a folder: a row of real faces
    identities: int | None = Field(None, ge=2)                   # of a row of real faces; None: as in the table
    images: int | None = Field(None, ge=2)                       # None: as in the table
    beside: str | None = None                                    # a row of real faces above, whose images are added


@dataclass(frozen=True)
class Row:
    """One way to make a training set.

    Args:
        name: Its name for `--rows`.
        title: Its name in the printed table.
        base: Name of the row it overrides and is compared with, or None.
        real: False, or the folder of its real faces (True: the one of the table).
        identities: Number of identities of real faces; None: as in the table.
        images: Number of images, without those of `beside`; None: as in the table.
        beside: Name of the row of real faces whose images are trained on too, or None.
        sections: All settings of its stages; empty for real faces.
    """

    name: str
    title: str
    base: str | None = None
    real: bool | Path = False
    identities: int | None = None
    images: int | None = None
    beside: str | None = None
    sections: dict[str, Settings] = field(default_factory=dict)

    @property
    def compared(self) -> str | None:
        """Name of the row that it is compared with: its base, or else the row of real faces it stands beside."""
        return self.base or self.beside


def expand_rows(raw: list[dict[str, Any]], sections: dict[str, Settings]) -> list[Row]:
    """Return the rows with the settings they inherit.

    Args:
        raw: The rows as in the file.
        sections: Settings that all rows share, by stage.

    Raises:
        UserError: Naming every problem.
    """
    base = {stage: sections[stage] for stage in ROW_STAGES if stage in sections}
    rows: dict[str, Row] = {}
    problems: list[str] = []
    for number, settings in enumerate(raw, 1):
        where = f"row {settings.get('name', number)!r}"
        try:
            row = _row(settings, base, rows)
        except UserError as error:
            problems += [f"{where}: {text}" for text in str(error).split("; ")]
            continue
        if row.name in rows:
            problems.append(f"{where}: two rows have this name")
        rows[row.name] = row
    if not raw:
        problems.append("the table has no rows; ablate.rows lists them")
    if problems:
        raise UserError("; ".join(problems))
    return list(rows.values())


def select_rows(rows: list[Row], names: str | None) -> list[Row]:
    """Return the rows of a comma-separated list of names, in the order of the table; None: all.

    Raises:
        UserError: There is no row of a name.
    """
    if names is None:
        return rows
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [row.name for row in rows]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        missing = ", ".join(unknown) or repr(names)
        raise UserError(f"there is no row {missing}{did_you_mean(unknown[0] if unknown else '', known)}")
    return [row for row in rows if row.name in wanted]


def merge_settings(base: Any, over: Any) -> Any:
    """Return settings with other settings merged over them.

    Mappings are merged key by key. A mapping with another plugin name replaces the whole mapping, and a bare name is
    the same as a mapping with that name. Everything else, including lists, is replaced.
    """
    if isinstance(base, str) and isinstance(over, dict):
        base = {"name": base}
    if isinstance(over, str) and isinstance(base, dict) and "name" in base:
        over = {"name": over}
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "name" in base and over.get("name", base["name"]) != base["name"]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge_settings(base[key], value) if key in base else value
    return merged


def apply_words(sections: dict[str, Settings], words: list[str], stages: tuple[str, ...]) -> dict[str, Settings]:
    """Return the sections with `stage.key=value` words merged over them; values are YAML, keys may be dotted.

    Raises:
        UserError: A word has another form, or its stage does not belong to a table.
    """
    for word in words:
        path, equals, text = word.partition("=")
        stage, *keys = path.split(".")
        if not equals or stage not in stages or not keys or not all(keys):
            raise UserError(f"{word!r} is not stage.key=value; stages of a table are {', '.join(stages)}")
        try:
            value = parse_yaml(text) if text else None
        except UserError as error:
            raise UserError(f"{word!r}: {' '.join(str(error).split())}") from error
        for key in reversed(keys):
            value = {key: value}
        sections = {**sections, stage: merge_settings(sections.get(stage, {}), value)}
    return sections


def _row(settings: dict[str, Any], base: dict[str, Settings], above: dict[str, Row]) -> Row:
    known = [*_RowConfig.model_fields, *ROW_STAGES]
    problems = []
    for key in settings:
        if key not in known:
            problems.append(f"unknown setting {key!r}{did_you_mean(key, known)}")
    changes = {stage: settings[stage] for stage in ROW_STAGES if stage in settings}
    for stage, change in changes.items():
        if not (isinstance(change, dict) or change is None and stage == "augment"):
            problems.append(f"{stage}: settings are expected, got {change!r}")
    try:
        cfg = _RowConfig.model_validate({k: value for k, value in settings.items() if k in _RowConfig.model_fields})
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        cfg = None
    if problems or cfg is None:
        raise UserError("; ".join(problems))
    if cfg.base is not None and cfg.base not in above:
        raise UserError(f"base: {cfg.base!r} is no row above it")
    if cfg.real is not False:
        if changes or cfg.base is not None or cfg.beside is not None:
            raise UserError("a row of real faces has no base, stands beside none and has no settings of stages")
        return Row(cfg.name, cfg.title or cfg.name, None, cfg.real, cfg.identities, cfg.images)
    if cfg.identities is not None:
        raise UserError("identities belongs to rows of real faces; sample.ids sets the number of generated identities")
    parent = above[cfg.base] if cfg.base is not None else None
    if parent is not None and parent.real is not False:
        raise UserError(f"base: {cfg.base!r} is a row of real faces and cannot be a base")
    sections = dict(parent.sections if parent else base)
    for stage, change in changes.items():
        if change is None:
            sections.pop(stage, None)
        else:
            sections[stage] = merge_settings(sections.get(stage, {}), change)
    if cfg.beside is not None and (cfg.beside not in above or above[cfg.beside].real is False):
        raise UserError(f"beside: {cfg.beside!r} is no row of real faces above it")
    images = cfg.images if cfg.images is not None or parent is None else parent.images
    beside = cfg.beside if cfg.beside is not None or parent is None else parent.beside
    return Row(cfg.name, cfg.title or cfg.name, cfg.base, False, None, images, beside, sections)
