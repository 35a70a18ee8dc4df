"""Names that trainers and wrappers put in front of a network's own parameter names, and how they are taken off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")

# Wrappers that also identify the source of a network.
MAGFACE, CVLFACE, LIGHTNING, DIFFUSION = "features", "net", "model", "eps_model"

# Attribute -> who keeps a network under it; in any order and number. A new wrapper is one line.
WRAPPERS: dict[str, str] = {
    "module": "DistributedDataParallel, DataParallel",
    "_module": "wrappers of IDiff-Face's trainer",
    "_orig_mod": "torch.compile",
    LIGHTNING: "Lightning modules, AdaFace, timm in facesyn",
    CVLFACE: "CVLface",
    MAGFACE: "MagFace",
    DIFFUSION: "the diffusion wrapper of IDiff-Face and ADMIS",
    "first_stage_model": "latent diffusion models of CompVis, around their autoencoder",
    "network": "various trainers",
    "backbone": "various trainers",
    "encoder": "various trainers",
}
_MAX_WRAPPERS = 8  # nested in each other


@dataclass(frozen=True)
class View:
    """The tensors of a file under one prefix.

    Args:
        prefix: What was taken off, such as `module.model.`; empty for the names as they are.
        tensors: Name without the prefix -> tensor.
        around: The tensors that do not start with the prefix, under their whole names.
        color_space: `rgb` or `bgr` when a description beside the file states it, else None.
    """

    prefix: str
    tensors: dict[str, Tensor]
    around: dict[str, Tensor] = field(default_factory=dict)
    color_space: str | None = None

    @property
    def wrappers(self) -> list[str]:
        """Parts of the prefix, outermost first."""
        return self.prefix.split(".")[:-1]

    @property
    def innermost(self) -> str:
        """The wrapper directly around the network; empty where there is none."""
        return self.wrappers[-1] if self.prefix else ""

    @property
    def assumes_rgb(self) -> bool:
        """True under CVLface's wrapper when no description states the order of channels."""
        return self.innermost == CVLFACE and self.color_space is None


def views(tensors: Mapping[str, Tensor], color_space: str | None = None) -> Iterator[View]:
    """Yield the tensors under every sequence of known wrappers that starts a name, shortest first.

    Args:
        tensors: Tensors of a file.
        color_space: As of `View`.
    """
    prefixes = {""}
    for key in tensors:
        prefix = ""
        for part in key.split(".")[:-1][:_MAX_WRAPPERS]:
            if part not in WRAPPERS:
                break
            prefix += f"{part}."
            prefixes.add(prefix)
    for prefix in sorted(prefixes, key=lambda text: (text.count("."), text)):
        inside = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        around = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
        yield View(prefix, inside, around, color_space)


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors without the wrappers that all of their names share, for files whose content is known."""
    names = [str(name) for name in tensors]
    while names and (first := names[0].partition(".")[0]) in WRAPPERS and all(n.startswith(f"{first}.") for n in names):
        names = [name[len(first) + 1 :] for name in names]
    return dict(zip(names, tensors.values(), strict=True))
