"""What only a CUDA device can show: CUDA graphs, compiled networks, the search for a batch size."""

from __future__ import annotations

import copy
from functools import partial
from itertools import zip_longest

import numpy as np
import pytest
import torch
from fill import fill_state, golden_normal
from tolerance import products_of, rounding

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.diffusion.guidance import CfgConfig, build_cfg
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.models.vq_f4 import VqConfig, VqF4
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine, measure
from facesyn_cli.sampling.inference import InferenceOptions
from facesyn_cli.sampling.pipeline import LdmPipeline
from facesyn_cli.sampling.workers import largest_batch

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
]

DENOISER = {"name": "idiff-unet", "channels": 32, "multipliers": [1, 2], "attention": [False, True], "num_blocks": 1,
            "context_size": 8, "context_width": 32}
BATCH = 4


@pytest.fixture(scope="module")
def networks():
    unet = fill_state(ConditionalUNet(UnetConfig(**DENOISER)))
    vq = fill_state(VqF4(VqConfig(
        name="vq-f4", channels=32, multipliers=(1, 2, 2), num_blocks=1, codebook_size=64, part="decoder"
    )))
    return unet, vq


def engine_of(networks, options: InferenceOptions, batch_size: int = BATCH, scheduler: str = "ddim") -> BatchEngine:
    unet, vq = copy.deepcopy(networks)
    settings = LdmSettings(
        denoiser=DENOISER, latent_size=8, image_size=32, output_size=28, embedding_size=8,
    )
    pipeline = LdmPipeline.of(
        LoadedLdm(unet, settings, "sha256:unet"), vq,
        registry.configure("scheduler", {"name": scheduler, "steps": 5}),
        build_cfg(CfgConfig(name="cfg", scale=2.0)),  # alternates between two contexts
        torch.device("cuda"), options,
    )
    conditions = Conditions([str(k) for k in range(6)], golden_normal(1, (6, 8)), 2, 0, (3, 8, 8))
    return BatchEngine(pipeline, conditions, batch_size)


def draw(engine: BatchEngine) -> np.ndarray:
    """Return all 12 images; several batches, so that a replay must take new contexts."""
    batches = [range(start, start + BATCH) for start in range(0, 12, BATCH)]
    pending = [engine.start(batch, then=then) for batch, then in zip_longest(batches, batches[1:])]
    return np.stack([get(row) for get in pending for row in range(BATCH)]).astype(int)


def test_inference_options_keep_the_images(networks):
    plain = draw(engine_of(networks, InferenceOptions(channels_last=False)))
    assert plain.std() > 5 and len({image.tobytes() for image in plain}) == 12
    for options in (
        InferenceOptions(), InferenceOptions(cuda_graphs=True), InferenceOptions(compile=True),
        InferenceOptions(compile=True, cuda_graphs=True), InferenceOptions(fused_qkv=True),
        InferenceOptions(joint_guidance=True), InferenceOptions(cuda_graphs=True, joint_guidance=True),
    ):
        difference = abs(draw(engine_of(networks, options)) - plain)
        # A latent on the border between two codes may take the other one: a patch, not an image.
        assert (difference > 1).mean() < 0.01, options
    for options in (InferenceOptions("bf16", "bf16"), InferenceOptions("bf16", "bf16", cuda_graphs=True)):
        assert abs(draw(engine_of(networks, options)) - plain).mean() < 12, options


def test_cuda_graphs_repeat_themselves_bit_by_bit(networks):
    engine = engine_of(networks, InferenceOptions(cuda_graphs=True))
    assert (draw(engine) == draw(engine)).all()


@pytest.mark.parametrize("scheduler", ["ddim", "ddim-admis", "unipc", "dpm-solver++", "euler", "lcm"])
@pytest.mark.parametrize("options", [InferenceOptions(), InferenceOptions(cuda_graphs=True)])
def test_nothing_waits_for_the_device_before_the_pixels(networks, options, scheduler):
    engine = engine_of(networks, options, scheduler=scheduler)
    expected = draw(engine)  # loads kernels, captures graphs
    torch.cuda.set_sync_debug_mode("error")
    try:
        pixels_of = engine.start(range(BATCH), then=range(BATCH, 2 * BATCH))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all((pixels_of(row) == expected[row]).all() for row in range(BATCH))


def test_the_cpu_and_the_gpu_agree(networks):
    gpu = engine_of(networks, InferenceOptions())
    x, t = golden_normal(2, (4, 3, 8, 8)), torch.tensor([0, 10, 500, 999])
    contexts = golden_normal(1, (4, 8))
    with torch.inference_mode():
        expected = networks[0](x, t, contexts)
        denoiser = gpu.pipeline.denoiser
        actual = denoiser(x.cuda(), t.cuda(), denoiser.encode_context(contexts.cuda(), batch=4)).cpu()
    torch.testing.assert_close(actual, expected, rtol=0, atol=rounding(products_of(networks[0]), expected.std()))


def test_a_batch_that_fits_is_found_and_memory_stays_flat(networks):
    engine = engine_of(networks, InferenceOptions())
    attempt = partial(measure, engine.pipeline, 8)
    assert largest_batch(attempt, engine.device, 10_000) == 512, "tiny networks fit by the hundred on any card"
    assert largest_batch(attempt, engine.device, 100) == 64
    draw(engine)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        draw(engine)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20
