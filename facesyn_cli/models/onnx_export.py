"""Export a recognizer to ONNX with a dynamic batch size, verified against the original.

Input: `pixels` (batch, 3, side, side), RGB in [-1, 1], that is (gray level - 127.5) / 127.5 as in InsightFace's models.
Output: `embedding` (batch, D), not normalized.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from facesyn_cli.errors import UserError
from facesyn_cli.models.onnx_files import OnnxFile, missing_packages, open_session

OPSET = 17
TOLERANCE = 1e-3  # largest allowed difference, relative to the standard deviation of the embeddings
_BATCHES = (1, 3)  # the traced batch size, and another one


def export_onnx(network: nn.Module, input_size: int, path: Path) -> float:
    """Export the network and return the difference of its outputs to the original.

    Args:
        network: In eval mode, on the CPU: pixels (B, 3, input_size, input_size) -> (B, D).
        input_size: Side of the images in pixels.
        path: File to write; removed if the outputs differ.

    Returns:
        Largest absolute difference over batches of 1 and 3, over the standard deviation of the embeddings.

    Raises:
        UserError: Packages are missing, the network cannot be exported, or the outputs differ.
    """
    try:
        import onnx  # noqa: F401  needed by the exporter
    except ImportError as error:
        raise UserError(missing_packages(error)) from error
    example = torch.zeros(1, 3, input_size, input_size)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated, but needs no further package
            torch.onnx.export(network, (example,), str(path), dynamo=False, opset_version=OPSET,
                              input_names=["pixels"], output_names=["embedding"],
                              dynamic_axes={"pixels": {0: "batch"}, "embedding": {0: "batch"}})
    except (RuntimeError, torch.onnx.errors.OnnxExporterError, ValueError, TypeError) as error:
        raise UserError(f"the network cannot be exported to ONNX: {' '.join(str(error).split())[:200]}") from error
    session = open_session(OnnxFile(str(path), path))
    worst = max(_difference(network, session, batch, input_size) for batch in _BATCHES)
    if not worst <= TOLERANCE:
        path.unlink()
        raise UserError(f"the exported network differs by {worst:.2g} of the spread of the embeddings "
                        f"(at most {TOLERANCE} were expected); nothing is written")
    return worst


@torch.inference_mode()
def _difference(network: nn.Module, session: object, batch: int, side: int) -> float:
    pixels = np.random.RandomState(batch).uniform(-1, 1, (batch, 3, side, side)).astype(np.float32)
    expected = network(torch.from_numpy(pixels)).numpy()
    (found,) = session.run(["embedding"], {"pixels": pixels})
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(float(expected.std()), 1e-12))
