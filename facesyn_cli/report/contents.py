"""The parts of `report.json` beside the results: sets, training curves, benchmark table, definitions, headline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import read_json
from facesyn_cli.artifacts.benchmark_table import TABLE_JSON, BenchmarkTable
from facesyn_cli.artifacts.header import Header, read_header
from facesyn_cli.artifacts.origins import origins_of
from facesyn_cli.artifacts.text_tables import Block, Column, Table
from facesyn_cli.artifacts.work import FOLDERS, Work
from facesyn_cli.evaluation.all_metrics import define
from facesyn_cli.evaluation.fairness import benchmark_groups
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.report.figure_text import value_text
from facesyn_cli.report.set_pictures import NamedSet

_OLD_ID = re.compile(r'("(?:fairness\.)?(?:identity|diversity|privacy)\.[a-z_-]*)centre')
_TIMES = ("images_per_s", "seconds")
_MAX_LINES = 500  # of a training curve
_RANDOM, _STRIPS, _STRIP_IMAGES = 64, 12, 10


def read_results(path: Path) -> Any:
    """Return a file of results; ids of releases that spelled `centre` are brought to today's spelling.

    Raises:
        UserError: It cannot be read.
    """
    return json.loads(_OLD_ID.sub(r"\1center", json.dumps(read_json(path), ensure_ascii=False)))


def describe_set(held: NamedSet, rows: LabeledEmbeddings, work: Work | None) -> dict[str, Any]:
    """Return the description of a set: counts, header, stages of its run, and a choice of images to show.

    Args:
        held: The set.
        rows: Those of its images that could be embedded.
        work: The run that made it; None when it was named on its own.
    """
    header = read_header(held.path) if held.path.is_dir() else None
    names, sizes = rows.identities, rows.sizes
    spread = np.unique(np.linspace(0, len(names) - 1, min(_STRIPS, len(names))).round().astype(int))
    picked = np.unique(np.linspace(0, len(rows.keys) - 1, _RANDOM).round().astype(int))
    return {
        "name": held.name, "path": str(held.path), "digest": held.images.digest,
        "images": len(rows.keys), "identities": len(names), "of_images": len(held.images.entries),
        "origins": origins_of(held.images.named_in or held.path, len(held.images.entries)),
        "unreadable": len(held.entries) - len(rows.keys),
        "per_identity": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "header": _header_json(header) if header else None,
        "chain": _chain(work) if work else [],
        "conditioned_on": held.embedder,
        "random": [rows.keys[row] for row in picked],
        "strips": [
            {"identity": names[c], "keys": rows.keys[rows.rows_of(c)][:_STRIP_IMAGES],
             "context_face": bool(held.faces.get(names[c]))} for c in spread
        ],
    }


def training_curves(logs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the training curves of a run, thinned, without speeds (which differ from run to run).

    Args:
        logs: Lines of the metrics log of `ldm` and `fr`; empty where there is none.
    """
    curves: dict[str, Any] = {}
    for name, log in logs.items():
        lines = [{key: value for key, value in line.items() if key not in _TIMES} for line in log]
        curves[name] = {"path": FOLDERS[name], "lines": _thinned(lines)} if lines else None
    return curves


def benchmark_results(path: Path | None, work: Work) -> dict[str, Any] | None:
    """Return a benchmark table, by default that of the run, with its figures by group; None where there is none."""
    folder = table_folder(path) if path else work.folder("table")
    if not (folder / TABLE_JSON).is_file():
        return None
    table = BenchmarkTable.read(folder)
    groups = benchmark_groups(table)
    return {**table.to_json(), "path": str(path) if path else FOLDERS["table"],
            "fairness": groups.to_json() if groups.figures else None}


def table_folder(path: Path) -> Path:
    """Return the folder of a benchmark table that is given as its folder or its `table.json`."""
    return path.parent if path.name == TABLE_JSON else path


def definitions_of(data: dict[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return the definitions of all metrics of a report."""
    sections = [section for result in data["results"] for section in result["sections"].values()]
    sections += data["pixels"].values()
    sections += [section for network in data["networks"] for section in network["sets"].values()]
    if data["benchmark"] and data["benchmark"]["fairness"]:
        sections.append(data["benchmark"]["fairness"])
    kinds = ("figures", "histograms", "curves", "lists")
    found = {item["id"] for section in sections for kind in kinds for item in section[kind]}
    return define(sorted(found | set(data["headline"])))


def headline_of(data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the most important figures of every set and judge."""
    return {f"{name}, by {network}": {key: figure["value"] for key, figure in figures.items()}
            for (name, network), figures in _headline_figures(data).items()}


def blocks(data: dict[str, Any]) -> list[Block]:
    """Return headline figures as a table, one column for each set and judge, and the findings."""
    found = _headline_figures(data)
    names = [name for name in data["headline"] if any(name in figures for figures in found.values())]
    networks = {network for _, network in found}
    titles = [name if len(networks) == 1 else f"{name}, by {network}" for name, network in found]
    columns = [Column("figure", is_text=True), *(Column(title, rank=number) for number, title in enumerate(titles))]
    rows = [[data["definitions"][name]["title"], *(_value(figures.get(name)) for figures in found.values()),
             data["definitions"][name]["better"] or ""] for name in names]
    findings = [f"{one['level']}: {one['text']}" if one["set"] in one["text"]
                else f"{one['level']}: {one['set']}: {one['text']}" for one in data["summary"]]
    table = Table([*columns, Column("better", is_text=True, rank=len(titles))], rows)
    about = [f"measured by {network}" for network in networks if len(networks) == 1]
    return [*about, table, *(["\n".join(findings)] if findings else [])]


def _value(figure: dict[str, Any] | None) -> str:
    return "" if figure is None else value_text(figure)


def _headline_figures(data: dict[str, Any]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Return the most important figures by (set, network that measured it)."""
    found = {
        (result["set"], f"judge {result['judge']}"): list(result["sections"].values()) for result in data["results"]
    }
    for network in data["networks"]:
        found |= {(name, network["name"]): [section] for name, section in network["sets"].items()}
    table = {}
    for place, sections in found.items():
        figures = {figure["id"]: figure for section in sections for figure in section["figures"]
                   if figure["group"] is None and figure["value"] is not None}
        table[place] = {name: figures[name] for name in data["headline"] if name in figures}
    return table


def _header_json(header: Header) -> dict[str, Any]:
    names = ("kind", "command", "package_version", "config", "counts", "extra")
    parents = {name: vars(parent) for name, parent in header.parents.items()}
    return {**{name: getattr(header, name) for name in names}, "parents": parents}


def _chain(work: Work) -> list[dict[str, Any]]:
    """Return the headers of the finished stages of a run, in order."""
    headers = {folder: read_header(work.path / folder) for folder in FOLDERS.values()}
    return [
        {"folder": folder, **_header_json(header), "digest": header.digest}
        for folder, header in headers.items() if header and header.kind != "Report"
    ]


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every n-th line of each kind of lines, with the last one; rare lines, as of a validation, stay."""
    kinds: dict[frozenset[str], list[int]] = {}
    for number, line in enumerate(lines):
        kinds.setdefault(frozenset(line), []).append(number)
    kept = [number for numbers in kinds.values() for number in numbers[::-1][:: -(-len(numbers) // _MAX_LINES)]]
    return [lines[number] for number in sorted(kept)]
