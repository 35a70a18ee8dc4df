"""Muon against torch's own, its split of parameters, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from toy_task import ToyTask

from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.training import muon
from facesyn_cli.training.checkpoint import pack_optimizer, unpack_optimizer
from facesyn_cli.training.muon import Muon, hidden_matrices, orthogonalized
from facesyn_cli.training.optimization import OptimizerSettings, build_optimizer, decay_groups, set_lr
from facesyn_cli.training.tasks.discriminator import PatchDiscriminator

BF16, FP32 = torch.bfloat16, torch.float32
FORMAT = muon._format
SETTINGS = OptimizerSettings(name="muon", lr=0.02, momentum=0.9, adamw_lr=0.001, weight_decay=0.1)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same products on every processor, and differences of rounding alone."""
    monkeypatch.setattr(muon, "_format", lambda device_type: FP32)


class Blocks(nn.Module):
    """The smallest network with every kind of layer."""

    hidden_layers = ("blocks",)

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 6)
        self.blocks = nn.Sequential(
            nn.Linear(6, 18), nn.Linear(18, 6), nn.Linear(6, 6), nn.Unflatten(1, (6, 1, 1)),
            nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1, groups=8), nn.Flatten(),
        )
        self.blocks[0].fused_matrices = 3
        self.leave = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.blocks(self.enter(x)))


def _with_gradients(seed: int = 0) -> Blocks:
    torch.manual_seed(seed)
    network = Blocks()
    network(torch.randn(16, 5)).square().sum().backward()
    return network


def _matrix(*shape: int) -> nn.Parameter:
    weight = nn.Parameter(torch.randn(shape))
    weight.grad = torch.randn(shape)
    return weight


def _muon(weights: dict[nn.Parameter, int], **settings: float) -> Muon:
    rates = {"lr": 0.02, "adamw_lr": 0.001, "momentum": 0.9, "weight_decay": 0.1}
    return Muon([{"params": list(weights)}], weights, **{**rates, **settings})


