"""`facesyn report`: measures image sets with judge recognizers; writes results as JSON, a page and dataset cards.

The folder holds `report.json` with all results, `report.html`, `README.md` (the dataset card of the first set),
`cards/` (those of the other sets) and `cache/` (embeddings). Parts of the embeddings and the results of each set and
network are kept when a run is killed. Training curves and the benchmark table of the work folder are read again, and
page and cards are written again, at every run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from facesyn_cli import __version__, distributed, signals
from facesyn_cli.artifacts.atomic_files import update_json
from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Parent, read_header
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result, batch_setting, input_path, runtime_only
from facesyn_cli.console import log
from facesyn_cli.contexts.unique import Unique
from facesyn_cli.distributed import choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.all_metrics import headline
from facesyn_cli.evaluation.embedding import EmbedOptions, current_fit, settle_precision
from facesyn_cli.evaluation.fairness import read_groups
from facesyn_cli.evaluation.leakage import REFERENCE
from facesyn_cli.evaluation.score_counts import count_scores
from facesyn_cli.evaluation.section import LEVELS
from facesyn_cli.evaluation.set_report import Analysis, analyze, compare
from facesyn_cli.models.feature_maps import has_feature_maps
from facesyn_cli.models.inception import load_features
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.models.lpips import load_lpips
from facesyn_cli.models.precision import PrecisionOrAuto
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.report.card import write_card
from facesyn_cli.report.contents import (
    benchmark_results,
    blocks,
    definitions_of,
    describe_set,
    headline_of,
    read_results,
    table_folder,
    training_curves,
)
from facesyn_cli.report.gallery import BYTES_PER_IMAGE
from facesyn_cli.report.measured_sets import Measurer, pixels_of
from facesyn_cli.report.network_passes import Passes, ReportInputs, Samples, run_networks
from facesyn_cli.report.network_results import CachedResults, NetworkResults, by_features, by_lpips
from facesyn_cli.report.page import write_page
from facesyn_cli.report.provenance import about_judge, about_origins
from facesyn_cli.report.report_gallery import add_gallery, gallery_link
from facesyn_cli.report.set_pictures import NamedSet, SetPictures, short_names
from facesyn_cli.training.metrics_log import read_lines

REPORT = "report.json"


class ReportConfig(StageConfig):
    """Settings of `facesyn report`."""

    sets: list[Path] = input_path([], "image sets: folders, zips or packed sets; none: 4-samples of the run")
    reference: Path | None = input_path(
        None, "real training images, for leakage and quality; None: 0-images of the run"
    )
    judges: list[Path] = input_path([], "weights of judge recognizers, best not the one conditioned on")
    groups: Path | None = input_path(None, "CSV with a column `identity` or `key`, and one column an attribute")
    detector: Path | None = input_path(None, "YuNet, a face detector in .onnx format, for the spread of poses")
    features: Path | None = input_path(None, "weights of Inception-v3, torchvision's or FID's: distances in it")
    perceptual: list[Path] = input_path([], "the two files of LPIPS: torchvision's alexnet or vgg16, linear layers")
    table: Path | None = input_path(None, "benchmark table of `eval`, a folder or table.json; None: 8-table of the run")
    cache: Path | None = input_path(None, "folder for embeddings that several reports share; None: inside the report")
    r: float = affects_result(
        0.3, "cosine above which two embeddings match, in U_class and C_intra (DCFace)", ge=-1, le=1
    )
    max_images: int | None = affects_result(
        None, "images of a set to measure at most, whole identities; None: all", ge=1
    )
    max_pairs: int = affects_result(500_000_000, "pairs to compute at most for one figure; else a sample", ge=10_000)
    feature_images: int = affects_result(10_000, "images of a set that Inception sees at most, drawn at random", ge=10)
    perceptual_images: int = affects_result(1200, "images of a set for perceptual distances; 0: none", ge=0)
    gallery_images: int | None = runtime_only(
        50_000, "images of a set in the gallery at most, as whole identities drawn at random; 0: none; None: all", ge=0
    )
    flip: bool = affects_result(True, "add the output for the mirrored image, as in verification")
    fit: Literal["square", "refuse"] = affects_result(
        "square", "images that are not square: square takes the central square, refuse leaves them out"
    )
    precision: PrecisionOrAuto = affects_result(
        "fp32", "number format of the judges; auto: bf16 where a measurement at the start pays"
    )
    batch_size: int = batch_setting(64, "images a batch", ge=1)
    workers: int = runtime_only(4, "threads that read and decode, per process", ge=1)

    _current_fit = field_validator("fit", mode="before")(current_fit)

    @field_validator("sets", "judges", "perceptual", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path)) else value


def plan(cfg: ReportConfig, work: Work) -> Plan:
    """Return what `run` would do."""
    device = choose_device(cfg.device)  # an error here, not only in the run
    inputs = _open_inputs(cfg, work)
    cfg = settle_precision(cfg, inputs.folder, "Report", inputs.first_judge, device)
    state = check_output(inputs.folder, "Report", cfg, inputs.parents)
    sizes = [len(held.entries) for held in inputs.all_sets]
    perceptual = sum(min(size, cfg.perceptual_images) for size in sizes)
    evaluations = {
        name: sum(sizes) * (2 if cfg.flip else 1) + perceptual * has_feature_maps(judge.module)
        for name, judge in inputs.judges.items()
    }
    if inputs.features:
        evaluations[inputs.features.name] = sum(min(size, cfg.feature_images) for size in sizes)
    if inputs.lpips:
        evaluations[inputs.lpips.name] = perceptual
    most = cfg.gallery_images
    gallery = sum(len(held.entries) if most is None else min(len(held.entries), most) for held in inputs.sets)
    return Plan(
        inputs.folder, state, {name: parent.path for name, parent in inputs.parents.items()},
        {"sets": len(inputs.sets), "judges": len(inputs.judges), "images": sum(sizes)},
        {name: 0 if state == "finished" else count for name, count in evaluations.items()},
        disk_mib=(sum(sizes) * (512 * 4 * len(inputs.judges) + 256) + gallery * BYTES_PER_IMAGE) / 2**20,
        chosen={
            "sets": {held.name: f"{len(held.entries)} of {len(held.images.entries)} images"
                     for held in inputs.all_sets},
            "judges": {name: judge.name for name, judge in inputs.judges.items()}, "precision": cfg.precision,
        },
    )


def run(cfg: ReportConfig, work: Work) -> Outcome:
    """Measure the sets and write the report: networks run in all processes, the analyses in the first one."""
    processes = distributed.processes(cfg.device)
    inputs = _open_inputs(cfg, work)
    cfg = settle_precision(cfg, inputs.folder, "Report", inputs.first_judge, processes.device, processes)
    pictures, kept = SetPictures(inputs.all_sets), CachedResults(inputs.folder / "results")
    measurer = Measurer(cfg.cache or inputs.folder / "cache", EmbedOptions(
        0, cfg.batch_size, processes.device, flip=cfg.flip, fit=cfg.fit, precision=cfg.precision, workers=cfg.workers
    ))
    with open_shared_output(processes, inputs.folder, "Report", "report", cfg, inputs.parents) as output:
        passes = None
        if not output.finished:
            samples = Samples(cfg.feature_images, cfg.perceptual_images, cfg.seed)
            passes = run_networks(inputs, measurer, kept, pictures, samples, processes)

        def write() -> Outcome:
            data = _analyze(cfg, inputs, pictures, work, measurer, kept, passes) if passes else None
            return _write(cfg, inputs, pictures, work, output, measurer, data)

        return processes.from_first(write)


def _write(
    cfg: ReportConfig, inputs: ReportInputs, pictures: SetPictures, work: Work, output: Output, measurer: Measurer,
    data: dict[str, Any] | None,
) -> Outcome:
    """Write all files of the report from its data, None: those of a finished report, and what is read again."""
    folder = inputs.folder
    data = read_results(folder / REPORT) if data is None else data
    logs = {name: read_lines(work.folder(name) / "metrics.jsonl") for name in ("ldm", "fr")}
    data |= {"training": training_curves(logs), "benchmark": benchmark_results(cfg.table, work)}
    data["definitions"] = definitions_of(data)
    update_json(folder / REPORT, data)
    add_gallery(inputs, pictures, measurer, data, cfg.gallery_images, cfg.max_pairs, cfg.seed)
    write_page(folder, data, pictures, gallery_link(folder))
    for number, held in enumerate(inputs.sets):
        write_card(folder / "cards" / held.name if number else folder, data, held.name)
    if not output.finished:
        num_images = sum(len(held.entries) for held in inputs.sets)
        output.finish({"sets": len(inputs.sets), "judges": len(inputs.judges), "images": num_images})
    summary = {"summary": data["summary"], "figures": headline_of(data), "comparison": data["comparison"]}
    return Outcome(folder, summary, [*blocks(data), f"page: {folder / 'report.html'}"])


def _open_inputs(cfg: ReportConfig, work: Work) -> ReportInputs:
    """Open and check every input."""
    if not cfg.judges:
        raise UserError("report needs a judge recognizer, other than the one conditioned on: --judge WEIGHTS")
    paths, reference_path = cfg.sets, cfg.reference
    if not cfg.sets:
        paths = [work.folder("samples")]
        if not paths[0].exists():
            raise missing_input(paths[0], "a set of images", "the image sets to report on")
        if reference_path is None and work.folder("images").exists():
            reference_path = work.folder("images")
    contexts = None
    if not cfg.sets and read_header(work.folder("contexts")):
        contexts = ContextSet.open(work.folder("contexts"))
    sets = [
        NamedSet.open(name, path, cfg.max_images, cfg.seed, contexts) for name, path in short_names(paths).items()
    ]
    reference = NamedSet.open(REFERENCE, reference_path, None, cfg.seed) if reference_path else None
    judge_paths = short_names(cfg.judges)
    judges = {name: load_backbone(path) for name, path in judge_paths.items()}
    parents = {f"set {held.name}": held.images.parent() for held in sets}
    parents |= {f"judge {name}": Parent(str(path), judges[name].digest) for name, path in judge_paths.items()}
    if reference:
        parents["reference"] = reference.images.parent()
    if cfg.groups:
        parents["groups"] = Parent(str(cfg.groups), file_digest(cfg.groups))
    groups = read_groups(cfg.groups) if cfg.groups else None
    detector = Yunet(cfg.detector) if cfg.detector else None
    if detector:
        parents["detector"] = Parent(str(cfg.detector), detector.digest)
    if cfg.features and reference is None:
        raise UserError("distances in Inception's features need real images: --reference")
    features = load_features(cfg.features) if cfg.features else None
    if features:
        parents["features"] = Parent(str(cfg.features), features.digest)
    lpips = load_lpips(cfg.perceptual) if cfg.perceptual else None
    if lpips:
        parents["perceptual"] = Parent(", ".join(map(str, cfg.perceptual)), lpips.digest)
    if cfg.table:
        BenchmarkTable.read(table_folder(cfg.table))
    folder = cfg.out or work.folder("report")
    return ReportInputs(sets, reference, judges, groups, detector, features, lpips, parents, folder)


def _analyze(
    cfg: ReportConfig, inputs: ReportInputs, pictures: SetPictures, work: Work, measurer: Measurer,
    kept: CachedResults, passes: Passes,
) -> dict[str, Any]:
    """Return the content of `report.json` without what is read again at each run."""
    how = Analysis(
        cfg.r, cfg.max_pairs, cfg.seed, lambda radius: Unique(radius).select, pictures.pixels, inputs.groups
    )
    results, findings, described = [], [], {}
    for judge_name, judge in inputs.judges.items():
        judge.module.to(measurer.options.device)  # for parts of the cache that are damaged
        faces = {
            held.name: measurer.faces(held, judge_name, judge, passes.small[held.name]) for held in inputs.all_sets
        }
        for held in inputs.all_sets:
            if lost := len(held.entries) - len(faces[held.name].keys):
                log.warning(f"{held.name}: {lost} of {len(held.entries)} images could not be embedded by {judge_name}")
        training = faces.get(REFERENCE)
        counts = count_scores(training, cfg.max_pairs, cfg.seed) if training else None
        with_space = replace(how, perceptual=passes.spaces.get(judge_name))
        for held in inputs.sets:
            compute = partial(analyze, faces[held.name], training, counts, with_space, held.photos)
            found = kept.of(held.name, judge_name, compute)
            results.append({key: found[key] for key in ("set", "judge", "sections")})
            known = {(one["set"], one["text"]) for one in findings if one["section"] == "diversity"}
            findings += [one for one in found["findings"] if (one["set"], one["text"]) not in known]  # of pixels
            findings += about_judge(held.name, judge_name, held.embedder == judge.digest)
            signals.check()
        judge.module.to("cpu")
        for held in inputs.all_sets:
            run_of = work if not cfg.sets and held is inputs.sets[0] else None
            described.setdefault(held.name, describe_set(held, faces[held.name], run_of))
    findings += [finding for held in inputs.sets for finding in about_origins(described[held.name])]
    names = [held.name for held in inputs.sets]
    results.sort(key=lambda result: names.index(result["set"]))
    networks = _networks(cfg, inputs, measurer, kept, passes)
    others = [result for network in networks for result in network.results]
    findings += [finding for result in others for finding in result["findings"]]
    return {
        "schema": 1, "facesyn": __version__, "command": "report", "title": ", ".join(names), "seed": cfg.seed,
        "sets": [described[name] for name in names],
        "reference": described.get(REFERENCE),
        "judges": [
            {"name": name, "backbone": judge.name, "digest": judge.digest, "input_size": judge.input_size,
             "flip": cfg.flip, "path": inputs.parents[f"judge {name}"].path} for name, judge in inputs.judges.items()
        ],
        "summary": sorted(findings, key=lambda finding: LEVELS.index(finding["level"])),
        "headline": headline(), "results": results,
        "networks": [network.to_json() for network in networks],
        "pixels": {
            held.name: pixels_of(
                held, passes.small[held.name], passes.measured[held.name], inputs.detector is not None, cfg.seed
            ).to_json() for held in inputs.all_sets
        },
        "comparison": compare(results + others, names),
    }


def _networks(
    cfg: ReportConfig, inputs: ReportInputs, measurer: Measurer, kept: CachedResults, passes: Passes
) -> list[NetworkResults]:
    """Return the results of Inception and LPIPS, where their weights are given."""
    found = []
    if inputs.features and inputs.reference:
        found.append(by_features(
            inputs.features, inputs.sets, inputs.reference, measurer, kept, cfg.feature_images, cfg.seed
        ))
    if inputs.lpips and cfg.perceptual_images:
        space = passes.spaces[inputs.lpips.name]
        found.append(by_lpips(inputs.lpips, inputs.sets, inputs.reference, passes.small, space, kept))
    return found
