"""A recognizer as an ONNX network: any batch, pixels in, embeddings out, checked against the original.

The graph takes `pixels` (batch, 3, side, side), RGB in [-1, 1], which is (gray level - 127.5) / 127.5 as
InsightFace's own files expect it, and gives `embedding` (batch, D), not normalized.
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

OPSET = 17
TOLERANCE = 1e-3  # largest difference allowed, relative to the spread of the embeddings
_BATCHES = (1, 3)  # a batch that was traced, and one that was not


def export_onnx(network: nn.Module, input_size: int, path: Path) -> float:
    """Write the network and return how far its output is from the original's.

    Args:
        network: In eval mode, on the CPU: pixels (B, 3, input_size, input_size) -> (B, D).
        input_size: Side of the images in pixels.
        path: File to write; removed again when the two differ.

    Returns:
        Largest absolute difference over batches of 1 and 3, over the standard deviation of the embeddings.

    Raises:
        UserError: The packages are missing, the network cannot be expressed, or the two differ.
    """
    try:
        import onnx  # noqa: F401  the exporter writes through it
        import onnxruntime
    except ImportError as error:
        raise UserError(f'convert --to onnx needs packages that are not installed ({error.name}): '
                        'pip install "facesyn[onnx]"') from error
    example = torch.zeros(1, 3, input_size, input_size)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter that needs no further package is called legacy
            torch.onnx.export(
                network, (example,), str(path), dynamo=False, opset_version=OPSET,
                input_names=["pixels"], output_names=["embedding"],
                dynamic_axes={"pixels": {0: "batch"}, "embedding": {0: "batch"}},
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError, ValueError, TypeError) as error:
        raise UserError(f"the network cannot be expressed in ONNX: {' '.join(str(error).split())[:200]}") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
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
