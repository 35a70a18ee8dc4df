"""A step of LDM training: what is random in it, its gradients, and the validation loss."""

from __future__ import annotations

import pytest
import torch
from tolerance import products_of, rounding
from torch import nn

from facesyn_cli.diffusion.loss import diffusion_loss
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.training.data_order import local_share, validation_places
from facesyn_cli.training.precision import autocast, check_precision, loss_scaler
from facesyn_cli.training.tasks.ldm_batches import Batch, BatchPlan, Rows, training_batches
from facesyn_cli.training.tasks.ldm_inputs import evenly
from facesyn_cli.training.tasks.ldm_monitors import Validation
from facesyn_cli.training.tasks.ldm_step import accumulate_gradients

SHAPE, BATCH, CPU = (3, 4, 4), 6, torch.device("cpu")
SCHEDULE = build_schedule()


def _denoiser(**settings) -> nn.Module:
    torch.manual_seed(1)
    denoiser = ConditionalUNet(UnetConfig(
        name="idiff-unet", channels=32, multipliers=(1,), attention=(False,), num_blocks=1, context_size=8,
        context_width=32, **settings,
    ))
    with torch.no_grad():  # zero-initialized layers would hide most gradients
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser


def _accumulate(denoiser: nn.Module, batch: Batch, passes: int = 1, precision: str = "fp32") -> float:
    scaler = loss_scaler(precision, CPU)
    return accumulate_gradients(denoiser, SCHEDULE, batch, BATCH, passes, precision, scaler)["loss"].item()


def _plan(places: range = range(BATCH), **more) -> BatchPlan:
    settings = {
        "seed": 0, "batch_size": BATCH, "places": places, "train_rows": list(range(20)), "flip": 0.5,
        "latent_shape": SHAPE, "schedule": SCHEDULE, "context_dropout": 0.0, "component_dropout": 0.25,
        "context_width": 32,
    }
    return BatchPlan(**{**settings, **more})


