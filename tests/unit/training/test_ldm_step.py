"""One step of LDM training: what it draws, how it gathers gradients, and what it must not do."""

from __future__ import annotations

import pytest
import torch
from fill import load_golden
from tolerance import products_of, rounding
from torch import nn

from facesyn_cli.diffusion.loss import diffusion_loss
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.idiff_unet import UnetConfig, build_idiff_unet
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.ema import Ema, EmaSettings
from facesyn_cli.training.ldm_batches import Batch, BatchPlan, Rows, read_ahead, training_batches
from facesyn_cli.training.ldm_export import check_exportable, export_published, schedule_buffers
from facesyn_cli.training.ldm_inputs import evenly
from facesyn_cli.training.ldm_state import GradientSettings, LdmState, take_step
from facesyn_cli.training.ldm_validation import Validation, validation_places
from facesyn_cli.training.optimizer import OptimizerSettings, build_optimizer
from facesyn_cli.training.precision import autocast, check_precision, loss_scaler
from facesyn_cli.training.previews import grid

SHAPE, BATCH, CPU = (3, 4, 4), 6, torch.device("cpu")
SCHEDULE = build_schedule()


def _denoiser(**settings) -> nn.Module:
    torch.manual_seed(1)
    denoiser = build_idiff_unet(UnetConfig(
        name="idiff-unet", channels=32, multipliers=(1,), attention=(False,), num_blocks=1, context_size=8,
        context_width=32, **settings,
    ))
    with torch.no_grad():  # zero-initialized layers would hide most gradients
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser


def _state(denoiser: nn.Module, **settings) -> LdmState:
    optimizer = build_optimizer(denoiser.parameters(), OptimizerSettings(**settings))
    window = torch.zeros(2, dtype=torch.float64)
    return LdmState(denoiser, Ema(denoiser, EmaSettings()), optimizer, loss_scaler("fp32", CPU), window)


def _plan(places: range = range(BATCH), **more) -> BatchPlan:
    settings = {
        "seed": 0, "batch_size": BATCH, "places": places, "train_rows": list(range(20)), "flip": 0.5,
        "latent_shape": SHAPE, "num_timesteps": 1000, "context_dropout": 0.0, "component_dropout": 0.25,
        "context_width": 32,
    }
    return BatchPlan(**{**settings, **more})


def _batch(plan: BatchPlan, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(5)
    latents, contexts = torch.randn(20, *SHAPE, generator=generator), torch.randn(20, 8, generator=generator)
    rows = plan.rows(step).rows
    return next(training_batches(plan, iter([latents[rows]]), contexts, range(step, step + 1)))


def _tolerance(denoiser: nn.Module) -> float:
    """Return what rounding may change of gradients: forth, back, and once more for the weights."""
    largest = max(p.grad.abs().max() for p in denoiser.parameters())
    return rounding(3 * products_of(denoiser), largest)


def _gradients(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in denoiser.named_parameters()}


@pytest.mark.parametrize("micro_batch", [None, 1, 4, 100])
def test_gradient_is_that_of_the_mean_loss_however_it_is_accumulated(micro_batch: int | None):
    denoiser, batch = _denoiser(), _batch(_plan())
    diffusion_loss(denoiser, SCHEDULE, batch.latents, batch.contexts, batch.draws).mean().backward()
    expected, norm = _gradients(denoiser), torch.nn.utils.get_total_norm([p.grad for p in denoiser.parameters()])
    state = _state(denoiser)
    got = take_step(state, denoiser, batch, SCHEDULE, GradientSettings(BATCH, 1, micro_batch, "fp32", None))
    for name, gradient in _gradients(denoiser).items():
        torch.testing.assert_close(gradient, expected[name], atol=_tolerance(denoiser), rtol=0, msg=name)
    assert got == pytest.approx(norm.item(), rel=rounding(3 * products_of(denoiser)))
    assert state.loss_window[1] == BATCH and state.step == 1


def test_gradients_of_processes_average_to_that_of_the_global_batch():
    whole = _denoiser()
    take_step(_state(whole), whole, _batch(_plan()), SCHEDULE, GradientSettings(BATCH, 1, None, "fp32", None))
    parts = []
    for index in range(4):  # shares of 1, 2, 1 and 2 images
        part = _denoiser()
        batch = _batch(_plan(local_share(BATCH, index, 4)))
        take_step(_state(part), part, batch, SCHEDULE, GradientSettings(BATCH, 4, None, "fp32", None))
        parts.append(_gradients(part))
    for name, gradient in _gradients(whole).items():
        average = torch.stack([part[name] for part in parts]).mean(dim=0)
        torch.testing.assert_close(average, gradient, atol=_tolerance(whole), rtol=0, msg=name)


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


def test_a_gradient_that_is_not_finite_leaves_weights_average_and_step_alone():
    denoiser = _denoiser()
    state = _state(denoiser)
    take_step(state, denoiser, _batch(_plan()), SCHEDULE, GradientSettings(BATCH, 1, None, "fp32", None))
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    average = {key: value.clone() for key, value in state.ema.state_dict().items()}
    batch = _batch(_plan(), 1)
    batch.latents[3] = float("nan")
    with pytest.raises(UserError, match="before step 2.*not finite"):
        take_step(state, denoiser, batch, SCHEDULE, GradientSettings(BATCH, 1, 2, "fp32", 1.0))
    assert state.step == 1
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())
    assert all(torch.equal(value, average[key]) for key, value in state.ema.state_dict().items())


