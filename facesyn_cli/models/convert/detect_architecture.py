"""Detects the network in a file from the names and shapes of its tensors, and refuses what does not fit.

One rule for all files: of the dicts of tensors in a file, under any sequence of known wrappers, exactly one must be a
known network. Other tensors are left out and named.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from facesyn_cli.artifacts.weights import read_tensor_dicts
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert import arcface_torch, compvis, edgeface, guided_diffusion, idiff_face, tface
from facesyn_cli.models.convert.detected import DetectedNetwork
from facesyn_cli.models.convert.wrappers import View, views
from facesyn_cli.models.meta_networks import build_on_meta
from facesyn_cli.plugins import registry
from facesyn_cli.untrusted.input_files import read_text

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]  # of a state dict, by name

_SOURCES = (idiff_face, compvis, tface, arcface_torch, edgeface)
_LOOKS = "looks like "
_SHOWN = 2  # names listed of each sort of difference
_TAESD = re.compile(r"\d+\.conv\.[024]\.weight")  # a plain sequence of blocks of three convolutions
# Names of classifiers and losses that trainers keep beside a network, on the same level as its layers.
_HEADS = ("head", "heads", "classifier", "fc", "logits", "margin", "metric_fc", "loss", "criterion", "kernel", "weight")
_DESCRIPTION = "model.yaml"  # of CVLface, beside its weights
_COLOR_SPACE = re.compile(r"^\s*color_space\s*:\s*[\"']?(\w+)", re.MULTILINE)
_MAX_DESCRIPTION = 1 << 20  # bytes

_KNOWN: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("denoiser", "idiff-unet", {"conditioning": how}) for how in ("ca", "adagn", "unconditional")),
    *(("autoencoder", "vq-f4", {"part": part}) for part in ("both", "encoder", "decoder")),
    *(("autoencoder", "kl-f4", {"part": part}) for part in ("both", "encoder")),
    *(("autoencoder", "kl-f8", {"part": part}) for part in ("both", "encoder", "decoder")),
    *(("backbone", f"ir-{depth}", {}) for depth in (18, 34, 50, 101, 152, 200)),
    *(("backbone", f"ir-se-{depth}", {}) for depth in (18, 34, 50, 101, 152, 200)),
    *(("backbone", f"ir-{depth}", {"variant": "face-evolve"}) for depth in (18, 34, 50, 101)),
    *(("backbone", f"ir-se-{depth}", {"variant": "face-evolve"}) for depth in (18, 34, 50, 101)),
    *(("backbone", f"iresnet-{depth}", {}) for depth in (18, 34, 50, 100)),
    ("backbone", "ir-tiny", {}),
    ("backbone", "ir-lite", {}),
    ("backbone", "mobilefacenet", {}),
    ("backbone", "mbf", {}),
    ("backbone", "mbf-large", {}),
)


def detect_architecture(path: Path) -> DetectedNetwork:
    """Return the network in a torch or safetensors file; see `detect_in_dicts`.

    Raises:
        UserError: As `read_tensor_dicts` and `detect_in_dicts`.
    """
    return detect_in_dicts(read_tensor_dicts(path), path)


def detect_in_dicts(dicts: Mapping[str, Mapping[str, Tensor]], path: Path) -> DetectedNetwork:
    """Return the network in one of the dicts of a file.

    Args:
        dicts: As `read_tensor_dicts` gives them.
        path: The file, for messages and for the description that CVLface puts beside it.

    Raises:
        UserError: None of them holds a known network, several do, or the description is damaged.
    """
    where, color_space = str(path), _color_space(path)
    found, first_error = [], None
    for place, tensors in dicts.items():
        try:
            one = detect(tensors, where, color_space)
        except _TwoNetworks:
            raise
        except UserError as error:
            first_error = first_error or error
        else:
            others = tuple(name or "the outermost dict" for name in dicts if name != place)
            found.append(replace(one, place=place, left_out=(*one.left_out, *others)))
    if not found:
        raise first_error
    return _only(found, where)


def detect(tensors: Mapping[str, Tensor], where: str, color_space: str | None = None) -> DetectedNetwork:
    """Return the network in a dict of tensors, complete and of the right shapes.

    Args:
        tensors: Tensors of a published file or of ours, behind any sequence of known wrappers.
        where: Name of the file, for messages.
        color_space: `rgb` or `bgr` of the recognizer, when a description beside the file states it.

    Raises:
        UserError: They are no known network (the message names the nearest one and the differences), or several.
    """
    if guided_diffusion.is_guided_unet(tensors):
        raise UserError(f"{where} is a guided-diffusion UNet (DCFace stage 1), which draws faces without a context; "
                        "gen-contexts --source guided-diffusion takes it as its --generator")
    found, first_error = [], None
    for view in views(tensors, color_space):
        for source in _SOURCES:
            try:
                one = _complete(source.read(view), view, tensors)
            except UserError as error:
                first_error = first_error or UserError(
                    f"{where} {error}" if str(error).startswith(_LOOKS) else f"{where}: {error}")
            except (KeyError, IndexError, ValueError, ZeroDivisionError):
                continue  # has the family's mark but not its parts: the nearest network is named below
            else:
                found += [one] if one is not None else []
    if found:
        return _only(found, where)
    raise first_error or UserError(f"{where} {_nearest(tensors)}")


class _TwoNetworks(UserError):
    """The file holds several networks."""


def _only(found: list[DetectedNetwork], where: str) -> DetectedNetwork:
    if len(found) > 1:
        names = " and ".join(f"{one.title} under {'/'.join(filter(None, (one.place, one.prefix))) or 'no prefix'!r}"
                             for one in found)
        raise _TwoNetworks(f"{where} holds several networks, {names}; a file with the one that is meant was expected")
    return found[0]


def _complete(found: DetectedNetwork | None, view: View, tensors: Mapping[str, Tensor]) -> DetectedNetwork | None:
    """Check the network that a reader found and complete its fields; None stays None.

    Raises:
        UserError: It has not the tensors that such a network has.
    """
    if found is None:
        return None
    try:
        expected = expected_shapes(found.kind, {"name": found.name, **found.settings}, len(found.tensors))
    except (ValidationError, RuntimeError):
        return None
    except UserError as error:
        raise UserError(f"{_LOOKS}{found.title}, but does not fit: {error}") from error
    own = {key: value for key, value in found.tensors.items()
           if key in expected or key.partition(".")[0] not in _HEADS}
    complete = fill_counters(own, expected)
    if wrong := differences(expected, complete):
        raise UserError(f"{_LOOKS}{found.title}, but does not fit: {wrong}")
    used = {id(value) for value in own.values()}
    if found.kind == "denoiser":
        used |= {id(value) for value in idiff_face.find_buffers(view).values()}
    left_out = tuple(key for key, value in tensors.items() if id(value) not in used)
    return replace(found, tensors=complete, prefix=view.prefix, left_out=left_out)


def _color_space(path: Path) -> str | None:
    """Return the order of channels that CVLface's description beside a file states; None when there is none."""
    description = path.with_name(_DESCRIPTION)
    if not description.exists():
        return None
    match = _COLOR_SPACE.search(read_text(description, _MAX_DESCRIPTION, f"the description of {path.name}"))
    if match is None:
        return None
    if match[1].lower() not in ("rgb", "bgr"):
        raise UserError(f"{description}: color_space {match[1]}; RGB or BGR was expected")
    return match[1].lower()