def _batch(plan: BatchPlan, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(5)
    latents, contexts = torch.randn(20, *SHAPE, generator=generator), torch.randn(20, 8, generator=generator)
    rows = plan.rows(step).rows
    return next(training_batches(plan, iter([latents[rows]]), contexts, range(step, step + 1)))


def test_the_yaw_of_mirror_images_is_negative_and_some_are_dropped():
    contexts = torch.cat([torch.randn(20, 8), torch.arange(1.0, 21)[:, None]], dim=1)
    plan, found = _plan(pose_dropout=0.3), []
    for step in range(60):
        rows = plan.rows(step)
        batch = next(training_batches(plan, iter([torch.zeros(BATCH, *SHAPE)]), contexts, range(step, step + 1), 8))
        assert torch.equal(batch.contexts[:, :8], contexts[rows.rows][:, :8])
        expected = torch.tensor([(-1.0 if mirrored else 1.0) * (row + 1)
                                 for row, mirrored in zip(rows.rows, rows.is_mirrored, strict=True)])
        yaw = batch.contexts[:, 8]
        assert torch.equal(yaw[yaw.isfinite()], expected[yaw.isfinite()])
        found += yaw.isnan().tolist()
    assert 0.2 < sum(found) / len(found) < 0.4
    assert torch.equal(contexts[:, 8], torch.arange(1.0, 21)), "the set itself is not changed"


def _tolerance(denoiser: nn.Module) -> float:
    """Return what rounding may change of gradients: forth, back, and once more for the weights."""
    largest = max(p.grad.abs().max() for p in denoiser.parameters())
    return rounding(3 * products_of(denoiser), largest)


def _gradients(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in denoiser.named_parameters()}


@pytest.mark.parametrize("passes", [1, 2, 4, 6, 100])
def test_gradient_is_that_of_the_mean_loss_however_it_is_accumulated(passes: int):
    denoiser, batch = _denoiser(), _batch(_plan())
    loss = diffusion_loss(denoiser, SCHEDULE, batch.latents, batch.contexts, batch.draws).mean()
    loss.backward()
    expected = _gradients(denoiser)
    denoiser.zero_grad()
    got = _accumulate(denoiser, batch, passes)
    for name, gradient in _gradients(denoiser).items():
        torch.testing.assert_close(gradient, expected[name], atol=_tolerance(denoiser), rtol=0, msg=name)
    assert got == pytest.approx(loss.item(), rel=rounding(products_of(denoiser)))


def test_gradients_of_processes_add_up_to_that_of_the_global_batch():
    whole, total = _denoiser(), {}
    loss = _accumulate(whole, _batch(_plan()))
    for index in range(4):  # shares of 1, 2, 1 and 2 images
        part = _denoiser()
        loss -= _accumulate(part, _batch(_plan(local_share(BATCH, index, 4))))
        for name, gradient in _gradients(part).items():
            total[name] = total.get(name, 0) + gradient
    for name, gradient in _gradients(whole).items():
        torch.testing.assert_close(total[name], gradient, atol=_tolerance(whole), rtol=0, msg=name)
    assert abs(loss) < rounding(products_of(whole))


def test_cpd_keeps_and_scales_as_dropout_does():
    p = 0.25
    plan = _plan(range(2000), batch_size=2000, component_dropout=p, latent_shape=(1, 1, 1))
    mask = plan.draws(0).component_mask
    assert mask.dtype == torch.bool and mask.float().mean().item() == pytest.approx(1 - p, abs=0.01)
    denoiser = _denoiser(component_dropout=p)
    seen = []
    for block in denoiser._blocks():
        block.encode_context = lambda c: seen.append(c)
    contexts = torch.randn(2000, 8)
    denoiser.encode_context(contexts, None, mask)
    expected = denoiser.context_emb(contexts) * mask / (1 - p)  # inverted scaling, once
    torch.testing.assert_close(seen[0], expected)


def test_draws_depend_on_the_place_in_the_global_batch_alone():
    whole, part = _plan().draws(3), _plan(range(2, 4)).draws(3)
    for all_of_it, share in zip(whole, part, strict=True):
        assert (all_of_it is None and share is None) or torch.equal(all_of_it[2:4], share)
    assert not torch.equal(whole.noise, _plan().draws(4).noise)
    assert _plan().rows(3).is_mirrored[2:4] == _plan(range(2, 4)).rows(3).is_mirrored
    mirrored = [flag for step in range(200) for flag in _plan().rows(step).is_mirrored]
    assert 0.45 < sum(mirrored) / len(mirrored) < 0.55
    assert not any(_plan(flip=0.0).rows(0).is_mirrored) and all(_plan(flip=1.0).rows(0).is_mirrored)
    assert _plan().rows(0) == Rows(_plan().rows(0).rows, _plan().rows(0).is_mirrored)


def test_dropped_contexts_leave_no_trace_of_the_context():
    plan = _plan(context_dropout=1.0)
    denoiser, batch = _denoiser().eval(), _batch(plan)
    assert batch.draws.drop_context.all()
    other = batch._replace(contexts=batch.contexts.flip(0) + 1)
    losses = [diffusion_loss(denoiser, SCHEDULE, b.latents, b.contexts, b.draws) for b in (batch, other)]
    assert torch.equal(*losses)


def test_bf16_is_near_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        denoiser = _denoiser()
        losses[precision] = _accumulate(denoiser, _batch(_plan()), precision=precision)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in denoiser.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
    check_precision("bf16", "cpu")
    with pytest.raises(UserError, match="fp16.*CUDA"):
        check_precision("fp16", "cpu")


def test_validation_does_not_depend_on_batch_size_or_sharing():
    denoiser = _denoiser().eval()
    latents, contexts = torch.randn(7, *SHAPE), torch.randn(7, 8)

    def loss(batch_size: int, processes: int) -> float:
        total = torch.zeros(2, dtype=torch.float64)
        for index in range(processes):
            places = validation_places(7, batch_size, index, processes)
            part = Validation(latents[places], contexts[places], places, 0, SCHEDULE, batch_size, CPU)
            total += part.loss_sum(denoiser, autocast("fp32", CPU))
        assert total[1] == 7
        return (total[0] / total[1]).item()

    expected = loss(7, 1)
    assert [loss(2, 1), loss(3, 2), loss(1, 7)] == pytest.approx([expected] * 3, rel=rounding(products_of(denoiser)))
    assert sorted(place for index in range(3) for place in validation_places(7, 2, index, 3)) == list(range(7))


def test_evenly_spread_rows():
    assert evenly([4, 5, 6], 5) == [4, 5, 6]
    assert evenly(range(10), 4) == [0, 2, 5, 7]