def test_clipping_limits_the_step_and_reports_the_norm_before_it():
    settings = GradientSettings(BATCH, 1, None, "fp32", 0.01)
    denoiser = _denoiser()
    norm = take_step(_state(denoiser), denoiser, _batch(_plan()), SCHEDULE, settings)
    clipped = torch.nn.utils.get_total_norm([p.grad for p in denoiser.parameters()])
    assert norm > 0.1 and clipped.item() == pytest.approx(0.01, rel=1e-3)


def test_bf16_is_near_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        denoiser = _denoiser()
        state = _state(denoiser)
        take_step(state, denoiser, _batch(_plan()), SCHEDULE, GradientSettings(BATCH, 1, None, precision, None))
        losses[precision] = state.loss_window[0].item() / BATCH
        assert all(p.dtype == torch.float32 for p in denoiser.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
    check_precision("bf16", "cpu")
    with pytest.raises(UserError, match="fp16.*CUDA"):
        check_precision("fp16", "cpu")


def test_state_survives_a_checkpoint_and_refuses_another_network(tmp_path):
    first = _state(_denoiser(), lr=0.01)
    settings = GradientSettings(BATCH, 1, None, "fp32", None)
    for step in range(2):
        take_step(first, first.denoiser, _batch(_plan(), step), SCHEDULE, settings)
    first.save(tmp_path, keep=1)
    second = _state(_denoiser(), lr=0.01)
    second.restore(tmp_path, processes("cpu"))
    assert second.step == 2 and torch.equal(second.loss_window, first.loss_window)
    for state in (first, second):
        take_step(state, state.denoiser, _batch(_plan(), 2), SCHEDULE, settings)
    for a, b in ((first.denoiser, second.denoiser), (first.ema, second.ema)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="does not fit"):
        _state(_denoiser(learn_empty_context=True)).restore(tmp_path, processes("cpu"))


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


def test_export_has_the_published_buffers(tmp_path):
    denoiser = _denoiser()
    path = export_published(tmp_path, 12, denoiser.state_dict(), SCHEDULE)
    assert path.name == "ema_averaged_model_12.ckpt"
    content = torch.load(path, weights_only=True)
    assert list(content)[-8:] == list(schedule_buffers(SCHEDULE))
    expected = load_golden("schedule")
    tolerance = rounding() / float(1 - expected["alpha_bars"][0])  # 1 - alpha_bar loses digits next to 1
    assert set(expected) == set(schedule_buffers(SCHEDULE))
    for name, values in expected.items():
        torch.testing.assert_close(content[name], torch.from_numpy(values), rtol=tolerance, atol=0, msg=name)
    with pytest.raises(UserError, match="idiff-unet"):
        check_exportable(UnetConfig(name="other"), "linear", "epsilon", False)
    with pytest.raises(UserError, match="linear"):
        check_exportable(UnetConfig(name="idiff-unet"), "cosine", "epsilon", False)
    with pytest.raises(UserError, match="latent_statistics=identity"):
        check_exportable(UnetConfig(name="idiff-unet"), "linear", "epsilon", True)
    with pytest.raises(UserError, match="prediction epsilon"):
        check_exportable(UnetConfig(name="idiff-unet"), "linear", "v", False)
    check_exportable(UnetConfig(name="idiff-unet"), "linear", "epsilon", False)


def test_read_ahead_keeps_order_and_hands_errors_on():
    assert list(read_ahead(iter(range(1, 6)))) == [1, 2, 3, 4, 5]

    def broken():
        yield 1
        raise UserError("gone")

    items = read_ahead(broken())
    with pytest.raises(UserError, match="gone"):
        list(items)


def test_evenly_spread_rows():
    assert evenly([4, 5, 6], 5) == [4, 5, 6]
    assert evenly(range(10), 4) == [0, 2, 5, 7]


def test_grid_lays_rows_below_each_other():
    pictures = torch.zeros(2, 3, 4, 4, 3, dtype=torch.uint8)
    pictures[1, 2] = 7
    canvas = grid(pictures.numpy())
    assert canvas.shape == (10, 16, 3)
    assert (canvas[6:, 12:] == 7).all() and (canvas[:4, :4] == 0).all() and (canvas[4:6] == 255).all()
