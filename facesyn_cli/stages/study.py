"""`facesyn study`: a table of schedulers, numbers of steps and identity methods on one LDM.

Every row of settings is sampled in memory for the same identities and seeds, scored with a judge recognizer, and
compared with the same images after many DDIM steps. The result of a row under one seed is written at once, so a killed
study resumes with the next one; `seeds` may be raised later.
"""

from __future__ import annotations

import time
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator

from facesyn_cli import distributed, signals
from facesyn_cli.artifacts.atomic_files import read_json, write_atomically, write_json, write_text
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result, batch_setting, growable, input_path, runtime_only
from facesyn_cli.console import log
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.diffusion.scheduler_choice import default_scheduler
from facesyn_cli.distributed import choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.evaluation.study_table import StudyRow, figures_of, to_csv, to_table
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.progress import Progress, progress
from facesyn_cli.sampling.conditions import Conditions, open_conditions
from facesyn_cli.sampling.consistency import SampleFilter
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.inference import InferenceOptions
from facesyn_cli.sampling.inputs import SampleInputs, existing_input, open_inputs
from facesyn_cli.sampling.pipeline import LdmPipeline
from facesyn_cli.sampling.rejection_sampling import RejectionSampling, open_filter
from facesyn_cli.sampling.study_rows import Method, RowSettings, named_method, study_rows
from facesyn_cli.sampling.workers import choose_batch_size, num_workers, one_core_each
from facesyn_cli.untrusted.arrays import read_archive


