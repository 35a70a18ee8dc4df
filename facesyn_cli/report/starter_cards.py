"""Cards of the starter's parts: description, data, recipe and figures of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from facesyn_cli.artifacts.atomic_files import read_json, write_bytes
from facesyn_cli.artifacts.benchmark_table import TABLE_JSON, BenchmarkTable
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.preview_pictures import SHEET, picture_path
from facesyn_cli.artifacts.starter_files import PARTS
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.data.pixels import decode_image, encode_jpeg
from facesyn_cli.errors import UserError
from facesyn_cli.report.contents import headline_of
from facesyn_cli.report.rendering import render_markdown
from facesyn_cli.untrusted.input_files import MAX_IMAGE, read_bytes
from facesyn_cli.untrusted.parsing import read_yaml

_ABOUT = {
    "autoencoder": "Faces to latents and back.",
    "ldm": "Latents of faces of the identity of an embedding.",
    "embedder": "Faces to embeddings: a recognizer.",
    "contexts": "Embeddings of people who do not exist, to draw faces of.",
    "identity": "Latents to embeddings, for the identity loss of train-ldm.",
}
_ROLES = ("identity", "recorded", "growing")  # roles of settings that affect the result
_NO_FIGURES = ("lr", "images_per_s", "seconds", "epoch", "grad_norm")
_NOT_STATED = "not stated"
_SHEET_QUALITY = 88


class About(BaseModel):
    """The description that the packer of a starter gives; everything else is read from the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = _NOT_STATED
    split: str = _NOT_STATED
    license: str = "research use only"
    figures: dict[str, dict[str, Any]] = {}  # part -> name -> figure
    notes: dict[str, str] = {}               # part -> text

    @model_validator(mode="before")
    @classmethod
    def _american_spelling(cls, value: Any) -> Any:
        if not (isinstance(value, dict) and "licence" in value):
            return value
        log.warning("licence is now license; the old spelling will be refused in the next release")
        return {"license": value["licence"]} | {key: text for key, text in value.items() if key != "licence"}

    @field_validator("figures", "notes")
    @classmethod
    def _of_parts(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(value) - set(PARTS)):
            raise ValueError(f"{', '.join(unknown)} is no part; parts are {', '.join(PARTS)}")
        return value

    @staticmethod
    def read(path: Path | None) -> About:
        """Read a YAML file; None: defaults.

        Raises:
            UserError: It cannot be read, or has other keys.
        """
        if path is None:
            return About()
        try:
            return About.model_validate(read_yaml(path, "a description of a starter") or {})
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()]
            raise UserError(f"{path} does not describe a starter: {'; '.join(problems)}") from error


def figures_of(header: Header | None, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a stage: the last of each in its metrics log, those of its header, and counts.

    Args:
        header: Header of its folder; None: it has none.
        lines: Lines of its `metrics.jsonl`, in order.
    """
    found: dict[str, Any] = {}
    for line in lines:
        found |= {key: value for key, value in line.items() if _is_figure(key, value) and key != "step"}
    if header is not None:
        found |= {key: value for key, value in header.extra.items() if _is_figure(key, value)}
        found |= header.counts
    return found


def figures_of_samples(work: Work) -> dict[str, Any]:
    """Return the headline figures of the run's report and the accuracies of its benchmark table, where they exist."""
    found: dict[str, Any] = {}
    report, table = work.folder("report") / "report.json", work.folder("table")
    if report.is_file():
        data = read_json(report)
        for of, figures in headline_of(data).items():
            found |= {f"{data['definitions'][name]['title']} ({of})": value for name, value in figures.items()}
    if (table / TABLE_JSON).is_file():
        rows = BenchmarkTable.read(table).rows
        found |= {f"accuracy on {row.benchmark}, trained on samples": row.accuracy for row in rows if row.accuracy}
    return found


def card_of(
    name: str, about: About, header: Header | None, figures: dict[str, Any], notes: list[str], digest: str
) -> str:
    """Return the card of a part in Markdown.

    Args:
        name: The part.
        about: Description by the packer.
        header: Of the folder it was packed from; None where it had none.
        figures: Name -> figure; those of `about` are added.
        notes: Further sentences.
        digest: Of the packed file.
    """
    recipe = {role: header.config[role] for role in _ROLES if header.config.get(role)} if header is not None else {}
    return render_markdown(
        "starter_part.md.j2", name=name, role=_ABOUT[name], about=about, header=header, notes=notes, digest=digest,
        figures={key: f"{value:.4g}" if isinstance(value, float) else value
                 for key, value in {**figures, **about.figures.get(name, {})}.items()},
        recipe=yaml.safe_dump(_without_paths(recipe), sort_keys=True, allow_unicode=True) if recipe else "",
    )


def overview(parts: dict[str, dict[str, Any]], num_contexts: int, license: str, sheet: str | None = None) -> str:
    """Return the overview of a starter; `sheet` is the name of a picture beside it."""
    return render_markdown(
        "starter.md.j2", parts=parts, roles=_ABOUT, num_contexts=num_contexts, license=license, sheet=sheet
    )


def write_sheet(work: Work, folder: Path) -> str | None:
    """Write the contact sheet of the run's samples as JPEG; return its name, None without one."""
    samples = work.folder("samples")
    found = next((p for p in (picture_path(samples, SHEET), samples / SHEET) if p.is_file()), None)
    if found is None:
        return None
    name = f"{Path(SHEET).stem}.jpg"
    sheet = decode_image(read_bytes(found, MAX_IMAGE, "the contact sheet"))
    write_bytes(folder / name, encode_jpeg(sheet, _SHEET_QUALITY))
    return name


def _is_figure(key: str, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and key not in _NO_FIGURES


def _without_paths(value: Any) -> Any:
    """Return a value whose absolute paths, valid on one machine only, are replaced by their names."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
