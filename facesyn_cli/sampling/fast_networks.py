"""The same networks, faster: number format, memory layout, fused kernels, recorded launches.

None of it changes what is computed by more than rounding. What a lever is worth on a machine is what
`facesyn bench sample` says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.sampling.fused_attention import fuse_qkv

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class InferenceOptions:
    """How the networks are run.

    Args:
        precision: fp32, bf16 or fp16: number format of the denoiser's weights and activations.
        decoder_precision: The same for the decoder, by autocast: the codebook is always looked up in float32.
        channels_last: Keep channels last in memory, as convolution kernels want them.
        compile: Fuse kernels with torch.compile; CUDA only, a minute or two at the start of a run.
        cuda_graphs: Record the launches of an evaluation once and replay them; CUDA only, pays at small batches.
        fused_qkv: One matrix product for queries, keys and values of self-attention.
        joint_guidance: Evaluate the two contexts of a guided step in one pass of twice the batch.
    """

    precision: str = "fp32"
    decoder_precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    fused_qkv: bool = False
    joint_guidance: bool = False

    def check(self, device: torch.device) -> None:
        """Refuse what the device cannot do.

        Raises:
            UserError: compile or cuda_graphs without CUDA.
        """
        for name in ("compile", "cuda_graphs"):
            if getattr(self, name) and device.type != "cuda":
                raise UserError(f"{name}=true needs a CUDA device, this run is on {device.type}")


class FastDenoiser:
    """A denoiser under the options: float32 in, float32 out.

    Args:
        module: The network, in eval mode on its device; its weights are converted in place.
        options: How to run it.

    Raises:
        UserError: There is nothing to fuse.
    """

    def __init__(self, module: nn.Module, options: InferenceOptions) -> None:
        self._module, self._is_joint = module, options.joint_guidance
        if options.fused_qkv and not fuse_qkv(module):
            raise UserError("fused_qkv=true: this denoiser has no self-attention with separate projections")
        self._dtype = DTYPES[options.precision]
        _lay_out(module, options)
        module.to(self._dtype)
        if options.compile:
            module.compile(dynamic=False)
        self._evaluate = _Replays(module) if options.cuda_graphs else module
        if hasattr(module, "encode_context"):
            self.encode_context = self._encode_context

    def __call__(self, x: Tensor, t: Tensor, context: Any) -> Tensor:
        """Return the network's output (B, C, H, W) float32.

        Args:
            x: (B, C, H, W) float32.
            t: (B,) timesteps.
            context: What `encode_context` returned; (B, E) contexts or None where the network has none.
        """
        with exact_convolutions(self._dtype):
            return self._evaluate(x.to(self._dtype), t, _cast(context, self._dtype)).float()

    def join_contexts(self, first: Any, second: Any) -> Any:
        """Return the contexts of a batch of 2 B made of two of B; None where they are to be evaluated in turn."""
        if not self._is_joint:
            return None
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            return torch.cat([first, second])
        return first.joined(second) if hasattr(first, "joined") else None

    def _encode_context(self, context: Tensor | None, **options: Any) -> Any:
        with exact_convolutions(self._dtype):
            return self._module.encode_context(_cast(context, self._dtype), **options)


class FastAutoencoder:
    """The decoder of an autoencoder under the options.

    Args:
        module: The autoencoder, in eval mode on its device.
        options: How to run it.
        device: Where it is.
    """

    def __init__(self, module: nn.Module, options: InferenceOptions, device: torch.device) -> None:
        self._dtype, self._device = DTYPES[options.decoder_precision], device
        _lay_out(module, options)
        self._decode = torch.compile(module.decode, dynamic=False) if options.compile else module.decode

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S) float32 of latents (B, c, h, w)."""
        is_mixed = self._dtype is not torch.float32
        with (
            exact_convolutions(self._dtype),
            torch.autocast(self._device.type, self._dtype if is_mixed else None, enabled=is_mixed),
        ):
            return self._decode(latents).float()


def exact_convolutions(dtype: torch.dtype) -> AbstractContextManager:
    """Keep cuDNN from rounding float32 convolutions to TF32, which is as coarse as fp16."""
    if dtype is not torch.float32:
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


class _Replays:
    """A recording for each size of batch: guided steps may have twice as many images as others."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._of_size: dict[int, _Replay] = {}

    def __call__(self, x: Tensor, t: Tensor, context: Any) -> Tensor:
        if len(x) not in self._of_size:
            self._of_size[len(x)] = _Replay(self._module)
        return self._of_size[len(x)](x, t, context)


class _Replay:
    """Evaluations of a network recorded as a CUDA graph at the first call and replayed at all later ones.

    Every call has the shapes of the first. Contexts are copied in when they change, once
    a batch, or once an evaluation where guidance takes turns between two.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor, list[Tensor]]
        self._output: Tensor
        self._shown: Any = None

    def __call__(self, x: Tensor, t: Tensor, context: Any) -> Tensor:
        if self._graph is None:
            self._record(x, t, context)
        static_x, static_t, static_context = self._inputs
        static_x.copy_(x)
        static_t.copy_(t)
        if context is not self._shown:
            for target, value in zip(static_context, _tensors(context), strict=True):
                target.copy_(value)
            self._shown = context  # kept, so that no later context can be mistaken for it
        self._graph.replay()
        return self._output.clone()  # the next replay writes over it

    def _record(self, x: Tensor, t: Tensor, context: Any) -> None:
        copy = _mapped(context, Tensor.clone)
        self._inputs = (x.clone(), t.clone(), _tensors(copy))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # workspaces are made outside of the recording
            for _ in range(3):
                self._module(*self._inputs[:2], copy)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # writers may wait for a batch meanwhile
            self._output = self._module(*self._inputs[:2], copy)
        self._graph = graph  # not before: where memory ran out, the next call records again


def _lay_out(module: nn.Module, options: InferenceOptions) -> None:
    if options.channels_last:
        module.to(memory_format=torch.channels_last)


def _cast(context: Any, dtype: torch.dtype) -> Any:
    return context.to(dtype) if isinstance(context, Tensor) else context


def _tensors(value: Any) -> list[Tensor]:
    """Return all tensors of an encoded context, in order."""
    found: list[Tensor] = []
    _mapped(value, found.append)
    return found


def _mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return an encoded context of the same form (tuples and dataclasses) with every tensor mapped."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(part, function) for part in value)
    if is_dataclass(value):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), function) for field in fields(value)})
    return value
