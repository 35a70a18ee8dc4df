"""`facesyn study`: how do schedulers, steps and identity methods compare on one LDM?

Every row of settings is sampled in memory for the same identities and seeds, judged by a recognizer that did not
take part, and compared with the same images after many DDIM steps. A row under one seed is kept as soon as it is
there, so a killed study goes on with the next one; `seeds` may be raised later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import read_json, write_atomically, write_json, write_text
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import check_output, open_shared_output
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result, batch_setting, growable, input_path, runtime_only
from facesyn_cli.console import Progress, log, progress
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.diffusion.denoising_loop import count_evaluations
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.distributed import Processes, check_device, processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.judge import Judge
from facesyn_cli.evaluation.study import StudyRow, figures_of, to_csv, to_markdown, to_text
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.fast_networks import FastAutoencoder, FastDenoiser, InferenceOptions
from facesyn_cli.sampling.identity_methods import open_negatives, open_variation
from facesyn_cli.sampling.inputs import SampleInputs, open_inputs
from facesyn_cli.sampling.rejection_sampling import RejectionSampling, blocks
from facesyn_cli.sampling.study_rows import Method, RowSettings, named_method, study_rows
from facesyn_cli.sampling.workers import num_workers, one_core_each
from facesyn_cli.untrusted.arrays import read_archive


class StudyConfig(StageConfig):
    """Settings of `facesyn study`."""

    ldm: Path | None = input_path(None, "folder written by train-ldm, or a published checkpoint; None: 2-ldm")
    autoencoder: Path | None = input_path(
        None, "autoencoder weights; None: 2-decoder, or what the LDM was trained with"
    )
    contexts: Path | None = input_path(None, "folder written by gen-contexts, or a published .npy; None: 3-contexts")
    judge: Path | None = input_path(None, "weights of the judge: a recognizer other than the one behind the contexts")
    ids: int = affects_result(50, "identities, the first of the contexts", ge=2)
    per_id: int = affects_result(10, "images of each identity", ge=2)
    seeds: int = growable(3, "how many seeds, counted from `seed`", ge=1)
    schedulers: list[str] = affects_result(["ddim", "dpm-solver++", "unipc", "ddpm"], "schedulers of the grid")
    steps: list[int] = affects_result([5, 10, 20, 50], "steps of the grid")
    methods: list[Method] = affects_result([], "identity methods, each a row: plugin names, or sections with a name")
    method_scheduler: str = affects_result("ddim", "scheduler of the rows of methods")
    method_steps: int = affects_result(50, "steps of the rows of methods", ge=1)
    reference_steps: int = affects_result(200, "DDIM steps of the images that all others are compared with", ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = affects_result("fp32", "number format of the denoiser")
    batch_size: int | None = batch_setting(None, "images a batch; None: 64 on a GPU, 8 on a CPU", ge=1)
    assume_embedder: str | None = runtime_only(None, "recognizer behind published files that do not say")
    workers: int | None = runtime_only(None, "batches computed at once on a CPU, a core each; None: all cores", ge=1)

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


def plan(cfg: StudyConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do: rows, images, network evaluations."""
    if cfg.device != "auto":
        check_device(cfg.device)
    study = _Study(cfg, work)
    state = check_output(study.folder, "Study", cfg, study.parents)
    todo = [] if state == "finished" else [task for task in study.tasks() if study.read(*task) is None]
    return {
        "rows": len(study.rows),
        "seeds": cfg.seeds,
        "rows left": len(todo),
        "images": len(todo) * study.num_images,
        "network evaluations": sum(study.evaluations(row) for row, _ in todo) * study.num_images,
        "folder": f"{study.folder} ({state})",
    }


def run(cfg: StudyConfig, work: Work) -> Outcome:
    """Sample and judge every row, and write the table.

    Raises:
        UserError: An input is missing or wrong.
    """
    group = processes(cfg.device)
    study = _Study(cfg, work)
    with open_shared_output(group, study.folder, "Study", "study", cfg, study.parents) as output:
        if not output.finished:
            tasks = study.tasks()
            references = [task for task in tasks if task[0] is study.rows[0]]
            others = [task for task in tasks if task[0] is not study.rows[0]]
            with progress("study", len(tasks) * study.num_images) as bar:
                for part in (references, others):  # everybody compares with the references
                    for row, seed in share(part, group.rank, group.world_size):
                        if study.read(row, seed) is None:
                            study.measure(row, seed, group, bar)
                        else:
                            bar.advance(study.num_images)
                        signals.check()
                    group.barrier()
            if group.is_first:
                study.write_tables()
                output.finish(counts={"rows": len(study.rows), "seeds": cfg.seeds, "images": study.num_images})
            group.barrier()
    rows = study.table()
    found = [{**row.to_json(), "images_per_second": row.speeds} for row in rows]
    return Outcome(study.folder, {"rows": found}, to_text(rows))


