"""Inference options of denoiser and decoder: number format, memory layout, compilation, CUDA graphs, fused projections.

None of them changes the output by more than rounding. `facesyn bench sample` measures the speed-up of each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.models.attention_maps import Tap
from facesyn_cli.models.dit_blocks import JointAttention
from facesyn_cli.models.idiff_blocks import Attention, CrossAttentionBlock, SelfAttentionBlock
from facesyn_cli.models.precision import DTYPES


@dataclass(frozen=True)
class InferenceOptions:
    """How denoiser and decoder are run.

    Args:
        precision: fp32, bf16 or fp16: number format of the denoiser's weights and activations.
        decoder_precision: The same for the decoder, by autocast: the codebook is always looked up in float32.
        channels_last: Keep channels last in memory, the layout of the fast convolution kernels.
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
        """Refuse options that the device does not support.

        Raises:
            UserError: compile or cuda_graphs without CUDA.
        """
        for name in ("compile", "cuda_graphs"):
            if getattr(self, name) and device.type != "cuda":
                raise UserError(f"{name}=true needs a CUDA device, this run is on {device.type}")


class FastDenoiser:
    """A denoiser run with inference options: float32 in, float32 out.

    Args:
        module: The network, in eval mode on its device; its weights are converted in place.
        options: How to run it.

    Raises:
        UserError: fused_qkv, and the network has no self-attention with separate projections.
    """

    def __init__(self, module: nn.Module, options: InferenceOptions) -> None:
        self._module, self._is_joint = module, options.joint_guidance
        self.has_attention_maps = getattr(module, "has_attention_maps", False)
        self.has_early_output = getattr(module, "has_early_output", False)
        self.is_traced = options.compile or options.cuda_graphs
        if options.fused_qkv and not fuse_qkv(module):
            raise UserError("fused_qkv=true: this denoiser has no self-attention with separate projections")
        self._dtype = DTYPES[options.precision]
        _lay_out(module, options)
        module.to(self._dtype)
        if options.compile:
            module.compile(dynamic=False)
        self._evaluate: Callable[..., Tensor] = module
        if options.cuda_graphs:
            # One graph for each batch size, as guided steps may have twice as many, and for each set of options.
            graphs: dict[tuple[Any, ...], CudaGraph] = {}

            def replay(x: Tensor, t: Tensor, context: Any, **options: bool) -> Tensor:
                key = len(x), *options.items()
                if key not in graphs:
                    graphs[key] = CudaGraph(partial(module, **options))
                return graphs[key](x, t, context)

            self._evaluate = replay
        if hasattr(module, "encode_context"):
            self.encode_context = self._encode_context

    def __call__(self, x: Tensor, t: Tensor, context: Any, **options: bool) -> Tensor:
        """Return the network's output, float32: (B, C, H, W), with the early one (2, B, C, H, W).

        Args:
            x: (B, C, H, W) float32.
            t: (B,) timesteps.
            context: What `encode_context` returned; (B, E) contexts or None where the network has none.
            options: Further arguments of the network: `with_early=True`.
        """
        with exact_convolutions(self._dtype):
            return self._evaluate(x.to(self._dtype), t, _cast(context, self._dtype), **options).float()

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
    """The decoder of an autoencoder run with inference options.

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


class CudaGraph:
    """A network evaluation captured as a CUDA graph at the first call and replayed at all later ones.

    By hand, and not by torch.compile(mode="reduce-overhead"): its graphs belong to the thread that captures them, and
    batches are computed in worker threads.

    All calls have the shapes of the first. Contexts are copied in when they change: once a batch, or at every
    evaluation where guidance alternates between two.
    """

    def __init__(self, module: Callable[..., Tensor]) -> None:
        self._module = module
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor, list[Tensor]]
        self._output: Tensor
        self._context: Any = None

    def __call__(self, x: Tensor, t: Tensor, context: Any) -> Tensor:
        if self._graph is None:
            self._capture(x, t, context)
        static_x, static_t, static_context = self._inputs
        static_x.copy_(x)
        static_t.copy_(t)
        if context is not self._context:
            for target, value in zip(static_context, _tensors(context), strict=True):
                target.copy_(value)
            self._context = context  # a reference, so that no later object gets its id
        self._graph.replay()
        return self._output.clone()  # the next replay overwrites it

    def _capture(self, x: Tensor, t: Tensor, context: Any) -> None:
        copy = _mapped(context, Tensor.clone)
        self._inputs = (x.clone(), t.clone(), _tensors(copy))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # workspaces are allocated outside of the capture
            for _ in range(3):
                self._module(*self._inputs[:2], copy)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # writers may wait for a batch meanwhile
            self._output = self._module(*self._inputs[:2], copy)
        self._graph = graph  # last: where memory runs out, the next call captures again


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


def fuse_qkv(network: nn.Module) -> int:
    """Replace the query, key and value projections of every self-attention by one; return how many were replaced.

    Args:
        network: In eval mode, changed in place. Cross-attention stays: its keys and values are computed once a batch.
    """
    count = 0
    for block in network.modules():
        name = {CrossAttentionBlock: "self_attention", SelfAttentionBlock: "attention"}.get(type(block))
        if name is not None and type(getattr(block, name)) is Attention:
            setattr(block, name, FusedSelfAttention(getattr(block, name)))
            count += 1
        elif isinstance(block, JointAttention):
            block.fuse()
            count += 1
    return count


class FusedSelfAttention(nn.Module):
    """The self-attention of `models/idiff_blocks.py` with one projection.

    Args:
        attention: Its weights are copied.

    Shapes: B batch, L positions, C channels, A heads, D width of one head.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        layers = (attention.to_q, attention.to_k, attention.to_v)
        self.head_channels = attention.head_channels
        self.register_buffer("weight", torch.cat([layer.weight.detach().flatten(1) for layer in layers]))  # (3 C, C)
        self.register_buffer("bias", torch.cat([layer.bias.detach() for layer in layers]))                 # (3 C,)
        self.proj_out = attention.proj_out

    def forward(self, x: Tensor, keys_values: None = None, tap: Tap | None = None) -> Tensor:
        """Return what each position of x (B, L, C) reads from the others, (B, L, C); `tap` as of `Attention`."""
        qkv = F.linear(x, self.weight, self.bias).unflatten(2, (3, -1, self.head_channels))  # (B, L, 3, A, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                                 # 3 x (B, A, L, D)
        y = F.scaled_dot_product_attention(q, k, v) if tap is None else tap(q, k).to(v.dtype) @ v
        rows = y.transpose(1, 2).flatten(2)                                                  # (B, L, C)
        return F.linear(rows, self.proj_out.weight.flatten(1), self.proj_out.bias)
