"""`facesyn bench sample`: the plain loop, each inference option alone, and `facesyn sample`."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.bench import plain_loops
from facesyn_cli.bench.machine import Machine, four_digits
from facesyn_cli.bench.published_layers import as_published
from facesyn_cli.bench.random_networks import flops, random_network
from facesyn_cli.bench.settings import BenchConfig
from facesyn_cli.console import log
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.models.precision import WORTH
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.image_folder import ImageFolder, WriteOptions
from facesyn_cli.sampling.inference import FastAutoencoder, FastDenoiser, InferenceOptions
from facesyn_cli.sampling.pipeline import LdmPipeline

_SET = 10_000 * 50  # images of the published set
_FEWER = 4          # times fewer steps from which a second run is measured


class SampleBench:
    """Measures inference options one by one, then both loops from contexts to files."""

    def __init__(self, cfg: BenchConfig, machine: Machine, folder: Path) -> None:
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
        """Measure everything; return JSON values."""
        machine, cfg = self.machine, self.cfg
        options = self._options() if cfg.each_option else None
        pays = self._fastest(options) if options else machine.best_precision
        precision = cfg.precision or pays
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
        with machine.all_cores():
            first = machine.timed("plain loop, fp32", plain_ids * plain_images, plain, flop, machine.rates["fp32"])
        compiles = machine.is_gpu if cfg.compile is None else cfg.compile
        chosen = InferenceOptions(precision, precision, compile=compiles)
        chosen.check(self.device)
        ldm = LoadedLdm(self.denoiser, self.settings, "random")
        pipeline = LdmPipeline.of(
            ldm, self.autoencoder, _scheduler("ddim", self.steps), None, self.device, chosen  # networks change in place
        )
        engine = self._engine(pipeline, vectors)
        if machine.is_gpu:
            for _ in range(2):
                engine.start(range(self.batch_size))(0)  # compiles, loads kernels
        second = machine.timed(
            f"facesyn, {precision}", images, partial(self._draw, engine, images, ids), flop, machine.rates[precision]
        )
        runs, speedups = [first, second], {"speedup": four_digits(second["images/s"] / first["images/s"])}
        if self.steps >= _FEWER * cfg.few_steps:
            few = self._engine(pipeline.using(_scheduler("unipc", cfg.few_steps)), vectors)
            runs.append(machine.timed(
                f"facesyn, {precision}, unipc, {cfg.few_steps} steps", images, partial(self._draw, few, images, ids),
                cfg.few_steps * self.evaluation_flops + self.decoding_flops, machine.rates[precision],
            ))
            speedups["speedup with few steps"] = four_digits(runs[-1]["images/s"] / first["images/s"])
        return {
            "subject": "sample",
            "machine": machine.to_json(),
            "network": {
                "parameters": sum(p.numel() for p in self.denoiser.parameters()),
                "GFLOP an evaluation": four_digits(self.evaluation_flops / 1e9),
                "GFLOP a decoding": four_digits(self.decoding_flops / 1e9),
                "steps": self.steps, "batch": self.batch_size,
            },
            "options": options,
            "precision that pays": pays,
            "runs": runs,
            **speedups,
            "seconds for 10,000 x 50": round(_SET / second["images/s"]),
        }

    def _options(self) -> list[dict[str, Any]]:
        """Measure an evaluation and a decoding of a batch: as published, with each option alone, with all."""
        plain = InferenceOptions(channels_last=False)
        halves = [name for name, rate in self.machine.rates.items() if name != "fp32"]
        slow = [name for name in halves if self.machine.rates[name] < self.machine.rates["fp32"]]
        for name in slow:
            log.info(f"bench: {name} is skipped: its matrix rate is below that of fp32 on this processor")
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
                "ms an evaluation": four_digits(1000 * evaluation), "ms a decoding": four_digits(1000 * decoding),
                f"images/s at {self.steps} steps": four_digits(1 / total),
                "speedup": 1.0 if not table else four_digits(self._plain_seconds / total),
            })
            if len(table) == 1:
                self._plain_seconds = total
        return table

    def _fastest(self, table: list[dict[str, Any]]) -> str:
        """Return the number format whose row with all options is clearly the fastest, else fp32."""
        speeds = {name: row["speedup"] for row in table for name in self.machine.rates if row["name"] == f"all, {name}"}
        fastest = max(speeds, key=lambda name: speeds[name])
        return fastest if speeds[fastest] >= WORTH * speeds["fp32"] else "fp32"

    @torch.inference_mode()
    def _measure(self, options: InferenceOptions, is_published: bool, is_encoded: bool) -> tuple[float, float]:
        """Return seconds per image of one evaluation and of one decoding."""
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
        with self.machine.all_cores():
            evaluation = clock.best(lambda: denoiser(*inputs, context), rounds) / passes
            decoding = clock.best(lambda: decoder.decode(latents), rounds)
        return evaluation / count, decoding / count

    def _engine(self, pipeline: LdmPipeline, vectors: Tensor) -> BatchEngine:
        identities = [str(row) for row in range(len(vectors))]
        conditions = Conditions(identities, vectors, self.cfg.per_id, 0, self.latent_shape)
        return BatchEngine(pipeline, conditions, self.batch_size)

    def _draw(self, engine: BatchEngine, images: int, ids: int) -> None:
        layout = ImageFolder(self.folder / "facesyn", [str(row) for row in range(ids)], self.cfg.per_id, ".png")
        batches = fixed_batches(images, self.batch_size)
        options = WriteOptions(encode_png, self.device, 1 if self.machine.is_gpu else self.machine.cores)
        layout.write(batches, batches, lambda batch, following: engine.start(batch, then=following), set(), options)


def _scheduler(name: str, steps: int) -> PluginConfig:
    return registry.configure("scheduler", {"name": name, "steps": steps})
