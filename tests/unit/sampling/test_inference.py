"""Inference options change numbers by rounding only, and networks trace without a break."""

from __future__ import annotations

import copy

import pytest
import torch
from fill import fill_state, golden_normal
from tolerance import layers_of, products_of, rounding

from facesyn_cli.diffusion.denoising_loop import sample_latents
from facesyn_cli.diffusion.guidance import CfgConfig, build_cfg
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.schedulers import SolverConfig, build_dpm_solver
from facesyn_cli.errors import UserError
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.models.vq_f4 import VqConfig, VqF4
from facesyn_cli.sampling.inference import FastAutoencoder, FastDenoiser, InferenceOptions, _mapped, _tensors, fuse_qkv

CPU = torch.device("cpu")
STEPS = 4
CONTEXTS, NOISE = golden_normal(1, (3, 8)), golden_normal(2, (3, 3, 8, 8))


@pytest.fixture
def unet():
    return fill_state(ConditionalUNet(UnetConfig(
        name="idiff-unet", in_channels=3, channels=32, multipliers=(1, 1), attention=(False, True), num_blocks=1,
        context_size=8, context_width=32,
    )))


@pytest.fixture
def vq():
    return fill_state(VqF4(VqConfig(
        name="vq-f4", channels=32, multipliers=(1, 2), num_blocks=1, codebook_size=64, part="decoder"
    )))


def draw(denoiser):
    scheduler = build_dpm_solver(SolverConfig(name="dpm-solver++", steps=STEPS))(build_schedule("linear"))
    return sample_latents(denoiser, scheduler, build_cfg(CfgConfig(name="cfg", scale=2.0)), CONTEXTS, NOISE)


def test_float32_options_keep_the_latents(unet):
    plain = draw(unet)
    fast = draw(FastDenoiser(copy.deepcopy(unet), InferenceOptions()))
    torch.testing.assert_close(fast, plain, rtol=0, atol=rounding(STEPS * products_of(unet), float(plain.std())))
    assert not fast.equal(draw(FastDenoiser(copy.deepcopy(unet), InferenceOptions(precision="bf16"))))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_stays_near_float32_and_keeps_x_in_float32(unet, precision, dtype):
    full = draw(unet)
    seen = []
    half_unet = copy.deepcopy(unet)
    half_unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    half = draw(FastDenoiser(half_unet, InferenceOptions(precision=precision)))
    assert set(seen) == {dtype}
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < rounding(STEPS * layers_of(unet), full.std(), dtype)  # sums are float32


def test_the_decoder_in_half_precision_takes_the_same_codes(vq):
    """With a codebook far finer than bf16, a lookup in bf16 would take others."""
    vq.quantize.embedding.weight.data = 1 + 1e-4 * torch.arange(64.0)[:, None].expand(64, 3).contiguous()
    latents = 1 + 1e-4 * torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4).contiguous()
    taken = []
    vq.quantize.register_forward_hook(lambda module, arguments, result: taken.append(result[1]))
    with torch.inference_mode():
        full = FastAutoencoder(vq, InferenceOptions(), CPU).decode(latents)
        half = FastAutoencoder(vq, InferenceOptions(decoder_precision="bf16"), CPU).decode(latents)
    assert taken[0].equal(taken[1]) and taken[0].flatten().tolist() == list(range(16))
    assert half.dtype == torch.float32 and not half.equal(full)
    assert (half - full).abs().max() < rounding(layers_of(vq), full.std(), torch.bfloat16)


def test_networks_can_be_compiled_as_a_whole(unet, vq):
    """Every break of the traced graph would cost launches; the tracer alone needs no GPU."""
    with torch.inference_mode():
        context = unet.encode_context(CONTEXTS)
        t = torch.full((3,), 500)
        expected = unet(NOISE, t, context)
        traced = torch.compile(unet, backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(traced(NOISE, t, context), expected)
        latents = golden_normal(3, (2, 3, 4, 4))
        decode = torch.compile(vq.decode, backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(decode(latents), vq.decode(latents))


def test_contexts_are_taken_apart_and_put_together(unet):
    context = unet.encode_context(CONTEXTS)
    parts = _tensors(context)
    assert len(parts) == 2 * 4  # keys and values of the attending blocks: 1 down, the middle, 2 up
    doubled = _mapped(context, lambda tensor: 2 * tensor)
    assert type(doubled) is type(context) and doubled.batch == 3
    for one, two in zip(parts, _tensors(doubled), strict=True):
        assert two.equal(2 * one)


@pytest.mark.parametrize("option", ["compile", "cuda_graphs"])
def test_options_of_cuda_are_refused_elsewhere(option):
    with pytest.raises(UserError, match=f"{option}=true needs a CUDA device"):
        InferenceOptions(**{option: True}).check(CPU)


@pytest.mark.parametrize("conditioning", ["ca", "adagn"])
@pytest.mark.parametrize("inference_options", [InferenceOptions(joint_guidance=True), InferenceOptions(fused_qkv=True)])
def test_joint_guidance_and_fused_projections_keep_the_latents(conditioning, inference_options):
    unet = fill_state(ConditionalUNet(UnetConfig(
        name="idiff-unet", channels=32, multipliers=(1, 1), attention=(False, True), num_blocks=1, context_size=8,
        context_width=32, conditioning=conditioning,
    )))
    plain, sizes = draw(unet), []
    network = copy.deepcopy(unet)
    network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    fast = draw(FastDenoiser(network, inference_options))
    torch.testing.assert_close(fast, plain, rtol=0, atol=rounding(STEPS * products_of(unet), float(plain.std())))
    assert sizes == ([6] * 4 if inference_options.joint_guidance else [3] * 8)


def test_steps_outside_of_the_interval_of_guidance_see_the_batch_alone(unet):
    sizes = []
    unet.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    scheduler = build_dpm_solver(SolverConfig(name="dpm-solver++", steps=STEPS))(build_schedule("linear"))
    guidance = build_cfg(CfgConfig(name="cfg", scale=2.0, start=0.5))
    sample_latents(FastDenoiser(unet, InferenceOptions(joint_guidance=True)), scheduler, guidance, CONTEXTS, NOISE)
    assert sizes == [3, 3, 6, 6]


def test_contexts_that_cannot_be_joined_are_evaluated_in_turn(unet):
    denoiser = FastDenoiser(unet, InferenceOptions(joint_guidance=True))
    assert denoiser.join_contexts(CONTEXTS, None) is None
    assert denoiser.join_contexts(CONTEXTS, CONTEXTS).shape == (6, 8)
    assert FastDenoiser(unet, InferenceOptions()).join_contexts(CONTEXTS, CONTEXTS) is None


def test_fused_projections_give_attention_maps_too(unet):
    """What UIFace records and injects must be the maps of the three projections."""
    fused = copy.deepcopy(unet)
    assert fuse_qkv(fused) == 4 and fuse_qkv(fused) == 0
    t, seen = torch.full((3,), 500), []
    with torch.inference_mode():
        for network in (unet, fused):
            contexts, maps = network.encode_context(CONTEXTS).recording()
            output = network(NOISE, t, contexts)
            injected = network.encode_context(CONTEXTS.flip(0)).injecting(maps, with_cross=True)
            seen.append((output, network(NOISE.flip(0), t, injected)))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rounding(products_of(unet), float(one.std())))


def test_there_must_be_something_to_fuse():
    with pytest.raises(UserError, match="fused_qkv=true"):
        FastDenoiser(torch.nn.Conv2d(3, 3, 1), InferenceOptions(fused_qkv=True))
