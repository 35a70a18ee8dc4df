"""The dataset card of a set, `README.md` with a YAML head as dataset hubs read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import update_text
from facesyn_cli.artifacts.origins import GENERATED, PHOTO, overall_origin
from facesyn_cli.evaluation.all_metrics import metric
from facesyn_cli.report import provenance
from facesyn_cli.report.figure_text import Figure, error_text, value_text
from facesyn_cli.report.pack_card import FILE, front, loading_head
from facesyn_cli.report.rendering import render_markdown
from facesyn_cli.report.view import size_text

_SECTIONS = {"identity": "Identity", "diversity": "Diversity", "quality": "Image quality", "fairness": "Fairness"}
_PEOPLE = {
    GENERATED: "No image is meant to show a real person; see Privacy.",
    PHOTO: "**It shows real people; their rights hold.**",
    provenance.UNKNOWN: "It may show real people; their rights hold.",
}


def write_card(folder: Path, data: dict[str, Any], set_name: str) -> Path:
    """Write `README.md` into a folder.

    Args:
        folder: Made when it is missing.
        data: Content of `report.json`.
        set_name: Name of the set that the card is of.

    Returns:
        Path of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    update_text(path, render_card(data, set_name))
    return path


def render_card(data: dict[str, Any], set_name: str) -> str:
    """Return the card of one set as text.

    Raises:
        KeyError: The report has no such set.
    """
    one = next((found for found in data["sets"] if found["name"] == set_name), None)
    if one is None:
        raise KeyError(set_name)
    is_made = overall_origin(one["origins"]) == GENERATED  # every image, as far as the headers of the stages tell
    known_as, license = provenance.license_of(one["path"])
    extra = (one["header"] or {}).get("extra") or {}
    loading = loading_head(extra["format"], extra["name"], extra["suffixes"]) if "suffixes" in extra else {}
    return render_markdown(
        "card.md.j2", data=data, one=one, is_made=is_made, size=size_text(one),
        head=front(one["name"], one["images"], loading, ["synthetic"] if is_made else []),
        origins=provenance.origins_text(one), stages=provenance.stages_of(one), inputs=provenance.inputs_of(one),
        known_as=known_as, license=license, statistics=list(_statistics(data, one)), reference=data["reference"],
        privacy=[(result["judge"], result["sections"]["privacy"])
                 for result in data["results"] if result["set"] == set_name],
        people=_PEOPLE[overall_origin(one["origins"])], short=provenance.short, last_part=provenance.last_part,
        settings_of=provenance.settings_of, shown=_shown, title_of=_title, counted=_counted,
        value_of=lambda figure: f"{value_text(figure)} {error_text(figure)}".strip(),
    )


def _statistics(data: dict[str, Any], one: dict[str, Any]) -> Iterator[tuple[str, str, list[Figure]]]:
    """Yield (title, remark, figures) of every section but privacy that has figures."""
    for result in data["results"]:
        for name, title in _SECTIONS.items():
            figures = _known(result["sections"][name]["figures"])
            if result["set"] == one["name"] and figures:
                yield f"{title}, by judge {result['judge']}", "", figures
    for network in data["networks"]:
        section = network["sets"].get(one["name"])
        if section and section["figures"]:
            yield f"{_SECTIONS[network['section']]}, by {network['name']}", network["about"], section["figures"]
    pixels = data["pixels"].get(one["name"])
    if pixels and pixels["figures"]:
        yield "Pixels", "", pixels["figures"]


def _known(figures: list[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure["value"] is not None]


def _shown(figures: list[Figure]) -> list[Figure]:
    """Return the figures of privacy that a card holds; those across images and centers are in `report.json`."""
    return [figure for figure in _known(figures) if "-to-" not in figure["id"]]


def _title(figure: Figure) -> str:
    return metric(figure["id"]).title + (f" ({figure['group']})" if figure["group"] else "")


def _counted(figure: Figure) -> str:
    return f"{figure['n']:,} {figure['of']}" if figure["n"] is not None else ""