def expected_shapes(kind: str, settings: dict[str, Any], num_tensors: int | None = None) -> Shapes:
    """Return name -> (shape, dtype) of a plugin's state dict, without making its weights.

    Args:
        kind: Kind of plugin.
        settings: Its name and settings.
        num_tensors: Of the file that the settings are of; see `build_on_meta`.
    """
    return shapes_of(build_on_meta(kind, registry.configure(kind, settings), num_tensors).state_dict())


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return name -> (shape, dtype) of a state dict."""
    return {key: (value.shape, value.dtype) for key, value in state.items()}


def check_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Check the numbers of a file.

    Raises:
        UserError: One is not finite.
    """
    if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise UserError(f"{where} holds numbers that are not finite, in {len(bad)} tensors such as {bad[0]}")


def differences(expected: Shapes, tensors: Mapping[str, Tensor]) -> str:
    """Return one line on the tensors that are missing, unexpected or of another shape; empty when there are none."""
    missing = [key for key in expected if key not in tensors]
    unexpected = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} {list(tensors[key].shape)} instead of {list(shape)}"
        for key, (shape, _) in expected.items()
        if key in tensors and tensors[key].shape != shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(found)} {what} ({_some(found)})" for what, found in lists if found)


def fill_counters(tensors: Mapping[str, Tensor], expected: Shapes) -> dict[str, Tensor]:
    """Add the batch counters of batch norms where a file has none at all; nothing computes with them."""
    ending = "num_batches_tracked"
    if any(key.endswith(ending) for key in tensors):
        return dict(tensors)
    counters = {key: torch.zeros(shape, dtype=kind) for key, (shape, kind) in expected.items() if key.endswith(ending)}
    return {**tensors, **counters}


def _nearest(tensors: Mapping[str, Tensor]) -> str:
    """Describe the known network that shares most tensors with the file."""
    best, best_count, best_rest, best_text = "", 0, 0, ""  # of equally many matches, the one with least else
    for view in views(tensors):
        seen = {"denoiser": view.tensors, "backbone": view.tensors, "autoencoder": compvis.without_loss(view.tensors)}
        for (kind, name, settings), expected in zip(_KNOWN, _known_shapes(), strict=True):
            own = seen[kind]
            count = sum(key in own and own[key].shape == shape for key, (shape, _) in expected.items())
            rest = len(expected) - count
            if count and (count, -rest) > (best_count, -best_rest):
                detail = ", ".join(str(value) for value in settings.values())
                best, best_count, best_rest = f"{kind} {name}" + (f" ({detail})" if detail else ""), count, rest
                best_text = f"{count} of its {len(expected)} tensors match; {differences(expected, own)}"
    if any(_TAESD.match(key) for key in tensors):
        return ("looks like a half of a TAESD in its author's own layout, which is not read; its folder in diffusers "
                "format (AutoencoderTiny) is")
    if not best:
        return f"holds no network known here; its tensors are called {_some(list(tensors))}"
    return f"holds no complete network known here; the nearest is {best}: {best_text}"


@functools.cache
def _known_shapes() -> list[Shapes]:
    return [expected_shapes(kind, {"name": name, **settings}) for kind, name, settings in _KNOWN]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
