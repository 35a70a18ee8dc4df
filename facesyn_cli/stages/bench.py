"""`facesyn bench`: how fast the stages are on this machine, beside the plain loop that published code runs.

Both sides work on the same networks with random weights and on the same random images, in one run. `sample` also
says what each lever is worth alone and what all of them are together.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.bench import plain_loops, random_inputs
from facesyn_cli.bench.machine import Clock, describe, matrix_rate, peak_memory
from facesyn_cli.bench.published_layers import as_published
from facesyn_cli.bench.random_networks import flops, random_network
from facesyn_cli.config.fields import PluginConfig, PluginSection, StageConfig, runtime_only
from facesyn_cli.console import log
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.data.ordered_pool import usable_cores
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.schedulers import DdimConfig, MakeScheduler, SolverConfig, build_ddim, build_unipc
from facesyn_cli.distributed import check_device
from facesyn_cli.errors import UserError
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.fast_networks import FastAutoencoder, FastDenoiser, InferenceOptions
from facesyn_cli.sampling.layout import ImageFolder
from facesyn_cli.sampling.writing import write_batches

SUBJECTS = ("sample", "embed", "train-ldm", "train-fr", "pack", "eval")
SMALL: dict[str, Any] = {
    "denoiser": {"channels": 32, "multipliers": [1, 2], "attention": [False, True], "num_blocks": 1},
    "autoencoder": {"channels": 32, "multipliers": [1, 2, 2], "num_blocks": 1},
    "backbone": {"name": "ir-tiny"},
    "image_size": 64, "images": 64, "steps": 4, "batch_size": 8, "per_id": 8,
}  # settings of --small
_SET = 10_000 * 50  # images of the published set
_PASSES_OF_TRAINING = 3  # forward, and about two of its like backward
_FEWER = 4  # times fewer steps: what makes another run worth its time

RunStage = Callable[[str, dict[str, Any], Path], Any]  # name, settings, work folder: runs a stage to its end


class BenchConfig(StageConfig):
    """Settings of `facesyn bench`. The networks are the published ones unless something else is said."""

    renamed = {"levers": "each_option"}

    denoiser: PluginConfig = PluginSection("denoiser", default="idiff-unet")
    autoencoder: PluginConfig = PluginSection("autoencoder", default="vq-f4")
    backbone: PluginConfig = PluginSection("backbone", default="ir-50")
    image_size: int = runtime_only(128, "side of the images the autoencoder makes, in pixels", ge=8)
    images: int | None = runtime_only(
        None, "images of a timed run; None: for sample a batch for each core, 20 on a GPU; 256 for the others", ge=1
    )
    per_id: int = runtime_only(
        50, "images of an identity; the plain loop makes an identity a batch, as published", ge=1
    )
    batch_size: int | None = runtime_only(None, "images a batch; None: 8 on a CPU, 256 on a GPU", ge=1)
    steps: int | None = runtime_only(
        None, "steps of the scheduler, 50 on a GPU and 5 on a CPU; of training, 10", ge=1
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = runtime_only(
        None, "number format of facesyn's side; None: bf16 where its matrix rate is higher"
    )
    rounds: int = runtime_only(3, "timed rounds, the fastest counts", ge=1)
    cores: int | None = runtime_only(None, "cores of a CPU; None: all this process may use", ge=1)
    clock: Literal["wall", "cpu"] = runtime_only(
        "wall", "cpu: processor time divided by cores, for a machine that others use too"
    )
    compile: bool | None = runtime_only(None, "torch.compile on facesyn's side of sample; None: on CUDA")
    each_option: bool = runtime_only(True, "sample: measure each inference option alone")
    few_steps: int = runtime_only(
        12, "sample: steps of another run, with unipc, where `steps` is 4 times as many or more; `study` says how many "
        "are worth 50", ge=1
    )


def bench(subject: str, cfg: BenchConfig, run_stage: RunStage) -> dict[str, Any]:
    """Measure one stage.

    Args:
        subject: One of `SUBJECTS`.
        cfg: Settings.
        run_stage: Runs a stage; only `cli` may.

    Returns:
        JSON values: `machine`, `network`, `runs` (the plain loop first), `speedup` and, for sample, `options`.

    Raises:
        UserError: There is no such subject or device.
    """
    if subject not in SUBJECTS:
        raise UserError(f"nothing to measure is called {subject!r}; there are {', '.join(SUBJECTS)}")
    machine = _Machine(cfg)
    with tempfile.TemporaryDirectory(prefix="facesyn-bench-") as folder:
        if subject == "sample":
            return _SampleBench(cfg, machine, Path(folder)).result()
        return _bench_stage(subject, cfg, machine, Path(folder), run_stage)


def render(result: dict[str, Any]) -> str:
    """Return the result as tables for people."""
    machine = result["machine"]
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in machine["matrix rate"].items())
    lines = [f"{machine['device']}; matrix rate: {rates}; clock: {machine['clock']}"]
    network = ", ".join(f"{name} {value}" for name, value in result["network"].items())
    lines += [network, ""]
    for title in ("options", "runs"):
        rows = result.get(title) or []
        if rows:
            lines += [*_table(title, rows), ""]
    lines += [f"{name}: {value}" for name, value in result.items() if name.startswith("speedup")]
    if "seconds for 10,000 x 50" in result:
        lines.append(f"seconds for 10,000 x 50: {result['seconds for 10,000 x 50']:,}")
    return "\n".join(lines)


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[title if c == "name" else c for c in columns]]
    cells += [["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True))])
            for line in cells]


class _Machine:
    """Device, clock and ceilings."""

    def __init__(self, cfg: BenchConfig) -> None:
        name = check_device(cfg.device) if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(name)
        if cfg.clock == "cpu" and self.device.type != "cpu":
            raise UserError("clock=cpu counts processor time; on a GPU only the wall clock means something")
        self.cores = cfg.cores or usable_cores()
        self.clock = Clock(self.device, self.cores, cfg.clock == "cpu")
        self.is_gpu = self.device.type == "cuda"
        formats = ("fp32", "bf16", "fp16") if self.is_gpu else ("fp32", "bf16")
        self.rates = {name: matrix_rate(self.clock, name, cfg.rounds) for name in formats}

    @property
    def best_precision(self) -> str:
        return "bf16" if self.rates["bf16"] > self.rates["fp32"] else "fp32"

    def to_json(self) -> dict[str, Any]:
        return {
            "device": describe(self.device, self.cores),
            "matrix rate": {name: _short(rate / 1e12) for name, rate in self.rates.items()},
            "clock": "processor time" if self.clock.use_cpu_time else "wall",
            "torch": torch.__version__,
        }

    def timed(self, name: str, num_images: int, work: Callable[[], Any], flop: float = 0, rate: float = 1) -> dict:
        """Run something once and return its row.

        Args:
            name: Name of the row.
            num_images: Images it makes or reads.
            work: What to run.
            flop: Operations an image; 0: not counted.
            rate: Ceiling, FLOP/s.
        """
        log.info(f"bench: {name}")
        with peak_memory(self.device) as memory:
            seconds = self.clock.seconds(work)
        speed = num_images / seconds
        row = {"name": name, "images": num_images, "seconds": _short(seconds), "images/s": _short(speed)}
        if flop:
            row["share of ceiling"] = _short(speed * flop / rate)
        return {**row, "peak memory MiB": memory["MiB"]}


class _SampleBench:
    """InferenceOptions one by one, then both loops from contexts to files."""

    def __init__(self, cfg: BenchConfig, machine: _Machine, folder: Path) -> None:
        self.cfg, self.machine, self.folder = cfg, machine, folder
        self.device = machine.device
        self.batch_size = cfg.batch_size or (256 if machine.is_gpu else 8)
        self.steps = cfg.steps or (50 if machine.is_gpu else 5)
        denoiser, autoencoder = (section.model_dump(mode="json") for section in (cfg.denoiser, cfg.autoencoder))
        autoencoder["part"] = "decoder"
        self.denoiser = random_network("denoiser", denoiser).to(self.device)
        self.autoencoder = random_network("autoencoder", autoencoder).to(self.device)
        side = cfg.image_size // self.autoencoder.downscale
        self.latent_shape = (self.autoencoder.latent_channels, side, side)
        self.context_size = getattr(cfg.denoiser, "context_size", 512)
        self.settings = LdmSettings(
            denoiser=denoiser, latent_channels=self.latent_shape[0], latent_size=side, image_size=cfg.image_size,
            output_size=min(112, cfg.image_size), embedding_size=self.context_size,
        )
        image = torch.zeros(1, *self.latent_shape, device="meta")
        context = torch.zeros(1, self.context_size, device="meta")
        t = torch.zeros(1, dtype=torch.long, device="meta")
        self.evaluation_flops = flops("denoiser", denoiser, lambda net: net(image, t, context))
        self.decoding_flops = flops("autoencoder", autoencoder, lambda net: net.decode(image))

    def result(self) -> dict[str, Any]:
        """Measure everything."""
        machine, cfg = self.machine, self.cfg
        options = self._options() if cfg.each_option else None
        precision = cfg.precision or machine.best_precision
        images = cfg.images or self.batch_size * (20 if machine.is_gpu else machine.cores)
        flop = self.steps * self.evaluation_flops + self.decoding_flops
        ids = -(-images // cfg.per_id)
        vectors = torch.nn.functional.normalize(torch.randn(ids, self.context_size), dim=1)
        plain_ids = 1 if machine.is_gpu else ids  # the plain loop's speed does not depend on how many
        plain_images = min(cfg.per_id, images)
        plain = partial(
            plain_loops.sample, as_published(self.denoiser), self.autoencoder, vectors[:plain_ids], plain_images,
            self.steps, self.latent_shape, self.settings.output_size, self.folder / "plain", self.device,
        )
        if machine.is_gpu:
            plain()  # loads the kernels
        with _threads(machine.cores):
            first = machine.timed("plain loop, fp32", plain_ids * plain_images, plain, flop, machine.rates["fp32"])
        compiles = machine.is_gpu if cfg.compile is None else cfg.compile
        chosen = InferenceOptions(precision, precision, compile=compiles)
        chosen.check(self.device)
        networks = self._networks(chosen)
        engine = self._engine(networks, vectors, build_ddim(DdimConfig(name="ddim", steps=self.steps)))
        if machine.is_gpu:
            for _ in range(2):
                engine.start(range(self.batch_size))(0)  # compiles, loads kernels
        second = machine.timed(
            f"facesyn, {precision}", images, partial(self._draw, engine, images, ids), flop, machine.rates[precision]
        )
        runs, speedups = [first, second], {"speedup": _short(second["images/s"] / first["images/s"])}
        if self.steps >= _FEWER * cfg.few_steps:
            few = self._engine(networks, vectors, build_unipc(SolverConfig(name="unipc", steps=cfg.few_steps)))
            runs.append(machine.timed(
                f"facesyn, {precision}, unipc, {cfg.few_steps} steps", images, partial(self._draw, few, images, ids),
                cfg.few_steps * self.evaluation_flops + self.decoding_flops, machine.rates[precision],
            ))
            speedups["speedup with few steps"] = _short(runs[-1]["images/s"] / first["images/s"])
        return {
            "subject": "sample",
            "machine": machine.to_json(),
            "network": {
                "parameters": sum(p.numel() for p in self.denoiser.parameters()),
                "GFLOP an evaluation": _short(self.evaluation_flops / 1e9),
                "GFLOP a decoding": _short(self.decoding_flops / 1e9),
                "steps": self.steps, "batch": self.batch_size,
            },
            "options": options,
            "runs": runs,
            **speedups,
            "seconds for 10,000 x 50": round(_SET / second["images/s"]),
        }

    def _options(self) -> list[dict[str, Any]]:
        """Measure an evaluation and a decoding of a batch: as published, with each lever alone, with all."""
        plain = InferenceOptions(channels_last=False)
        halves = [name for name, rate in self.machine.rates.items() if name != "fp32"]
        slow = [name for name in halves if self.machine.rates[name] < self.machine.rates["fp32"]]
        for name in slow:
            log.info(f"bench: {name} is left out, its matrix rate is below that of fp32 on this processor")
        halves = [name for name in halves if name not in slow]
        rows = [
            ("as published", plain, True, False),
            ("positions in rows, fused attention", plain, False, False),
            ("contexts encoded once", plain, True, True),
            ("contexts of guidance in one pass", replace(plain, joint_guidance=True), True, True),
            ("positions in rows, fused queries, keys, values", replace(plain, fused_qkv=True), False, False),
            ("channels last", InferenceOptions(), True, False),
            *[(name, InferenceOptions(name, channels_last=False), True, False) for name in halves],
            *[(f"decoder {name}", InferenceOptions("fp32", name, channels_last=False), True, False) for name in halves],
        ]
        if self.machine.is_gpu:
            rows += [
                ("compile", InferenceOptions(channels_last=False, compile=True), True, False),
                ("cuda graphs", InferenceOptions(channels_last=False, cuda_graphs=True), True, False),
            ]
        rows.append(("all, fp32", InferenceOptions(compile=self.machine.is_gpu), False, True))
        rows += [
            (f"all, {name}", InferenceOptions(name, name, compile=self.machine.is_gpu), False, True) for name in halves
        ]
        if self.machine.is_gpu:
            rows.append(("all and cuda graphs, bf16", InferenceOptions("bf16", "bf16", True, True, True), False, True))
        table: list[dict[str, Any]] = []
        for name, options, is_published, is_encoded in rows:
            log.info(f"bench: {name}")
            evaluation, decoding = self._measure(options, is_published, is_encoded)
            total = self.steps * evaluation + decoding
            table.append({
                "name": name,
                "ms an evaluation": _short(1000 * evaluation), "ms a decoding": _short(1000 * decoding),
                f"images/s at {self.steps} steps": _short(1 / total),
                "speedup": 1.0 if not table else _short(self._plain_seconds / total),
            })
            if len(table) == 1:
                self._plain_seconds = total
        return table

    @torch.inference_mode()
    def _measure(self, options: InferenceOptions, is_published: bool, is_encoded: bool) -> tuple[float, float]:
        """Return seconds an image of one evaluation and of a decoding."""
        count, passes, device = self.batch_size, 1, self.device
        network = copy.deepcopy(as_published(self.denoiser) if is_published else self.denoiser)
        denoiser = FastDenoiser(network, options)
        decoder = FastAutoencoder(copy.deepcopy(self.autoencoder), options, device)
        latents = torch.randn(count, *self.latent_shape, device=device)
        t = torch.full((count,), 500, device=device)
        context: Any = torch.nn.functional.normalize(torch.randn(count, self.context_size, device=device), dim=1)
        if is_encoded and hasattr(denoiser, "encode_context"):
            context = denoiser.encode_context(context, batch=count)
        if options.joint_guidance:
            context, passes = denoiser.join_contexts(context, context), 2
        inputs = latents.repeat(passes, 1, 1, 1), t.repeat(passes)
        clock, rounds = self.machine.clock, self.cfg.rounds
        with _threads(self.machine.cores):
            evaluation = clock.best(lambda: denoiser(*inputs, context), rounds) / passes
            decoding = clock.best(lambda: decoder.decode(latents), rounds)
        return evaluation / count, decoding / count

    def _networks(self, options: InferenceOptions) -> tuple[FastDenoiser, LatentDecoder]:
        """Return what `facesyn sample` computes with; the networks are converted in place."""
        autoencoder = FastAutoencoder(self.autoencoder, options, self.device)
        decoder = LatentDecoder(autoencoder, self.settings, self.settings.output_size, self.device)
        return FastDenoiser(self.denoiser, options), decoder

    def _engine(
        self, networks: tuple[FastDenoiser, LatentDecoder], vectors: Tensor, make_scheduler: MakeScheduler
    ) -> BatchEngine:
        identities = [str(row) for row in range(len(vectors))]
        return BatchEngine(
            *networks,
            Conditions(identities, vectors, self.cfg.per_id, 0, self.latent_shape),
            partial(make_scheduler, build_schedule()),
            build_none(NoGuidanceConfig(name="none")),
            self.batch_size,
            self.device,
        )

    def _draw(self, engine: BatchEngine, images: int, ids: int) -> None:
        layout = ImageFolder(self.folder / "facesyn", [str(row) for row in range(ids)], self.cfg.per_id, ".png")
        workers = 1 if self.machine.is_gpu else self.machine.cores
        write_batches(
            engine, fixed_batches(images, self.batch_size), set(), layout, encode_png, num_writers=4,
            num_workers=workers,
        )


def _bench_stage(
    subject: str, cfg: BenchConfig, machine: _Machine, folder: Path, run_stage: RunStage
) -> dict[str, Any]:
    """Run a whole stage, starting and finishing included, and the plain loop on the same files."""
    images = cfg.images or 256
    batch_size = cfg.batch_size or (32 if machine.device.type == "cpu" else 256)
    batch_size = min(batch_size, images)
    steps = cfg.steps or 10
    paths, labels = random_inputs.write_faces(folder / "faces", images, cfg.per_id)
    backbone = cfg.backbone.model_dump(mode="json")
    common = {"device": str(machine.device)}
    num_images, network_of, flop = images, None, 0  # operations an image
    if subject == "pack":
        plain: Callable[[], Any] = partial(plain_loops.pack, paths, labels, folder / "plain.tfrecord")
        settings = {"inputs": [folder / "faces"], "size": None, **common}
    elif subject == "train-ldm":
        denoiser, autoencoder = (section.model_dump(mode="json") for section in (cfg.denoiser, cfg.autoencoder))
        width = getattr(cfg.denoiser, "context_size", 512)
        vectors = random_inputs.write_embeddings_of(folder / "embeddings", folder / "faces", width)
        network_of = random_network("denoiser", denoiser)
        encoder = random_network("autoencoder", autoencoder)
        weights = random_inputs.write_network(folder / "autoencoder", "autoencoder", autoencoder, encoder)
        num_images = steps * batch_size
        side = cfg.image_size // encoder.downscale
        inputs = [torch.zeros(1, encoder.latent_channels, side, side), torch.zeros(1, dtype=torch.long)]
        meta = [tensor.to("meta") for tensor in (*inputs, torch.zeros(1, width))]
        pixels = torch.zeros(1, 3, cfg.image_size, cfg.image_size, device="meta")
        flop = _PASSES_OF_TRAINING * flops("denoiser", denoiser, lambda net: net(*meta))
        flop += flops("autoencoder", autoencoder, lambda net: net.encode(pixels))
        plain = partial(
            plain_loops.train_ldm, network_of.to(machine.device), encoder.to(machine.device), paths,
            torch.from_numpy(vectors), cfg.image_size, batch_size, steps, machine.device,
        )
        settings = {
            "images": folder / "faces", "embeddings": folder / "embeddings", "autoencoder": str(weights),
            "denoiser": denoiser, "image_size": cfg.image_size, "steps": steps, "batch_size": batch_size,
            "output_size": min(112, cfg.image_size), "preview_every": 0, "latents": "fly",
            "validation_fraction": 0.0, **common,
        }
    else:
        network_of = random_network("backbone", backbone)
        weights = random_inputs.write_network(folder / "weights", "backbone", backbone, network_of)
        on_device = network_of.to(machine.device)
        settings = {"batch_size": batch_size, **common}
        face = torch.zeros(1, 3, 112, 112, device="meta")
        flop = flops("backbone", backbone, lambda net: net(face))
        flop *= {"embed": 1, "eval": 2, "train-fr": _PASSES_OF_TRAINING}[subject]  # eval mirrors each face as well
        if subject == "embed":
            plain = partial(plain_loops.embed, on_device, paths, batch_size, machine.device)
            settings |= {"images": folder / "faces", "weights": weights}
        elif subject == "eval":
            paths = paths[: len(paths) // 20 * 20]
            if not paths:
                raise UserError(f"eval needs 20 images or more: 10 folds of pairs; images is {images}")
            is_same = random_inputs.write_pairs(folder / "pairs.txt", folder / "faces", paths)
            num_images = len(paths)
            plain = partial(plain_loops.verify, on_device, paths, is_same, batch_size, machine.device)
            settings |= {"weights": weights, "pairs": [folder / "pairs.txt"], "images": folder / "faces"}
        else:
            steps = max(1, images // batch_size)
            num_images = steps * batch_size
            plain = partial(
                plain_loops.train_recognizer, copy.deepcopy(on_device), max(labels) + 1, paths, labels, batch_size,
                steps, machine.device,
            )
            settings |= {
                "inputs": (folder / "faces",), "backbone": backbone, "epochs": 1,
                "norm_batch_size": min(64, batch_size),
            }
    rate = machine.rates["fp32"]
    with _threads(machine.cores):
        first = machine.timed("plain loop, fp32", num_images, plain, flop, rate)
        second = machine.timed(
            "facesyn, fp32", num_images, lambda: run_stage(subject, settings, folder / "work"), flop, rate
        )
    size = {} if network_of is None else {"parameters": sum(p.numel() for p in network_of.parameters())}
    return {
        "subject": subject,
        "machine": machine.to_json(),
        "network": {**size, "batch": batch_size},
        "runs": [first, second],
        "speedup": _short(second["images/s"] / first["images/s"]),
    }


class _threads(AbstractContextManager):  # noqa: N801 (reads like a function)
    """Let torch use so many cores."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before)


def _short(value: float) -> float:
    """Return a number with four significant digits."""
    return float(f"{value:.4g}")
