"""The dataset card of a set: `README.md` as dataset hubs read it, a YAML head and what a user must know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from facesyn_cli.artifacts.atomic_files import update_text
from facesyn_cli.artifacts.origins import GENERATED, PHOTO, overall_origin
from facesyn_cli.report.figures import error_text, value_text
from facesyn_cli.report.markup import printable
from facesyn_cli.report.pack_card import FILE, loading_head, size_category
from facesyn_cli.report.provenance import (
    UNKNOWN,
    inputs_of,
    last_part,
    license_of,
    origins_text,
    settings_of,
    short,
    stages_of,
)

_SECTIONS = {"identity": "Identity", "diversity": "Diversity", "quality": "Image quality", "fairness": "Fairness"}
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


def write_card(folder: Path, data: dict[str, Any], set_name: str) -> Path:
    """Write `README.md` into a folder, which is made when it is missing.

    Args:
        folder: Where to.
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
    is_made = _is_made(one)
    parts = [_front(one, is_made), f"# {_safe(set_name)}", _lead(one, is_made)]
    parts += ["## How it was made", *_making(one), "## Licenses", *_licenses(one)]
    parts += ["## Statistics", *_statistics(data, one), "## Privacy", *_privacy(data, set_name)]
    parts += ["## Intended use", *_use(one), "## How it was measured", *_measured(data)]
    return "\n\n".join(parts) + "\n"


def _front(one: dict[str, Any], is_made: bool) -> str:
    """The YAML head. The license is `other`: which one applies is for the publisher to decide from the chain below."""
    head = {
        "pretty_name": printable(one["name"]),
        "license": "other",
        "license_name": UNKNOWN,
        "task_categories": ["image-feature-extraction"],
        "size_categories": [size_category(one["images"])],
        "tags": ["face-recognition", *(["synthetic"] if is_made else [])],
    }
    extra = (one["header"] or {}).get("extra") or {}
    if "suffixes" in extra:  # packed: the card is of use in the folder of the set
        head |= loading_head(extra["format"], extra["name"], extra["suffixes"])
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _lead(one: dict[str, Any], is_made: bool) -> str:
    per = one["per_identity"]
    kind = "Generated face images" if is_made else "Face images"
    return (f"{kind}: {one['images']:,} images of {one['identities']:,} identities "
            f"({per['min']} to {per['max']} images each, median {per['median']:g}). "
            f"{origins_text(one)} Digest of the set: `{one['digest']}`.")


def _making(one: dict[str, Any]) -> list[str]:
    stages = stages_of(one)
    if not stages:
        return ["Unknown: the set carries no header of the tool that made it."]
    made = ["Each step with the settings that decide about its result."]
    for stage in stages:
        settings = ", ".join(f"`{_code(name)}={_code(value)}`" for name, value in settings_of(stage).items())
        inputs = ", ".join(f"{_safe(role)} {_safe(last_part(parent['path']))} (`{short(parent['digest'])}`)"
                           for role, parent in stage["parents"].items())
        made.append(f"- `facesyn {_code(stage['command'])}` {_safe(stage['package_version'])}; "
                    f"from {inputs or 'nothing'}; {settings or 'no settings'}")
    return [made[0], "\n".join(made[1:])]


def _licenses(one: dict[str, Any]) -> list[str]:
    inputs = inputs_of(one)
    said = ("What went into the set, with its license as far as it can be told from its name. \"unknown\" means that "
            "you must find out before you publish. The strictest of them binds the set.")
    if not inputs:
        known_as, license = license_of(one["path"])
        itself = f" By its name, the set itself seems to be {known_as}: {license}." if known_as else ""
        return [said, f"Inputs: unknown. License: unknown.{itself}"]
    rows = [[found.role, found.stage, found.name, short(found.digest), found.known_as or UNKNOWN, found.license]
            for found in inputs]
    return [said, _table(["input", "read by", "name", "digest", "seems to be", "license"], rows)]


