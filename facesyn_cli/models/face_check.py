"""Does a recognizer tell people apart? Tried on eight packaged faces of four people, before any work.

A network with the wrong normalization, or without trained weights, gives embeddings like any other, nearly the same
for everybody. On the packaged faces, which the starter drew, recognizers have a mean cosine of 0.55 or more between
faces of one person and of 0.1 or less between two people; fed with gray levels instead of [-1, 1] 0.96 and 0.87, with
random weights 0.85 to 0.98 and 0.7 to 0.9. BGR for RGB, or [0, 1] for [-1, 1], change too little to be seen here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from facesyn_cli.console import log
from facesyn_cli.models.onnx_backbone import OnnxBackbone
from facesyn_cli.models.onnx_input import GREY_LEVELS, SYMMETRIC, UNIT

MIN_GAP = 0.25  # between the mean cosines of one person and of two; recognizers have 0.45 to 0.6
_SHEET = Path(__file__).with_name("check_faces.jpg")  # a row a person
_SIDE = 112


@dataclass(frozen=True)
class Cosines:
    """Mean cosines of the packaged faces.

    Args:
        same: Between two faces of one person.
        other: Between faces of two people.
    """

    same: float
    other: float

    @property
    def are_apart(self) -> bool:
        """True when one person is nearer than two by at least `MIN_GAP`."""
        return self.same - self.other >= MIN_GAP

    def __str__(self) -> str:
        return f"{self.same:.2f} for one person and {self.other:.2f} for two"


def face_cosines(network: nn.Module, side: int) -> Cosines:
    """Return the mean cosines of the packaged faces.

    Args:
        network: (B, 3, side, side) in [-1, 1] -> (B, D), in eval mode, on the CPU.
        side: In pixels.
    """
    faces, person = _faces(side)
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(network(faces).double(), dim=1)
    cosine = rows @ rows.T
    is_same = person[:, None] == person
    is_pair = torch.ones_like(is_same).triu(1)
    return Cosines(float(cosine[is_same & is_pair].mean()), float(cosine[~is_same & is_pair].mean()))


def warn_of_strange(network: nn.Module, side: int, where: str) -> None:
    """Say so where a network does not tell the packaged faces apart, and what of an ONNX file does.

    Args:
        network: As of `face_cosines`.
        side: In pixels.
        where: Name of the file, for the message.
    """
    found = face_cosines(network, side)
    if found.are_apart:
        return
    advice = "it is untrained, or expects pixels in another order or range"
    if isinstance(network, OnnxBackbone):
        advice = _better_input(network) or "it is untrained, no face recognizer, or expects pixels normalized otherwise"
    log.warning(f"{where} does not tell the packaged faces apart: mean cosine {found} (recognizers: at least {MIN_GAP} "
                f"between them); {advice}")


def _better_input(network: OnnxBackbone) -> str | None:
    """Return which settings tell the faces apart, the most usual of those that do; None where none does."""
    orders = ("rgb", "bgr") if network.channel_order == "rgb" else ("bgr", "rgb")
    for order in orders:
        for mean, std in (SYMMETRIC, GREY_LEVELS, UNIT):  # [0, 1] does nearly as well where [-1, 1] is right: last
            other = copy.copy(network)
            other.set_input(mean, std, order)
            found = face_cosines(other, network.input_size)
            if found.are_apart:
                return f"backbone onnx with mean={mean:g} std={std:g} channel_order={order} does: {found}"
    return None


def _faces(side: int) -> tuple[Tensor, Tensor]:
    """Return the faces, (8, 3, side, side) in [-1, 1], and who is on each, (8,)."""
    with Image.open(_SHEET) as image:
        sheet = np.array(image.convert("RGB"))
    people, columns = sheet.shape[0] // _SIDE, sheet.shape[1] // _SIDE
    tiles = sheet.reshape(people, _SIDE, columns, _SIDE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, _SIDE, _SIDE)
    faces = torch.from_numpy(tiles.copy()).float() / 127.5 - 1
    if side != _SIDE:
        faces = torch.nn.functional.interpolate(faces, (side, side), mode="bilinear", antialias=True)
    return faces, torch.arange(people).repeat_interleave(columns)
