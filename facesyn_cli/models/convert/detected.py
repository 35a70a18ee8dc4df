"""What a file of tensors turned out to be, and tools the readers of published files share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Attributes under which trainers and wrappers keep a network, in any order and number in front of its own names.
# `torch.compile` adds `_orig_mod`, DistributedDataParallel `module`, accelerators of Lightning `_module`.
WRAPPERS = frozenset(
    {"module", "_module", "_orig_mod", "model", "net", "network", "backbone", "encoder", "features", "eps_model"}
)
RGB_BY_DEFAULT = " (RGB, as CVLface's are where no model.yaml beside the file says otherwise)"
_MAX_WRAPPERS = 8  # nested in each other


@dataclass(frozen=True)
class View:
    """The tensors of a file under one prefix.

    Args:
        prefix: What was taken off, such as `module.model.`; empty for the names as they are.
        tensors: Name without the prefix -> tensor.
        around: The tensors that do not start with the prefix, under their whole names.
        color_space: `rgb` or `bgr` where a description beside the file says so, else None.
    """

    prefix: str
    tensors: dict[str, Tensor]
    around: dict[str, Tensor] = field(default_factory=dict)
    color_space: str | None = None

    @property
    def assumes_rgb(self) -> bool:
        """True under CVLface's wrapper where no description says which order of channels it takes."""
        return self.wrappers[-1:] == ["net"] and self.color_space is None

    @property
    def wrappers(self) -> list[str]:
        """Parts of the prefix, outermost first."""
        return self.prefix.split(".")[:-1]


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
        """Say in one line where in the file it lies and what was left out; empty where the file is it alone."""
        parts = [f"under {self.place!r}"] if self.place else []
        parts += [f"prefix {self.prefix!r} taken off"] if self.prefix else []
        if self.left_out:
            shown = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
            parts.append(f"left out, as no part of it: {len(self.left_out)} ({shown})")
        return "; ".join(parts)


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


def indices(tensors: Mapping[str, Tensor], prefix: str) -> range:
    """Return 0 .. n-1 for the numbered modules `<prefix><i>.` among the names."""
    numbers = {key[len(prefix) :].partition(".")[0] for key in tensors if key.startswith(prefix)}
    return range(1 + max((int(n) for n in numbers if n.isdecimal()), default=-1))