def _statistics(data: dict[str, Any], one: dict[str, Any]) -> list[str]:
    made = []
    for result in data["results"]:
        if result["set"] != one["name"]:
            continue
        for name, title in _SECTIONS.items():
            figures = [figure for figure in result["sections"][name]["figures"] if figure["value"] is not None]
            if figures:
                made += [f"### {title}, judged by {_safe(result['judge'])}", _figures(data, figures)]
    for network in data["networks"]:
        section = network["sets"].get(one["name"])
        if section and section["figures"]:
            made += [f"### {_SECTIONS[network['section']]}, by {_safe(network['name'])}", _safe(network["about"]),
                     _figures(data, section["figures"])]
    pixels = data["pixels"].get(one["name"])
    if pixels and pixels["figures"]:
        made += ["### Pixels", _figures(data, pixels["figures"])]
    if one["unreadable"]:
        made.append(f"{one['unreadable']:,} images could not be read and were left out.")
    return made or ["None were computed."]


def _figures(data: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    rows = [
        [data["definitions"].get(figure["id"], {}).get("title", figure["id"])
         + (f" ({figure['group']})" if figure["group"] else ""),
         f"{value_text(figure)} {error_text(figure)}".strip(),
         f"{figure['n']:,} {figure['of']}" if figure["n"] is not None else ""]
        for figure in figures
    ]
    return _table(["figure", "value, standard error", "counted over"], rows)


def _privacy(data: dict[str, Any], set_name: str) -> list[str]:
    reference = data["reference"]
    if reference is None:
        return ["Unknown: the set was not compared with the images its generator was trained on."]
    made = [f"Compared with {reference['images']:,} real images of {reference['identities']:,} people "
            f"({_safe(last_part(reference['path']))})."]
    for result in data["results"]:
        section = result["sections"]["privacy"]
        if result["set"] != set_name:
            continue
        verdict = section["verdict"]
        if verdict:
            made.append(f"**{verdict['level'].capitalize()}**, judged by {_safe(result['judge'])}: "
                        f"{_safe(verdict['text'])}")
            made.append(f"Limits: {_safe(verdict['limits'])}")
        figures = [figure for figure in section["figures"] if figure["value"] is not None]
        figures = [figure for figure in figures if "-to-" not in figure["id"]]  # the page and the JSON have those
        if figures:
            made.append(_figures(data, figures))
        made += [_safe(note) for note in section["notes"]]
    return made


def _use(one: dict[str, Any]) -> list[str]:
    people = {
        GENERATED: "No image is meant to show a real person; what was found about that stands under Privacy.",
        PHOTO: "**It shows real people; their rights hold.**",
        UNKNOWN: "It may show real people; their rights hold.",
    }[overall_origin(one["origins"])]
    return [f"Research on face recognition: training and studying recognizers. {people}",
            "Not for identifying people, for deciding about people, or for use as the only test of a recognizer."]


def _measured(data: dict[str, Any]) -> list[str]:
    judges = "\n".join(
        f"- judge {_safe(judge['name'])} ({_safe(judge['backbone'])}, {judge['input_size']} pixels, "
        f"{'with' if judge['flip'] else 'without'} flip), `{judge['digest']}`" for judge in data["judges"]
    )
    judges += "".join(f"\n- {_safe(one['name'])}, `{one['digest']}`" for one in data["networks"])
    said = f"`facesyn report` {_safe(data['facesyn'])}, seed {data['seed']}; definitions are in `report.json`."
    return [said, judges]


def _is_made(one: dict[str, Any]) -> bool:
    """True where every image was generated, as far as the headers of the stages tell."""
    return overall_origin(one["origins"]) == GENERATED


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [[_safe(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """Return a text in which nothing means anything to Markdown or HTML."""
    return printable(text).translate(_SPECIAL)


def _code(value: Any) -> str:
    """Return a value for the inside of a code span."""
    return printable(str(value)).replace("`", "'").replace("|", "/")
