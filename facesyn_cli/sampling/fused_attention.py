"""Queries, keys and values of self-attention as one matrix product in place of three."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.models.attention_maps import Tap
from facesyn_cli.models.idiff_blocks import Attention, CrossAttentionBlock, SelfAttentionBlock


def fuse_qkv(network: nn.Module) -> int:
    """Fuse the projections of every self-attention of a network, in place; return how many there were.

    Args:
        network: In eval mode; keys and values of contexts are worked out once a batch anyway and stay as they are.
    """
    count = 0
    for block in network.modules():
        name = {CrossAttentionBlock: "self_attention", SelfAttentionBlock: "attention"}.get(type(block))
        if name is not None and type(getattr(block, name)) is Attention:
            setattr(block, name, FusedSelfAttention(getattr(block, name)))
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
