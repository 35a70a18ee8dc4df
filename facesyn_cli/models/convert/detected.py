"""The network that was detected in a file of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

RGB_BY_DEFAULT = " (RGB, as CVLface's are where no model.yaml beside the file says otherwise)"


@dataclass(frozen=True)
class DetectedNetwork:
    """A network found in a file.

    Args:
        kind: Plugin kind: denoiser, autoencoder or backbone.
        name: Plugin name.
        settings: Settings of the plugin that follow from names, shapes and wrappers; others keep their defaults.
        tensors: The network's tensors under its own parameter names.
        title: What to call it in a message, with its article.
        schedule: Noise schedule found beside a denoiser, as fields of `LdmSettings`; empty where none was.
        undecided: Setting that the file leaves open and that must be given; empty where there is none.
        prefix: What stands in front of the network's names in the file.
        left_out: Names of the file's tensors (of whole dicts of tensors: their keys) that are no part of the network.
        place: Keys of the nested dict that holds the network, joined by `/`; empty for the outermost one.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    title: str
    schedule: dict[str, Any] = field(default_factory=dict)
    undecided: str = ""
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    place: str = ""

    def origin(self) -> str:
        """Return one line on its place in the file and what was left out; empty when the file holds nothing else."""
        parts = [f"under {self.place!r}"] if self.place else []
        parts += [f"prefix {self.prefix!r} taken off"] if self.prefix else []
        if self.left_out:
            shown = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
            parts.append(f"left out, as no part of it: {len(self.left_out)} ({shown})")
        return "; ".join(parts)


def indices(tensors: Mapping[str, Tensor], prefix: str) -> range:
    """Return 0 .. n-1 for the numbered modules `<prefix><i>.` among the names."""
    numbers = {key[len(prefix) :].partition(".")[0] for key in tensors if key.startswith(prefix)}
    return range(1 + max((int(n) for n in numbers if n.isdecimal()), default=-1))
