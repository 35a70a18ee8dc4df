"""Tell from the names and shapes of a file's tensors which network it holds, and refuse what does not fit."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert import arcface_torch, compvis, edgeface, guided_diffusion, idiff_face, tface
from facesyn_cli.models.convert.recognised import Recognised
from facesyn_cli.models.skeleton import build_skeleton
from facesyn_cli.plugins import registry

_SOURCES = (idiff_face, compvis, tface, arcface_torch, edgeface)
_SHOWN = 2  # names listed of each sort of difference
_TAESD = re.compile(r"\d+\.conv\.[024]\.weight")  # a plain sequence of blocks of three convolutions

_KNOWN: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("denoiser", "idiff-unet", {"conditioning": how}) for how in ("ca", "adagn", "unconditional")),
    *(("autoencoder", "vq-f4", {"part": part}) for part in ("both", "encoder", "decoder")),
    *(("autoencoder", "kl-f4", {"part": part}) for part in ("both", "encoder")),
    *(("autoencoder", "kl-f8", {"part": part}) for part in ("both", "encoder", "decoder")),
    *(("backbone", f"ir-{depth}", {}) for depth in (18, 34, 50, 101, 152, 200)),
    *(("backbone", f"ir-se-{depth}", {}) for depth in (18, 34, 50, 101, 152, 200)),
    *(("backbone", f"iresnet-{depth}", {}) for depth in (18, 34, 50, 100)),
    ("backbone", "ir-tiny", {}),
    ("backbone", "ir-lite", {}),
    ("backbone", "mobilefacenet", {}),
)


def recognise(tensors: Mapping[str, Tensor], where: str) -> Recognised:
    """Return the network that the tensors make up, complete and of the right shapes.

    Args:
        tensors: Tensors of a published file or of ours, under any of the known prefixes.
        where: Name of the file, for messages.

    Raises:
        UserError: They make up no known network; the message names the nearest one and what differs.
    """
    if guided_diffusion.is_guided_unet(tensors):
        raise UserError(f"{where} is a guided-diffusion UNet (DCFace stage 1), which draws faces without a context; "
                        "gen-contexts --source guided-diffusion takes it as its --generator")
    for source in _SOURCES:
        try:
            found = source.read(tensors)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (KeyError, IndexError, ValueError, ZeroDivisionError):
            continue  # has the family's mark but not its parts: the nearest network is named below
        if found is not None:
            try:
                expected = expected_shapes(found.kind, {"name": found.name, **found.settings}, len(tensors))
            except (ValidationError, RuntimeError):
                continue
            except UserError as error:
                raise UserError(f"{where} looks like {found.title}, but does not fit: {error}") from error
            complete = fill_counters(found.tensors, expected)
            if wrong := differences(expected, complete):
                raise UserError(f"{where} looks like {found.title}, but does not fit: {wrong}")
            return Recognised(found.kind, found.name, found.settings, complete, found.title, found.schedule)
    raise UserError(f"{where} {_nearest(tensors)}")


def expected_shapes(
    kind: str, settings: dict[str, Any], num_tensors: int | None = None
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return name -> (shape, dtype) of a plugin's state dict, without making its weights.

    Args:
        kind: Kind of plugin.
        settings: Its name and settings.
        num_tensors: Of the file that the settings are of; see `build_skeleton`.
    """
    module = build_skeleton(kind, registry.configure(kind, settings), num_tensors)
    return {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}


def differences(expected: Mapping[str, tuple[torch.Size, torch.dtype]], tensors: Mapping[str, Tensor]) -> str:
    """Say in one line what is missing, unexpected or of another shape; empty where nothing is."""
    missing = [key for key in expected if key not in tensors]
    unexpected = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} {list(tensors[key].shape)} instead of {list(shape)}"
        for key, (shape, _) in expected.items()
        if key in tensors and tensors[key].shape != shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(found)} {what} ({_some(found)})" for what, found in lists if found)


def fill_counters(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> dict[str, Tensor]:
    """Add the batch counters of batch norms where a file has none at all; nothing computes with them."""
    ending = "num_batches_tracked"
    if any(key.endswith(ending) for key in tensors):
        return dict(tensors)
    counters = {key: torch.zeros(shape, dtype=kind) for key, (shape, kind) in expected.items() if key.endswith(ending)}
    return {**tensors, **counters}


def _nearest(tensors: Mapping[str, Tensor]) -> str:
    """Describe the known network that shares most tensors with the file."""
    best, best_count, best_rest, best_text = "", 0, 0, ""  # of equally many matches, the one with least else
    views = {"denoiser": idiff_face.bare(tensors), "autoencoder": compvis.bare(tensors)}
    views["backbone"] = tface.bare(tensors)
    for (kind, name, settings), expected in zip(_KNOWN, _known_shapes(), strict=True):
        view = views[kind]
        count = sum(key in view and view[key].shape == shape for key, (shape, _) in expected.items())
        rest = len(expected) - count
        if count and (count, -rest) > (best_count, -best_rest):
            detail = ", ".join(str(value) for value in settings.values())
            best, best_count, best_rest = f"{kind} {name}" + (f" ({detail})" if detail else ""), count, rest
            best_text = f"{count} of its {len(expected)} tensors match; {differences(expected, view)}"
    if any(_TAESD.match(key) for key in tensors):
        return ("looks like a half of a TAESD in its author's own layout, which is not read; its folder in diffusers "
                "format (AutoencoderTiny) is")
    if not best:
        return f"holds no network known here; its tensors are called {_some(list(tensors))}"
    return f"holds no complete network known here; the nearest is {best}: {best_text}"


@functools.cache
def _known_shapes() -> list[dict[str, tuple[torch.Size, torch.dtype]]]:
    return [expected_shapes(kind, {"name": name, **settings}) for kind, name, settings in _KNOWN]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
