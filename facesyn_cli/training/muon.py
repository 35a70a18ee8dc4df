"""Muon for the hidden matrices of a network and AdamW for its other parameters, as one optimizer of torch.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon. With
the gradient G of a matrix W of n rows and m columns, the average B of the gradients and the momentum mu:

    B <- mu B + (1 - mu) G
    W <- (1 - lr decay) W - lr sqrt(max(1, n / m)) orthogonalized(mu B + (1 - mu) G)

This is `torch.optim.Muon`, which accepts one 2-D parameter for one matrix. Here the weight of a convolution
is the matrix of its output channels and everything else (section "Empirical considerations" of the post), the
matrices of a fused weight are orthogonalized one by one, and matrices of the same shape in one batched product.

Every process orthogonalizes all matrices from the same summed gradients, so weights stay the same without
communication, and this part of a step does not become shorter with more processes. Where products are in bfloat16,
trainings on different numbers of processes differ by the rounding of that format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.errors import UserError

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration in the post, and its number of steps
_STEPS = 5
_LEAST_NORM = 1e-7
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def hidden_matrices(network: nn.Module) -> dict[nn.Parameter, int]:
    """Return the weights that Muon updates, each with the number of matrices that it holds, one below the other.

    These are the weights of linear layers and of convolutions that are not grouped, in the submodules that the
    attribute `hidden_layers` of the network names. A layer whose output is several vectors side by side, such as
    queries, keys and values, gives their number in its attribute `fused_matrices`. Embeddings, first and last layers,
    biases and norms are left to AdamW.

    Args:
        network: A network with the attribute `hidden_layers`; see `models/interfaces.py`.

    Raises:
        UserError: The network does not name its hidden layers, or a layer does not divide into its matrices.
    """
    names = getattr(network, "hidden_layers", ())
    if not names:
        raise UserError(
            f"optimizer.name=muon needs to know the hidden layers of {type(network).__name__}, which does not name "
            "them in an attribute `hidden_layers`; use adamw"
        )
    found: dict[nn.Parameter, int] = {}
    for name in names:
        for layer in network.get_submodule(name).modules():
            is_plain = isinstance(layer, nn.Linear) or (isinstance(layer, _CONVOLUTIONS) and layer.groups == 1)
            if is_plain and isinstance(layer.weight, nn.Parameter):
                count = int(getattr(layer, "fused_matrices", 1))
                if count < 1 or len(layer.weight) % count:
                    raise UserError(f"fused_matrices of {layer} in {name} is {count}: it must divide the outputs")
                found[layer.weight] = count
    return found


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices, AdamW for all other parameters.

    The groups of hidden matrices come first; the order of the others is kept. A group has two entries of its own:
    `fused_matrices`, 0 for AdamW, and `lr_factor`, its learning rate relative to that of the hidden matrices.

    Args:
        groups: Parameter groups of torch.
        hidden: Result of `hidden_matrices`; parameters in no group are ignored.
        lr: Learning rate of the hidden matrices.
        adamw_lr: Learning rate of the other parameters.
        momentum: Of the hidden matrices.
        weight_decay: Decoupled weight decay, where a group does not have its own.
        adamw: Further arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], hidden: Mapping[nn.Parameter, int], *, lr: float, adamw_lr: float,
        momentum: float, weight_decay: float, **adamw: Any,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "fused_matrices": 0, "lr_factor": 1.0}
        super().__init__(_divided(groups, hidden, adamw_lr / lr), defaults)
        for group in self.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self._adamw = torch.optim.AdamW(self.param_groups, **adamw)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        self._adamw.state = self.state  # the same after a checkpoint was loaded
        self._adamw.param_groups = [group for group in self.param_groups if not group["fused_matrices"]]
        self._adamw.step()
        for group in self.param_groups:
            used = [p for p in group["params"] if p.grad is not None]
            if group["fused_matrices"] and used:
                self._update_matrices(used, group)

    def _update_matrices(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1.0 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"])
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[int]] = {}
        for place, weight in enumerate(weights):
            by_shape.setdefault(weight.shape, []).append(place)
        for shape, places in by_shape.items():
            parts = (group["fused_matrices"], shape[0] // group["fused_matrices"], shape[1:].numel())
            matrices = torch.cat([updates[place].reshape(parts) for place in places])        # (places x parts, n, m)
            step = -group["lr"] * max(1.0, parts[1] / parts[2]) ** 0.5
            for place, update in zip(places, orthogonalized(matrices).split(parts[0]), strict=True):
                weights[place].add_(update.reshape(shape), alpha=step)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (B, n, m) with the same singular vectors and singular values near 1, about 0.7 to 1.2.

    Newton-Schulz iteration of the post: X <- a X + (b X X^T + c (X X^T)^2) X, from X of Frobenius norm 1. A matrix of
    zeros stays one. Products are in bfloat16, as in the post, on CUDA devices and on processors with instructions for
    it, where they take half the time; in float32 elsewhere.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(_format(matrices.device.type))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_LEAST_NORM)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _format(device_type: str) -> torch.dtype:
    if device_type == "cpu":
        found = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.11
        has_bf16 = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    else:
        has_bf16 = device_type == "cuda"
    return torch.bfloat16 if has_bf16 else torch.float32


def _divided(
    groups: Iterable[dict[str, Any]], hidden: Mapping[nn.Parameter, int], lr_factor: float
) -> list[dict[str, Any]]:
    """Return the groups of hidden matrices, one for each number of matrices in a weight, and then the others."""
    matrices, others = [], []
    for group in groups:
        counts = sorted({hidden[p] for p in group["params"] if p in hidden})
        matrices += [
            {**group, "params": [p for p in group["params"] if hidden.get(p) == count], "fused_matrices": count}
            for count in counts
        ]
        others.append({**group, "params": [p for p in group["params"] if p not in hidden], "lr_factor": lr_factor})
    return matrices + [group for group in others if group["params"]]
