"""What a file of tensors turned out to be, and tools the readers of published files share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Recognised:
    """A network found in a file.

    Args:
        kind: Plugin kind: denoiser, autoencoder or backbone.
        name: Plugin name.
        settings: Settings of the plugin that follow from shapes; others keep their defaults.
        tensors: The network's tensors under its own parameter names.
        title: What to call it in a message, with its article.
        schedule: Noise schedule found beside a denoiser, as fields of `LdmSettings`; empty where none was.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    title: str
    schedule: dict[str, Any] = field(default_factory=dict)


def strip_prefix(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Take off the first of the prefixes that starts every name; without one, return the names as they are."""
    for prefix in prefixes:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return {key[len(prefix) :]: value for key, value in tensors.items()}
    return dict(tensors)


def indices(tensors: Mapping[str, Tensor], prefix: str) -> range:
    """Return 0 .. n-1 for the numbered modules `<prefix><i>.` among the names."""
    numbers = {key[len(prefix) :].partition(".")[0] for key in tensors if key.startswith(prefix)}
    return range(1 + max((int(n) for n in numbers if n.isdecimal()), default=-1))
