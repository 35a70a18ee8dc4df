"""`facesyn bench` of embed, train-ldm, train-fr, pack and eval: the plain loop, and the whole stage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.bench import plain_loops, random_inputs
from facesyn_cli.bench.machine import Machine, four_digits
from facesyn_cli.bench.random_networks import flops, random_network
from facesyn_cli.bench.settings import BenchConfig
from facesyn_cli.data.face_images import FaceImages
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_autoencoder
from facesyn_cli.progress import Progress
from facesyn_cli.training.metrics_log import METRICS, read_lines

_PASSES_OF_TRAINING = 3  # forward, and about two of the same cost backward

RunStage = Callable[[str, dict[str, Any], Path], Any]  # name, settings, work folder: runs a stage to its end


def bench_stage(
    subject: str, cfg: BenchConfig, machine: Machine, folder: Path, run_stage: RunStage
) -> dict[str, Any]:
    """Run a whole stage, its start and end included, and the plain loop on the same files; return JSON values.

    The plain loop of train-ldm encodes its images in every step. facesyn encodes all of them once, which is a row of
    its own, and trains on the latents.
    """
    batch_size = cfg.batch_size or (32 if machine.device.type == "cpu" else 256)
    paths, labels = random_inputs.faces_for(cfg, folder / "faces", batch_size if subject == "train-fr" else 1)
    images = len(paths)
    batch_size = min(batch_size, images)
    steps = cfg.steps or 10
    backbone = cfg.backbone.model_dump(mode="json")
    common = {"device": str(machine.device)}
    num_images, network_of, flop = images, None, 0  # operations an image
    encoding: list[dict[str, Any]] = []             # rows of work that a stage does once
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
        encoder_flop = flops("autoencoder", autoencoder, lambda net: net.encode(pixels))
        plain = partial(
            plain_loops.train_ldm, network_of.to(machine.device), encoder.to(machine.device), paths,
            torch.from_numpy(vectors), cfg.image_size, batch_size, steps, machine.device,
        )
        settings = {
            "images": folder / "faces", "embeddings": folder / "embeddings", "autoencoder": str(weights),
            "denoiser": denoiser, "image_size": cfg.image_size, "steps": steps, "batch_size": batch_size,
            "output_size": min(112, cfg.image_size), "preview_every": 0, "latents": "cache",
            "latent_cache": folder / "latents", "validation_fraction": 0.0, **common,
        }
        cache, encode = _latent_cache(folder, weights, cfg.image_size, machine.device)
        with machine.all_cores():
            encoding.append(machine.timed(
                "facesyn, fp32, latents encoded once", cache.num_views * images,
                lambda: cache.fill(cache.missing(), encode, Progress(images, "images", 0), 0), encoder_flop,
                machine.rates["fp32"],
            ))
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
            num_images, workers = images * cfg.epochs, machine.workers(cfg)
            plain = partial(
                plain_loops.train_recognizer, copy.deepcopy(on_device), max(labels) + 1, folder / "faces", batch_size,
                cfg.epochs, workers, machine.device,
            )
            settings |= {
                "inputs": (folder / "faces",), "backbone": backbone, "epochs": cfg.epochs, "workers": workers,
                "norm_batch_size": min(64, batch_size),
            }
    rate, found = machine.rates["fp32"], list[Path]()
    with machine.all_cores():
        in_the_loop = encoder_flop if subject == "train-ldm" else 0
        first = machine.timed("plain loop, fp32", num_images, plain, flop + in_the_loop, rate)
        second = machine.timed(
            "facesyn, fp32", num_images, lambda: found.append(run_stage(subject, settings, folder / "work").folder),
            flop, rate
        )
    size = {} if network_of is None else {"parameters": sum(p.numel() for p in network_of.parameters())}
    steps_alone = {}
    if subject.startswith("train-"):  # without start, checkpoint and end, in wall time; the plain loop has none of them
        second["images/s of the steps"] = read_lines(found[0] / METRICS)[-1]["images_per_s"]
        if not machine.clock.use_cpu_time:
            steps_alone["speedup of the steps"] = four_digits(second["images/s of the steps"] / first["images/s"])
    return {
        "subject": subject,
        "machine": machine.to_json(),
        "network": {**size, "batch": batch_size},
        "runs": [first, *encoding, second],
        "speedup": four_digits(second["images/s"] / first["images/s"]),
        **steps_alone,
    }


def _latent_cache(
    folder: Path, autoencoder: Path, image_size: int, device: torch.device
) -> tuple[LatentCache, Callable[[Tensor], Tensor]]:
    """Return the cache of latents that `train-ldm` will use, and the encoder that fills it."""
    images = ImageSet.open(folder / "faces")
    loaded = load_autoencoder(str(autoencoder), None, "encoder").to(device)
    side = image_size // loaded.downscale
    faces = FaceImages(images, images.entries, image_size)
    shape = (loaded.latent_channels, side, side)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return loaded.encode(pixels.to(device)).float().cpu()

    return LatentCache(folder / "latents", faces, loaded.section["digest"], shape), encode
