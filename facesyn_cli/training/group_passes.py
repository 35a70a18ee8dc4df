"""Forward passes of a network in training over one or several groups of images; see `bn_groups`.

A pass of several groups gives the numbers of a pass for each, to rounding: BatchNorm normalizes every group by its own
statistics, and dropout draws for every group what its own seed gives. All other layers see all images at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.errors import UserError
from facesyn_cli.training.bn_groups import ImageGroup, group_seed, running_statistics
from facesyn_cli.training.precision import autocast, backbone_layout

_IMAGES = 128  # of a pass on a GPU, unless set otherwise


class GroupPasses:
    """A network that runs over groups of images.

    Args:
        network: Backbone; its BatchNorm and dropout layers are changed where a pass may hold several groups.
        size: Most groups of a pass.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        self.network, self.size, self.groups = network, size, _Groups()
        if size > 1:
            for layer in network.modules():
                if isinstance(layer, _BatchNorm) and layer.track_running_stats:
                    layer.forward = _NormByGroup(layer, self.groups)
                elif isinstance(layer, _DropoutNd):
                    layer.forward = _DropoutByGroup(layer, self.groups)

    def cut(self, num_groups: int) -> list[range]:
        """Return the places of the groups of each pass."""
        return [range(start, min(start + self.size, num_groups)) for start in range(0, num_groups, self.size)]

    def embed(
        self, groups: Sequence[ImageGroup], precision: str, seed: int, step: int, is_updated: bool = True
    ) -> tuple[Tensor, ...]:
        """Return the (N, E) float32 embeddings of each group, computed in one pass.

        Args:
            groups: At most `size` groups, on the device of the network.
            precision: fp32, bf16 or fp16.
            seed: Seed of the training; with step and group it decides the dropout.
            step: Number of the step, 0-based.
            is_updated: The group with number 0, if it is here, updates the running statistics.
        """
        seeds = [group_seed(seed, step, group.number) for group in groups]
        updated = [is_updated and group.number == 0 for group in groups]
        if len(groups) == 1:
            torch.manual_seed(seeds[0])
            with running_statistics(self.network, updated[0]):
                return (self._run(groups[0].inputs, precision),)
        inputs = torch.cat([group.inputs for group in groups])
        self.groups.begin(seeds, updated, inputs.device)
        try:
            return self._run(inputs, precision).chunk(len(groups))
        finally:
            self.groups.updated = [True]

    def _run(self, inputs: Tensor, precision: str) -> Tensor:
        layout = backbone_layout(inputs.device, self.network)
        values = to_pixels(inputs) if inputs.dtype == torch.uint8 else inputs
        with autocast(precision, inputs.device):
            return self.network(values.contiguous(memory_format=layout)).float()


def groups_of_a_pass(
    setting: int | None, network: nn.Module, group_size: int, num_groups: int, device: torch.device
) -> int:
    """Return how many groups a pass holds.

    Args:
        setting: As many; None: 1 on a CPU, on a GPU as many as hold `_IMAGES` images.
        network: Backbone, on the device.
        group_size: Images of a group.
        num_groups: Groups of this process.
        device: Where the network is.

    Raises:
        UserError: Several are set, and the network draws random numbers that cannot be divided into groups.
    """
    size = min(num_groups, setting or (max(1, _IMAGES // group_size) if device.type == "cuda" else 1))
    if size > 1 and _draws_outside_dropout(network, device):
        if setting is not None:
            raise UserError(
                f"groups_per_pass={setting}, but {type(network).__name__} draws random numbers outside of dropout "
                "layers, which cannot be divided into groups; use groups_per_pass=1"
            )
        return 1
    return size


class _Groups:
    """The groups of the present pass.

    Attributes:
        updated: Of every group, whether it updates running statistics.
        states: Of every group, the state of the generator of random numbers.
    """

    def __init__(self) -> None:
        self.updated, self.states = [True], list[Tensor]()

    def begin(self, seeds: Sequence[int], updated: list[bool], device: torch.device) -> None:
        self.updated, self.states = updated, []
        for seed in seeds:
            torch.manual_seed(seed)
            self.states.append(_generator(device).get_rng_state())


class _NormByGroup:
    """The forward pass of a BatchNorm layer, group by group."""

    def __init__(self, layer: _BatchNorm, groups: _Groups) -> None:
        self.layer, self.groups = layer, groups

    def __call__(self, x: Tensor) -> Tensor:
        layer, forward, updated = self.layer, type(self.layer).forward, self.groups.updated
        if not layer.training or len(updated) == 1:
            return forward(layer, x)
        parts = []
        for part, is_updated in zip(x.chunk(len(updated)), updated, strict=True):
            layer.track_running_stats = is_updated
            parts.append(forward(layer, part))
        layer.track_running_stats = True
        return torch.cat(parts)


class _DropoutByGroup:
    """The forward pass of a dropout layer, group by group, each with its own generator state."""

    def __init__(self, layer: _DropoutNd, groups: _Groups) -> None:
        self.layer, self.groups = layer, groups

    @torch.compiler.disable
    def __call__(self, x: Tensor) -> Tensor:
        layer, forward, groups = self.layer, type(self.layer).forward, self.groups
        if not layer.training or len(groups.updated) == 1:
            return forward(layer, x)
        generator, parts = _generator(x.device), []
        for place, part in enumerate(x.chunk(len(groups.updated))):
            generator.set_rng_state(groups.states[place])
            parts.append(forward(layer, part))
            groups.states[place] = generator.get_rng_state()
        return torch.cat(parts)


@torch.no_grad()
def _draws_outside_dropout(network: nn.Module, device: torch.device) -> bool:
    """Return whether a network in training draws random numbers besides those of its dropout layers."""
    rates = {layer: layer.p for layer in network.modules() if isinstance(layer, _DropoutNd)}
    for layer in rates:
        layer.p = 0.0
    generator, was_training = _generator(device), network.training
    before = generator.get_rng_state()
    with running_statistics(network.train(), False):
        channels, side = getattr(network, "in_channels", 3), network.input_size
        network(torch.zeros(2, channels, side, side, device=device))
    after = generator.get_rng_state()
    generator.set_rng_state(before)
    network.train(was_training)
    for layer, rate in rates.items():
        layer.p = rate
    return not torch.equal(before, after)


def _generator(device: torch.device) -> Any:
    """Return what has `get_rng_state` and `set_rng_state` of a device."""
    return torch.random if device.type == "cpu" else torch.get_device_module(device)