@pytest.mark.parametrize("number_format", [FP32, BF16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 64)])
def test_singular_values_become_about_one_and_vectors_stay(
    shape: tuple[int, ...], number_format: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "_format", lambda device_type: number_format)
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -1.5, 16)
    made = orthogonalized(left * values @ right)
    core = left.mT @ made.float() @ right.mT                    # diagonal where the singular vectors stayed
    diagonal = core.diagonal(dim1=1, dim2=2)
    assert 0.6 < diagonal.min() and diagonal.max() < 1.3        # the iteration of the post ends between 0.68 and 1.13
    # five steps multiply rounding by 3.44^5 = 485 at most; of bfloat16, 0.02 was seen
    rounding = {FP32: 485 * torch.finfo(FP32).eps, BF16: 0.1}[number_format]
    assert (core - torch.diag_embed(diagonal)).abs().max() < rounding


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [("cuda", {}, BF16), ("mps", {}, FP32), ("cpu", {}, FP32), ("cpu", {"avx512_bf16": False, "avx2": True}, FP32),
     ("cpu", {"avx512_bf16": True}, BF16), ("cpu", {"amx_bf16": True}, BF16)],
)
def test_products_are_in_bfloat16_where_the_device_has_it(
    device: str, capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert FORMAT(device) is expected


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_steps_equal_those_of_torch(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch computes products in bfloat16, so ours do here; both round, by 2^-8 of a value near 1 in every product."""
    monkeypatch.setattr(muon, "_format", lambda device_type: BF16)
    torch.manual_seed(0)
    ours = _matrix(*shape)
    theirs, start = copy.deepcopy(ours), ours.detach().clone()
    theirs.grad = ours.grad.clone()
    own = _muon({ours: 1})
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        own.step()
        reference.step()
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
    torch.testing.assert_close(own.state[ours]["momentum_buffer"], reference.state[theirs]["momentum_buffer"])
    assert (ours - theirs).norm() < 0.05 * (theirs - start).norm()


def test_fused_matrices_are_updated_as_if_they_were_alone() -> None:
    torch.manual_seed(0)
    fused = _matrix(24, 16)
    parts = [nn.Parameter(part.clone()) for part in fused.detach().split(8)]
    for part, gradient in zip(parts, fused.grad.split(8), strict=True):
        part.grad = gradient.clone()
    whole = nn.Parameter(fused.detach().clone())
    whole.grad = fused.grad.clone()
    for optimizer in (_muon({fused: 3}), _muon(dict.fromkeys(parts, 1)), _muon({whole: 1})):
        optimizer.step()
    torch.testing.assert_close(fused, torch.cat(list(parts)))
    assert (fused - whole).abs().max() > 1e-3


def test_a_convolution_is_the_matrix_of_its_output_channels() -> None:
    torch.manual_seed(0)
    kernel = _matrix(8, 6, 3, 3)
    flat = nn.Parameter(kernel.detach().flatten(1))
    flat.grad = kernel.grad.flatten(1).clone()
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    for optimizer in (_muon({kernel: 1}), _muon({flat: 1})):
        optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), flat)


def test_other_parameters_are_updated_by_adamw() -> None:
    network, other = _with_gradients(), _with_gradients()
    hidden = hidden_matrices(network)
    optimizer = build_optimizer(network.parameters(), SETTINGS, network)
    reference = torch.optim.AdamW(other.parameters(), lr=0.001, weight_decay=0.1)
    for _ in range(3):
        optimizer.step()
        reference.step()
    for (name, p), expected in zip(network.named_parameters(), other.parameters(), strict=True):
        assert (p in hidden) or torch.allclose(p, expected, rtol=1e-5, atol=1e-7), name
        assert optimizer.state[p].keys() == ({"momentum_buffer"} if p in hidden else {"step", "exp_avg", "exp_avg_sq"})


def test_hidden_matrices_are_the_layers_of_the_blocks() -> None:
    network = Blocks()
    names = {p: name for name, p in network.named_parameters()}
    assert {names[p]: count for p, count in hidden_matrices(network).items()} == {
        "blocks.0.weight": 3, "blocks.1.weight": 1, "blocks.2.weight": 1, "blocks.4.weight": 1
    }


NETWORKS = [
    *(("denoiser", name) for name in ("idiff-unet", "dit")),
    *(("backbone", name) for name in ("ir-18", "ir-se-50", "ir-tiny", "ir-lite", "iresnet-18", "mobilefacenet", "mbf",
                                      "mbf-large")),
    *(("autoencoder", name) for name in ("face-kl", "face-vq")),
]


@pytest.mark.parametrize(("kind", "name"), [*NETWORKS, ("discriminator", "")])
def test_every_parameter_of_a_built_in_network_is_in_one_group(kind: str, name: str) -> None:
    with torch.device("meta"):
        network = registry.build(kind, registry.configure(kind, {"name": name})) if name else PatchDiscriminator(64, 3)
    optimizer = build_optimizer(decay_groups(network, 0.1, False), SETTINGS, network)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(network.parameters())
    shapes = [p for group in optimizer.param_groups if group["fused_matrices"] for p in group["params"]]
    left = [p for group in optimizer.param_groups if not group["fused_matrices"] for p in group["params"]]
    assert shapes and all(p.ndim > 1 for p in shapes)
    assert any(p.ndim > 1 for p in left)                        # first and last layers, embeddings


def test_both_learning_rates_follow_the_schedule() -> None:
    network = _with_gradients()
    optimizer = build_optimizer(network.parameters(), SETTINGS, network)
    for factor in (1.0, 0.25):
        set_lr(optimizer, 0.02 * factor)
        rates = {bool(group["fused_matrices"]): group["lr"] for group in optimizer.param_groups}
        assert rates == {True: pytest.approx(0.02 * factor), False: pytest.approx(0.001 * factor)}


def test_weight_decay_of_a_group_is_kept() -> None:
    network = _with_gradients()
    optimizer = build_optimizer(decay_groups(network, 0.1, False), SETTINGS, network)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[network.blocks[5].weight] == 0.0
    assert decay[network.blocks[0].weight] == decay[network.enter.bias] == 0.1


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    network = _with_gradients()
    optimizer = build_optimizer(network.parameters(), SETTINGS, network)
    optimizer.step()
    other = copy.deepcopy(network)
    restored = build_optimizer(other.parameters(), SETTINGS, other)
    unpack_optimizer(restored, {name: value.clone() for name, value in pack_optimizer(optimizer).items()})
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    for each in (optimizer, restored):
        set_lr(each, 0.01)
        each.step()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), other.parameters(), strict=True))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    network = Blocks()
    before = copy.deepcopy(network)
    build_optimizer(network.parameters(), SETTINGS, network).step()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before.parameters(), strict=True))


def test_a_quadratic_problem_converges() -> None:
    """A product of two matrices fits a third; the learning rate falls to zero, as steps have a fixed size."""
    torch.manual_seed(0)
    target = torch.randn(12, 12) / 12**0.5
    first, second = (nn.Parameter(0.3 * torch.randn(12, 12)) for _ in range(2))
    optimizer = _muon({first: 1, second: 1}, weight_decay=0.0)
    losses = []
    for step in range(300):
        set_lr(optimizer, 0.05 * (1 - step / 300))
        optimizer.zero_grad()
        loss = (first @ second - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


class ToyBlocks(ToyTask):
    """The toy task with hidden layers."""

    def build(self, processes) -> None:
        super().build(processes)
        self.network.hidden_layers = ("0",)


def test_the_trainer_steps_both_parts(tmp_path: Path) -> None:
    from facesyn_cli.training.trainer import Trainer

    task = ToyBlocks(tmp_path, steps=6, optimizer={"name": "muon", "lr": 0.02, "adamw_lr": 0.05},
                     lr_schedule={"name": "cosine"}, clip=1.0, ema={})
    trainer = Trainer(task, processes("cpu"))
    start = copy.deepcopy(task.network)
    trainer.run()
    for (name, p), before in zip(task.network.named_parameters(), start.parameters(), strict=True):
        assert not torch.equal(p, before), name
    rates = {group["fused_matrices"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates[0] == pytest.approx(2.5 * rates[1])


def test_a_network_without_hidden_layers_is_refused() -> None:
    network = nn.Linear(3, 3)
    with pytest.raises(UserError, match="optimizer.name=muon needs to know the hidden layers of Linear"):
        build_optimizer(network.parameters(), SETTINGS, network)


def test_matrices_that_do_not_divide_a_layer_are_refused() -> None:
    network = Blocks()
    network.blocks[1].fused_matrices = 4
    with pytest.raises(UserError, match="fused_matrices of Linear.*in blocks is 4: it must divide the outputs"):
        hidden_matrices(network)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"name": "muon"}, "muon has two learning rates"),
     ({"name": "adamw", "adamw_lr": 0.1}, "adamw_lr belongs to muon"),
     ({"name": "muon", "adamw_lr": 0.1, "nesterov": True}, "nesterov"),
     ({"name": "muon", "adamw_lr": 0.0}, "greater than 0")],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        OptimizerSettings(**settings)