class StudyConfig(StageConfig):
    """Settings of `facesyn study`."""

    ldm: Path | None = input_path(None, "folder written by train-ldm, or a published checkpoint; None: 2-ldm")
    autoencoder: Path | None = input_path(None, "autoencoder weights; None: what the LDM was trained with")
    contexts: Path | None = input_path(None, "folder written by gen-contexts, or a published .npy; None: 3-contexts")
    judge: Path | None = input_path(None, "weights of the judge: a recognizer other than the one behind the contexts")
    ids: int = affects_result(50, "identities, the first of the contexts", ge=2)
    per_id: int = affects_result(10, "images of each identity", ge=2)
    seeds: int = growable(3, "how many seeds, counted from `seed`", ge=1)
    schedulers: list[str] = affects_result(["ddim", "dpm-solver++", "unipc", "ddpm"], "schedulers of the grid")
    steps: list[int] = affects_result([5, 10, 20, 50], "steps of the grid")
    methods: list[Method] = affects_result([], "identity methods, one row each: plugin names, or sections with a name")
    method_scheduler: str = affects_result("ddim", "scheduler of the rows of methods")
    method_steps: int = affects_result(50, "steps of the rows of methods", ge=1)
    reference_steps: int = affects_result(
        200, "steps of the images that all others are compared with; of ddim, or of flow-euler where the LDM predicts "
        "flow", ge=1
    )
    precision: Literal["fp32", "bf16", "fp16"] = affects_result("fp32", "number format of the denoiser")
    batch_size: int | None = batch_setting(None, "images a batch; None: 64 on a GPU, 8 on a CPU", ge=1)
    assume_embedder: str | None = runtime_only(None, "recognizer behind published files that carry none")
    workers: int | None = runtime_only(None, "batches computed at once on a CPU, one core each; None: all cores", ge=1)

    @field_validator("steps", "schedulers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, (str, int)):
            return [word.strip() for word in str(value).split(",") if word.strip()]
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _name_methods(cls, value: Any) -> Any:
        value = [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
        return [named_method(item) for item in value] if isinstance(value, list) else value


def plan(cfg: StudyConfig, work: Work) -> Plan:
    """Return what `run` would do: rows, images, network evaluations without rejected draws."""
    study = _Study(cfg, work, choose_device(cfg.device))
    state = check_output(study.folder, "Study", study.cfg, study.parents)
    todo = [] if state == "finished" else [task for task in study.tasks() if study.read(*task) is None]
    images = len(todo) * study.num_images
    return Plan(
        study.folder,
        state,
        {name: parent.path for name, parent in study.parents.items()},
        {"rows": len(study.rows), "seeds": cfg.seeds, "rows_left": len(todo), "images_left": images},
        {
            "denoiser": sum(study.pipeline(row).evaluations for row, _ in todo) * study.num_images,
            "decoder": images, "judge": images,
        },
    )


def run(cfg: StudyConfig, work: Work) -> Outcome:
    """Sample and score every row, and write the table.

    Raises:
        UserError: An input is missing or wrong.
    """
    processes = distributed.processes(cfg.device)
    study = _Study(cfg, work, processes.device)
    with open_shared_output(processes, study.folder, "Study", "study", study.cfg, study.parents) as output:
        if not output.finished:
            tasks = study.tasks()
            with progress("study", len(tasks) * study.num_images) as bar:
                for part in (tasks[: cfg.seeds], tasks[cfg.seeds :]):  # all rows are compared with the reference
                    for row, seed in share(part, processes.rank, processes.world_size):
                        if study.read(row, seed) is None:
                            study.measure(row, seed, processes.world_size, bar)
                        else:
                            bar.advance(study.num_images)
                        signals.check()
                    processes.barrier()
            if processes.is_first:
                study.write_tables()
                output.finish(counts={"rows": len(study.rows), "seeds": cfg.seeds, "images": study.num_images})
            processes.barrier()
    rows = study.table()
    found = [{**row.to_json(), "images_per_second": row.speeds} for row in rows]
    return Outcome(study.folder, {"rows": found}, [to_table(rows, has_speeds=True)])


def _with_schedulers(cfg: StudyConfig, prediction: str) -> StudyConfig:
    """Return settings with flow schedulers where none are stated and the LDM predicts flow."""
    of_flow = {"schedulers": ["flow-euler", "flow-heun"], "method_scheduler": "flow-euler"}
    missing = {name: value for name, value in of_flow.items() if name not in cfg.model_fields_set}
    if prediction != "flow" or not missing:
        return cfg
    log.info(f"the LDM predicts flow: {', '.join(missing)} not stated, flow schedulers are used")
    return cfg.model_copy(update=missing)


class _Study:
    """The inputs, the rows, and the results so far."""

    def __init__(self, cfg: StudyConfig, work: Work, device: torch.device) -> None:
        if cfg.judge is None:
            raise UserError("study needs a judge, the weights of a face recognizer: --judge FILE")
        self.device = device
        self.folder = cfg.out or work.path / "study"
        self.inputs: SampleInputs = open_inputs(
            existing_input(cfg.contexts, work, "contexts", "gen-contexts"),
            existing_input(cfg.ldm, work, "ldm", "train-ldm"),
            cfg.autoencoder,
            cfg.ids,
            cfg.assume_embedder,
        )
        prediction = self.inputs.ldm.config.prediction
        self.cfg = cfg = _with_schedulers(cfg, prediction)
        self.reference = default_scheduler(prediction, "ddim").name, cfg.reference_steps
        self._judge: LoadedBackbone = load_backbone(cfg.judge)
        if self._judge.digest == self.inputs.embedder:
            log.warning(f"the judge {cfg.judge} is the recognizer behind the contexts: its scores are too favorable")
        self.parents = {**self.inputs.parents, "judge": Parent(str(cfg.judge), self._judge.digest)}
        self.rows = study_rows(
            cfg.schedulers, cfg.steps, cfg.methods, (cfg.method_scheduler, cfg.method_steps), self.reference
        )
        self.batch_size = choose_batch_size(cfg.batch_size, device, self.num_images, lambda count: None)
        self._networks = LdmPipeline.of(
            self.inputs.ldm, self.inputs.autoencoder, self.rows[0].scheduler, None, device,
            InferenceOptions(cfg.precision),
        )
        self._filters: dict[str, tuple[SampleFilter, LoadedBackbone]] = {}
        for row in self.rows:
            self.parents.update(self._check(row))

    @property
    def num_images(self) -> int:
        """Images of a row under one seed."""
        return self.cfg.ids * self.cfg.per_id

    def tasks(self) -> list[tuple[RowSettings, int]]:
        """Return all (row, seed), the reference first."""
        return [(row, self.cfg.seed + k) for row in self.rows for k in range(self.cfg.seeds)]

    def pipeline(self, row: RowSettings) -> LdmPipeline:
        """Return what draws the images of a row.

        Raises:
            UserError: Its scheduler or guidance does not fit the LDM.
        """
        return self._networks.using(row.scheduler, row.guidance)

    def measure(self, row: RowSettings, seed: int, num_processes: int, bar: Progress) -> None:
        """Sample and score one row under one seed, and write the result."""
        start = time.perf_counter()
        pixels, num_draws = self._sample(row, seed, num_processes, bar)
        seconds = time.perf_counter() - start
        vectors = FaceEmbedder.of(self._judge, self.device).embed(pixels)
        reference = None
        if row is not self.rows[0]:
            stored = read_archive(self._reference_path(seed), "images of the reference", ("vectors", "pixels"))
            reference = stored["vectors"], stored["pixels"]
        figures = figures_of(vectors, pixels, self.cfg.per_id, reference)
        figures["draws"] = num_draws
        if row is self.rows[0]:
            with write_atomically(self._reference_path(seed)) as temporary, open(temporary, "wb") as file:
                np.savez(file, vectors=vectors, pixels=pixels)
        write_json(self._path(row, seed, "speed"), {"images_per_second": len(pixels) / seconds})
        write_json(self._path(row, seed), figures)

    def read(self, row: RowSettings, seed: int) -> dict[str, float | None] | None:
        """Return the result of an earlier run, or None."""
        path = self._path(row, seed)
        if not path.is_file() or (row is self.rows[0] and not self._reference_path(seed).is_file()):
            return None
        try:
            return dict(read_json(path))
        except (UserError, TypeError, ValueError):
            log.warning(f"{path} is damaged, measuring it again")
            return None

    def table(self) -> list[StudyRow]:
        """Return all rows with their results.

        Raises:
            UserError: A result is missing.
        """
        rows = []
        for row in self.rows:
            found = [self.read(row, self.cfg.seed + k) for k in range(self.cfg.seeds)]
            for figures in filter(None, found):
                figures.pop("images_per_second", None)  # earlier versions kept it here
            if any(figures is None for figures in found):
                raise UserError(f"{self._path(row, self.cfg.seed)}: this result is missing; run the same command again")
            draws = np.mean([figures.pop("draws") for figures in found]) / self.num_images
            method = row.method.name if row.method else ""
            evaluations = float(draws * self.pipeline(row).evaluations)
            speeds = (self._speed(row, self.cfg.seed + k) for k in range(self.cfg.seeds))
            known = [speed for speed in speeds if speed is not None]
            rows.append(StudyRow(row.scheduler.name, row.scheduler.steps, method, evaluations, found, known))
        return rows

    def write_tables(self) -> None:
        """Write study.json, study.csv and study.md."""
        rows = self.table()
        facts = {
            "identities": self.cfg.ids, "per_id": self.cfg.per_id, "seeds": self.cfg.seeds,
            "reference": "{} {} steps".format(*self.reference), "judge": self._judge.name,
        }
        write_json(self.folder / "study.json", {**facts, "rows": [row.to_json() for row in rows]})
        write_text(self.folder / "study.csv", to_csv(rows))
        write_text(self.folder / "study.md", to_table(rows).to_markdown())

    def _check(self, row: RowSettings) -> dict[str, Parent]:
        """Build everything of a row once, so that mistakes show at once; return the files it reads."""
        name = row.method.name if row.method else ""
        try:
            self.pipeline(row)
            parents = self._conditions(row, self.cfg.seed)[1]
            if row.method and row.method.filter:
                *opened, parents["judge"] = open_filter(row.method.filter, self.cfg.per_id, self.inputs.embedder)
                self._filters[row.name] = tuple(opened)
        except UserError as error:
            raise UserError(f"method {name}: {error}" if name else str(error)) from error
        return {f"{name} {key}": parent for key, parent in parents.items()}

    def _conditions(self, row: RowSettings, seed: int) -> tuple[Conditions, dict[str, Parent]]:
        variation = row.method.variation if row.method else None
        guidance = self.pipeline(row).guidance
        return open_conditions(self.inputs, self.cfg.per_id, seed, variation, guidance, row.guidance)

    def _sample(self, row: RowSettings, seed: int, num_processes: int, bar: Progress) -> tuple[NDArray[np.uint8], int]:
        """Return all images of a row (N, S, S, 3), and how many were drawn for them."""
        engine = BatchEngine(self.pipeline(row), self._conditions(row, seed)[0], self.batch_size)
        units, draw, rejection = fixed_batches(self.num_images, self.batch_size), engine.start, None
        if row.name in self._filters:
            sample_filter, judge = self._filters[row.name]
            rejection = RejectionSampling(
                sample_filter, FaceEmbedder.of(judge, self.device), self.inputs.vectors.numpy(), self.cfg.per_id,
                self.batch_size, self.folder / "results" / f"{row.name}-seed-{seed}",
            )
            units, draw = rejection.blocks, partial(rejection.draw, engine)
        images: dict[int, NDArray[np.uint8]] = {}

        def make(unit: range) -> int:
            pixels_of = draw(unit)
            images.update({number: pixels_of(place) for place, number in enumerate(unit)})
            return len(unit)

        with one_core_each(num_workers(self.cfg.workers, self.device, num_processes), self.device) as pool:
            for made in as_completed([pool.submit(make, unit) for unit in units]):
                bar.advance(made.result())
        num_draws = rejection.join(str)["draws"] if rejection else self.num_images
        return np.stack([images[number] for number in range(self.num_images)]), num_draws

    def _reference_path(self, seed: int) -> Path:
        return self.folder / "reference" / f"seed-{seed}.npz"

    def _speed(self, row: RowSettings, seed: int) -> float | None:
        try:
            return float(read_json(self._path(row, seed, "speed"))["images_per_second"])
        except (UserError, TypeError, ValueError, KeyError):
            return None  # a speed that is lost is not measured again

    def _path(self, row: RowSettings, seed: int, folder: str = "results") -> Path:
        return self.folder / folder / f"{row.name}-seed-{seed}.json"
