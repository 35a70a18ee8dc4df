"""`facesyn report`: look at one or several image sets with one or several judges, and write down what is seen.

What the folder holds: `report.json` with everything, `report.html` to read, `README.md`, the dataset card of the
first set, `cards/` with those of the others, and `cache/` with the embeddings. Finished parts of the embeddings and
finished analyses survive a kill. Training curves and the benchmark table of the work folder are read anew, and the
page is written anew, whenever the command is run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import field_validator

from facesyn_cli import __version__, signals
from facesyn_cli.artifacts.contexts import ContextSet
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.files import read_json, write_json
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Parent, check_output, open_output, read_header
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.table import TABLE_JSON
from facesyn_cli.artifacts.work import FOLDERS, Work
from facesyn_cli.config.fields import StageConfig, identity, recorded, runtime, source
from facesyn_cli.console import is_first_process, log
from facesyn_cli.contexts.unique import Unique
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.diversity import pixel_section
from facesyn_cli.evaluation.embedding import EmbedOptions
from facesyn_cli.evaluation.figures import LEVELS, Section
from facesyn_cli.evaluation.group_figures import Groups, read_groups
from facesyn_cli.evaluation.judged_set import choose_identities, embed_cached, thumbnails_cached
from facesyn_cli.evaluation.labelled import LabelledEmbeddings
from facesyn_cli.evaluation.leakage import REFERENCE, FaceSet
from facesyn_cli.evaluation.pose import pose_section
from facesyn_cli.evaluation.score_counts import ScoreCounts, count_scores
from facesyn_cli.evaluation.set_report import Analysis, analyse, compare
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.report.card import write_card
from facesyn_cli.report.contents import HEADLINE, definitions_of, describe_set, headline_of, to_text
from facesyn_cli.report.page import write_page
from facesyn_cli.report.set_pictures import NamedSet, SetPictures
from facesyn_cli.training.metrics_log import read_lines
from facesyn_cli.training.processes import check_device, processes

REPORT = "report.json"
_MAX_LINES = 500  # of a training curve


class ReportConfig(StageConfig):
    """Settings of `facesyn report`."""

    sets: list[Path] = source([], "image sets to look at: folders, zips, packed sets; none: 4-samples of the run")
    reference: Path | None = source(None, "real training images, for leakage and quality; None: 0-images of the run")
    judges: list[Path] = source([], "weights of recognisers that judge, best not the one that was conditioned on")
    groups: Path | None = source(None, "CSV with a column `identity` or `key`, and one column an attribute")
    detector: Path | None = source(None, "YuNet, a face detector in .onnx format, for the spread of poses")
    cache: Path | None = source(None, "folder for embeddings that several reports share; None: inside the report")
    r: float = identity(0.3, "cosine above which two embeddings match, in U_class and C_intra (DCFace)", ge=-1, le=1)
    max_images: int | None = identity(None, "look at whole identities up to so many images of a set; None: all", ge=1)
    max_pairs: int = identity(500_000_000, "pairs to compute at most for one figure; above, a sample", ge=10_000)
    flip: bool = identity(True, "add the output for the mirrored image, as in verification")
    fit: Literal["square", "crop"] = identity("square", "square: resize square images; crop: cut squares out of all")
    precision: Literal["fp32", "bf16", "fp16"] = identity("fp32", "number format of the judges")
    batch_size: int = recorded(64, "images a batch", ge=1)
    workers: int = runtime(4, "threads that read and decode", ge=1)

    @field_validator("sets", "judges", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path)) else value


@dataclass(frozen=True)
class _Inputs:
    sets: list[NamedSet]
    reference: NamedSet | None
    judges: dict[str, LoadedBackbone]
    groups: tuple[str, Groups] | None
    detector: Yunet | None
    parents: dict[str, Parent]
    folder: Path

    @property
    def all_sets(self) -> list[NamedSet]:
        """The sets and the reference."""
        return [*self.sets, *([self.reference] if self.reference else [])]


@dataclass(frozen=True)
class _Small:
    """Thumbnails of a set, (N, 16, 16), and which images can be read, (N,)."""

    thumbnails: np.ndarray
    is_readable: np.ndarray


def plan(cfg: ReportConfig, work: Work) -> dict[str, Any]:
    """Say what `run` would do."""
    if cfg.device != "auto":
        check_device(cfg.device)
    inputs = _open_inputs(cfg, work)
    state = check_output(inputs.folder, "Report", cfg, inputs.parents)
    num_images = sum(len(held.entries) for held in inputs.all_sets)
    evaluations = num_images * len(inputs.judges) * (2 if cfg.flip else 1)
    return {
        "sets": {held.name: f"{len(held.entries)} of {len(held.images.entries)} images" for held in inputs.all_sets},
        "judges": {name: judge.name for name, judge in inputs.judges.items()},
        "network evaluations": 0 if state == "finished" else evaluations,
        "disk": f"{num_images * (512 * 4 * len(inputs.judges) + 256) / 2**20:.1f} MiB of embeddings",
        "folder": f"{inputs.folder} ({state})",
    }


def run(cfg: ReportConfig, work: Work) -> Outcome:
    """Analyse the sets and write the report; only the first of several processes works."""
    inputs = _open_inputs(cfg, work)
    folder = inputs.folder
    if not is_first_process():
        return Outcome(folder, {})
    pictures = SetPictures(inputs.all_sets)
    with open_output(folder, "Report", "report", cfg, inputs.parents) as output:
        data = read_json(folder / REPORT) if output.finished else _analyse_all(cfg, inputs, pictures, work)
        data |= {"training": _training(work), "benchmark": _benchmark(work)}
        write_json(folder / REPORT, data)
        write_page(folder, data, pictures)
        for number, held in enumerate(inputs.sets):
            write_card(folder / "cards" / held.name if number else folder, data, held.name)
        if not output.finished:
            num_images = sum(len(held.entries) for held in inputs.sets)
            output.finish({"sets": len(inputs.sets), "judges": len(inputs.judges), "images": num_images})
    summary = {"summary": data["summary"], "figures": headline_of(data), "comparison": data["comparison"]}
    return Outcome(folder, summary, f"{to_text(data)}\npage: {folder / 'report.html'}")


def _open_inputs(cfg: ReportConfig, work: Work) -> _Inputs:
    """Find and check every input before any work."""
    if not cfg.judges:
        raise UserError("report needs a judge, a recogniser other than the one conditioned on: --judge WEIGHTS")
    paths, reference_path = cfg.sets, cfg.reference
    if not cfg.sets:
        paths = [work.folder("samples")]
        if not paths[0].exists():
            raise UserError(f"nothing to report on: {paths[0]} does not exist; name image sets, or a run with --work")
        if reference_path is None and work.folder("images").exists():
            reference_path = work.folder("images")
    contexts = None
    if not cfg.sets and read_header(work.folder("contexts")):
        contexts = ContextSet.open(work.folder("contexts"))
    sets = [
        _open_set(name, path, cfg.max_images, cfg.seed, contexts)
        for name, path in zip(_names(paths), paths, strict=True)
    ]
    reference = _open_set(REFERENCE, reference_path, None, cfg.seed) if reference_path else None
    names = _names(cfg.judges)
    judges = {name: load_backbone(path) for name, path in zip(names, cfg.judges, strict=True)}
    parents = {f"set {held.name}": held.images.parent() for held in sets}
    parents |= {
        f"judge {name}": Parent(str(path), judges[name].digest) for name, path in zip(names, cfg.judges, strict=True)
    }
    if reference:
        parents["reference"] = reference.images.parent()
    if cfg.groups:
        parents["groups"] = Parent(str(cfg.groups), file_digest(cfg.groups))
    groups = read_groups(cfg.groups) if cfg.groups else None
    detector = Yunet(cfg.detector) if cfg.detector else None
    if detector:
        parents["detector"] = Parent(str(cfg.detector), detector.digest)
    return _Inputs(sets, reference, judges, groups, detector, parents, cfg.out or work.folder("report"))


def _open_set(
    name: str, path: Path, max_images: int | None, seed: int, contexts: ContextSet | None = None
) -> NamedSet:
    images = open_images(path)
    header = read_header(path) if path.is_dir() else None
    embedder = (header.extra.get("embedder") if header else None) or (contexts.embedder if contexts else None)
    faces = dict(zip(contexts.identities, contexts.faces, strict=True)) if contexts else {}
    return NamedSet(name, path, images, choose_identities(images, max_images, seed), embedder, faces)


def _names(paths: list[Path]) -> list[str]:
    """Return a short name for each path: its last part without suffix, with a number where two are alike."""
    names: list[str] = []
    for path in paths:
        stem = (path.resolve().name if path.is_dir() else path.stem) or "set"
        name, number = stem, 1
        while name in (*names, REFERENCE):
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def _analyse_all(cfg: ReportConfig, inputs: _Inputs, pictures: SetPictures, work: Work) -> dict[str, Any]:
    """Return the report but for what is read anew at each run."""
    cache = cfg.cache or inputs.folder / "cache"
    device = processes(cfg.device).device
    small = {held.name: _thumbnails(cfg, held, cache) for held in inputs.all_sets}
    how = Analysis(
        cfg.r, cfg.max_pairs, cfg.seed, lambda radius: Unique(radius).select, pictures.pixels, inputs.groups
    )
    results, findings, described = [], [], {}
    for judge_name, judge in inputs.judges.items():
        judge.module.to(device)
        faces = {
            held.name: _judged(cfg, held, judge_name, judge, device, small[held.name], cache)
            for held in inputs.all_sets
        }
        judge.module.to("cpu")
        training = faces.get(REFERENCE)
        counts = count_scores(training.rows, cfg.max_pairs, cfg.seed) if training else None
        for held in inputs.sets:
            found = _result(inputs.folder, held.name, judge_name, faces[held.name], training, counts, how)
            results.append({key: found[key] for key in ("set", "judge", "sections")})
            findings += found["findings"] + _about_judge(held, judge_name, judge)
            signals.check()
        for held in inputs.all_sets:
            run_of = work if not cfg.sets and held is inputs.sets[0] else None
            described.setdefault(held.name, describe_set(held, faces[held.name].rows, run_of))
    names = [held.name for held in inputs.sets]
    results.sort(key=lambda result: names.index(result["set"]))
    data = {
        "schema": 1, "facesyn": __version__, "command": "report", "title": ", ".join(names), "seed": cfg.seed,
        "sets": [described[name] for name in names],
        "reference": described.get(REFERENCE),
        "judges": [
            {"name": name, "backbone": judge.name, "digest": judge.digest, "input_size": judge.input_size,
             "flip": cfg.flip} for name, judge in inputs.judges.items()
        ],
        "summary": sorted(findings, key=lambda finding: LEVELS.index(finding["level"])),
        "headline": list(HEADLINE), "results": results,
        "pixels": {
            held.name: _pixels(held, small[held.name], pictures, inputs.detector, cfg.seed).to_json()
            for held in inputs.sets
        },
        "comparison": compare(results, names),
    }
    return data | {"definitions": definitions_of(data)}


def _thumbnails(cfg: ReportConfig, held: NamedSet, cache: Path) -> _Small:
    folder = cache / f"{held.name}-{_short([held.images.digest, _keys(held)])}-thumbnails"
    return _Small(*thumbnails_cached(held.images, held.entries, folder, cfg.workers, f"{held.name}: pixels"))


def _judged(
    cfg: ReportConfig, held: NamedSet, judge_name: str, judge: LoadedBackbone, device: torch.device, small: _Small,
    cache: Path,
) -> FaceSet:
    """Return a set as a judge sees it: embeddings (cached) and thumbnails of the images that can be embedded."""
    options = EmbedOptions(
        size=judge.input_size, batch_size=cfg.batch_size, device=device, flip=cfg.flip, fit=cfg.fit,
        precision=cfg.precision, workers=cfg.workers,
    )
    content = [held.images.digest, _keys(held), judge.digest, cfg.flip, cfg.fit, cfg.precision]
    folder = cache / f"{held.name}-{_short(content)}-{judge_name}"
    title = f"{held.name}: embed with {judge_name}"
    vectors, good = embed_cached(held.images, held.entries, judge.module, options, folder, title)
    keep = np.flatnonzero(good & small.is_readable)
    if len(keep) < len(good):
        log.warning(f"{held.name}: {len(good) - len(keep)} of {len(good)} images could not be embedded by {judge_name}")
    entries = [held.entries[row] for row in keep]
    vectors = vectors if len(keep) == len(good) else vectors[keep]
    rows = LabelledEmbeddings.of([e.key for e in entries], [e.identity for e in entries], vectors)
    place = {entry.key: row for row, entry in zip(keep, entries, strict=True)}
    return FaceSet(held.name, rows, small.thumbnails[[place[key] for key in rows.keys]])


def _result(
    folder: Path, set_name: str, judge_name: str, own: FaceSet, training: FaceSet | None, counts: ScoreCounts | None,
    how: Analysis,
) -> dict[str, Any]:
    """Return the sections of one set and judge, from disk when an earlier run got that far."""
    path = folder / "results" / set_name / f"{judge_name}.json"
    if path.is_file():
        try:
            return read_json(path)
        except UserError:
            log.warning(f"{path} is damaged; computing it again")
    sections = analyse(own, training, counts, how)
    findings = [
        {**vars(finding), "set": set_name, "judge": judge_name, "section": name}
        for name, section in sections.items() for finding in section.findings
    ]
    contents = {name: section.to_json() for name, section in sections.items()}
    found = {"set": set_name, "judge": judge_name, "sections": contents, "findings": findings}
    write_json(path, found)
    return found


def _about_judge(held: NamedSet, judge_name: str, judge: LoadedBackbone) -> list[dict[str, Any]]:
    """Point out a judge whose embeddings the set was made from: it sees what it asked for."""
    if held.embedder != judge.digest:
        return []
    text = f"{judge_name} is the network that {held.name} was conditioned on: the generator was asked to please it, " \
           "so its figures are better than those of any other judge. Give another one with --judge."
    return [{"level": "warning", "set": held.name, "judge": judge_name, "section": "identity", "text": text,
             "figures": [], "lists": []}]


def _pixels(held: NamedSet, small: _Small, pictures: SetPictures, detector: Yunet | None, seed: int) -> Section:
    """Return what can be seen without a judge."""
    names = {name: number for number, name in enumerate(dict.fromkeys(entry.identity for entry in held.entries))}
    owner = np.array([names[entry.identity] for entry in held.entries])
    section = pixel_section(small.thumbnails[small.is_readable], owner[small.is_readable])
    if detector is None:
        section.notes.append("The spread of poses needs a face detector (detector=FILE, YuNet).")
        return section
    keys = [entry.key for entry in held.entries]
    log.info(f"{held.name}: poses")
    return section.merge(pose_section(keys, owner, lambda key: pictures.pixels(held.name, key), detector.find, seed))


def _training(work: Work) -> dict[str, Any]:
    """Training curves of the run, thinned."""
    curves: dict[str, Any] = {}
    for name in ("ldm", "fr"):
        lines = read_lines(work.folder(name) / "metrics.jsonl")
        step = max(1, -(-len(lines) // _MAX_LINES))
        curves[name] = {"path": FOLDERS[name], "lines": lines[::step]} if lines else None
    return curves


def _benchmark(work: Work) -> dict[str, Any] | None:
    path = work.folder("table") / TABLE_JSON
    return {**read_json(path), "path": FOLDERS["table"]} if path.is_file() else None


def _keys(held: NamedSet) -> str:
    return json_digest([entry.key for entry in held.entries])


def _short(values: list[Any]) -> str:
    return json_digest(values).removeprefix("sha256:")[:16]