class _Study:
    """The inputs, the rows, and what was found so far."""

    def __init__(self, cfg: StudyConfig, work: Work) -> None:
        if cfg.judge is None:
            raise UserError("study needs a judge, the weights of a face recognizer: --judge FILE")
        self.cfg = cfg
        self.folder = cfg.out or work.path / "study"
        self.inputs: SampleInputs = open_inputs(
            cfg.contexts or work.folder("contexts"), cfg.ldm or work.folder("ldm"),
            cfg.autoencoder or work.decoder_for(cfg.ldm), cfg.ids, cfg.assume_embedder,
        )
        self._judge: LoadedBackbone = load_backbone(cfg.judge)
        if self._judge.digest == self.inputs.embedder:
            log.warning(f"the judge {cfg.judge} is the recognizer behind the contexts: it flatters every row")
        self._schedule = ldm_schedule(self.inputs.ldm.config)
        self.parents = {**self.inputs.parents, "judge": Parent(str(cfg.judge), self._judge.digest)}
        self.rows = study_rows(
            cfg.schedulers, cfg.steps, cfg.methods, (cfg.method_scheduler, cfg.method_steps), cfg.reference_steps
        )
        self._filter_judges: dict[Path, LoadedBackbone] = {}
        self._networks: tuple[FastDenoiser, LatentDecoder] | None = None
        for row in self.rows:
            self.parents.update(self._check(row))

    @property
    def num_images(self) -> int:
        """Images of a row under one seed."""
        return self.cfg.ids * self.cfg.per_id

    def tasks(self) -> list[tuple[RowSettings, int]]:
        """Return all (row, seed), the reference first."""
        return [(row, self.cfg.seed + k) for row in self.rows for k in range(self.cfg.seeds)]

    def evaluations(self, row: RowSettings) -> int:
        """Return the network evaluations per image, without what a filter has drawn again."""
        scheduler = registry.build("scheduler", row.scheduler)(self._schedule)
        guidance = registry.build("guidance", row.guidance)
        return count_evaluations(scheduler, guidance, self.inputs.ldm.config.num_timesteps)

    def measure(self, row: RowSettings, seed: int, group: Processes, bar: Progress) -> None:
        """Sample and judge one row under one seed, and keep what was found."""
        device = group.device
        batch_size = min(self.cfg.batch_size or (8 if device.type == "cpu" else 64), self.num_images)
        engine = self._engine(row, seed, device, batch_size)
        start = time.perf_counter()
        pixels, num_draws = self._sample(row, seed, engine, batch_size, group, bar)
        seconds = time.perf_counter() - start
        vectors = Judge(self._judge.module, self._judge.input_size, device).embed(pixels)
        reference = None if row is self.rows[0] else self._reference(seed)
        figures = figures_of(vectors, pixels, self.cfg.per_id, reference)
        figures["draws"] = num_draws
        if row is self.rows[0]:
            with write_atomically(self._reference_path(seed)) as temporary, open(temporary, "wb") as file:
                np.savez(file, vectors=vectors, pixels=pixels)
        write_json(self._speed_path(row, seed), {"images_per_second": len(pixels) / seconds})
        write_json(self._path(row, seed), figures)

    def read(self, row: RowSettings, seed: int) -> dict[str, float | None] | None:
        """Return what was found earlier, or None."""
        path = self._path(row, seed)
        if not path.is_file() or (row is self.rows[0] and not self._reference_path(seed).is_file()):
            return None
        try:
            return dict(read_json(path))
        except (UserError, TypeError, ValueError):
            log.warning(f"{path} is damaged, measuring it again")
            return None

    def table(self) -> list[StudyRow]:
        """Return all rows with what was found.

        Raises:
            UserError: A result has vanished.
        """
        rows = []
        for row in self.rows:
            found = [self.read(row, seed) for other, seed in self.tasks() if other is row]
            for figures in filter(None, found):
                figures.pop("images_per_second", None)  # earlier versions kept it here
            if any(figures is None for figures in found):
                raise UserError(f"{self._path(row, self.cfg.seed)}: a result has vanished; run the same command again")
            draws = np.mean([figures.pop("draws") for figures in found]) / self.num_images
            method = row.method.name if row.method else ""
            evaluations = float(draws * self.evaluations(row))
            speeds = [self._speed(row, seed) for other, seed in self.tasks() if other is row]
            known = [speed for speed in speeds if speed is not None]
            rows.append(StudyRow(row.scheduler.name, row.scheduler.steps, method, evaluations, found, known))
        return rows

    def write_tables(self) -> None:
        """Write study.json, study.csv and study.md."""
        rows = self.table()
        facts = {
            "identities": self.cfg.ids, "per_id": self.cfg.per_id, "seeds": self.cfg.seeds,
            "reference": f"ddim {self.cfg.reference_steps} steps", "judge": self._judge.name,
        }
        write_json(self.folder / "study.json", {**facts, "rows": [row.to_json() for row in rows]})
        write_text(self.folder / "study.csv", to_csv(rows))
        write_text(self.folder / "study.md", to_markdown(rows))

    def _check(self, row: RowSettings) -> dict[str, Parent]:
        """Build everything of a row once, so that no mistake shows after hours; return what it reads."""
        self.evaluations(row)
        parents = self._conditions(row, self.cfg.seed)[1]
        if registry.build("guidance", row.guidance).needs_attention and not _has_attention(self.inputs):
            raise UserError(f"method {row.method.name}: the denoiser has no attention to contexts to record and inject")
        if row.method and row.method.filter:
            sample_filter = registry.build("sample_filter", row.method.filter)
            if sample_filter.judge is None:
                raise UserError(f"method {row.method.name}: a filter needs filter.judge, the weights of a recognizer")
            if sample_filter.judge not in self._filter_judges:
                self._filter_judges[sample_filter.judge] = load_backbone(sample_filter.judge)
            judge = self._filter_judges[sample_filter.judge]
            sample_filter.check(self.cfg.per_id, judge.digest, self.inputs.embedder)
            parents = {**parents, "judge": Parent(str(sample_filter.judge), judge.digest)}
        name = row.method.name if row.method else ""
        return {f"{name} {key}": parent for key, parent in parents.items()}

    def _conditions(self, row: RowSettings, seed: int) -> tuple[Conditions, dict[str, Parent]]:
        inputs, settings = self.inputs, self.inputs.ldm.config
        variation, varied = open_variation(row.method.variation if row.method else None, inputs.contexts, seed)
        guidance = registry.build("guidance", row.guidance)
        negatives, avoided = open_negatives(guidance, row.guidance, inputs.contexts, seed)
        latent_shape = (settings.latent_channels, settings.latent_size, settings.latent_size)
        conditions = Conditions(
            inputs.identities, inputs.vectors, self.cfg.per_id, seed, latent_shape, None, variation, negatives
        )
        return conditions, {**varied, **avoided}

    def _engine(self, row: RowSettings, seed: int, device: torch.device, batch_size: int) -> BatchEngine:
        if self._networks is None:
            inputs, options = self.inputs, InferenceOptions(self.cfg.precision)
            autoencoder = FastAutoencoder(inputs.autoencoder.to(device), options, device)
            decode = LatentDecoder(autoencoder, inputs.ldm.config, inputs.ldm.config.output_size, device)
            self._networks = FastDenoiser(inputs.ldm.module.to(device), options), decode
        denoiser, decode = self._networks
        make_scheduler = registry.build("scheduler", row.scheduler)
        return BatchEngine(
            denoiser, decode, self._conditions(row, seed)[0], lambda: make_scheduler(self._schedule),
            registry.build("guidance", row.guidance), batch_size, device, self.inputs.ldm.config.num_timesteps,
        )

    def _sample(
        self, row: RowSettings, seed: int, engine: BatchEngine, batch_size: int, group: Processes, bar: Progress
    ) -> tuple[NDArray[np.uint8], int]:
        """Return all images of a row (N, S, S, 3), and how many were drawn for them."""
        units = fixed_batches(self.num_images, batch_size)
        draw: Callable[[range], Callable[[int], NDArray[np.uint8]]] = engine.start
        redrawing = None
        if row.method and row.method.filter:
            sample_filter = registry.build("sample_filter", row.method.filter)
            judge = self._filter_judges[sample_filter.judge]
            redrawing = RejectionSampling(
                sample_filter, Judge(judge.module, judge.input_size, group.device).embed, self.inputs.vectors.numpy(),
                self.cfg.per_id, batch_size, self.folder / "results" / f"{row.name}-seed-{seed}",
            )
            units = blocks(self.cfg.ids, self.cfg.per_id, batch_size)

            def draw(block: range) -> Callable[[int], NDArray[np.uint8]]:
                return redrawing.draw(engine, block)

        images: dict[int, NDArray[np.uint8]] = {}

        def make(unit: range) -> int:
            pixels_of = draw(unit)
            images.update({number: pixels_of(place) for place, number in enumerate(unit)})
            return len(unit)

        with one_core_each(num_workers(self.cfg.workers, group.device, group.world_size), group.device) as pool:
            for made in as_completed([pool.submit(make, unit) for unit in units]):
                bar.advance(made.result())
        num_draws = redrawing.join(str)["draws"] if redrawing else self.num_images
        return np.stack([images[number] for number in range(self.num_images)]), num_draws

    def _reference(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        stored = read_archive(self._reference_path(seed), "images of the reference", ("vectors", "pixels"))
        return stored["vectors"], stored["pixels"]

    def _reference_path(self, seed: int) -> Path:
        return self.folder / "reference" / f"seed-{seed}.npz"

    def _speed_path(self, row: RowSettings, seed: int) -> Path:
        return self.folder / "speed" / f"{row.name}-seed-{seed}.json"

    def _speed(self, row: RowSettings, seed: int) -> float | None:
        try:
            return float(read_json(self._speed_path(row, seed))["images_per_second"])
        except (UserError, TypeError, ValueError, KeyError):
            return None  # a measurement that is lost is not worth sampling again

    def _path(self, row: RowSettings, seed: int) -> Path:
        return self.folder / "results" / f"{row.name}-seed-{seed}.json"


def _has_attention(inputs: SampleInputs) -> bool:
    return getattr(inputs.ldm.module, "has_attention_maps", False)
