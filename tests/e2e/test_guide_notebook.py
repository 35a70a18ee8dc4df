"""The notebook of the guide: its cells run in their order, and what they show is shown."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "facesyn_cli/guide/notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_small_and_was_run_in_order() -> None:
    assert NOTEBOOK.stat().st_size < 200_000
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)


def test_every_cell_is_explained() -> None:
    kinds = [cell["cell_type"] for cell in CELLS]
    assert kinds == ["markdown", "code"] * len(CODE) + ["markdown"]


def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE, 1):
        shown = _run("".join(cell["source"]), names, f"cell {number}")
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", ()) if kind != "text/plain"}
        assert shown == kinds, f"cell {number} shows {shown}, the notebook has {kinds}"
        said = any(output["output_type"] == "stream" for output in cell["outputs"])
        assert bool(capsys.readouterr().out) == said, f"cell {number}"
    untrained = names["before"].average_accuracy
    assert names["table"].average_accuracy > max(0.65, untrained + 0.05)


def _run(source: str, names: dict[str, Any], title: str) -> set[str]:
    """Run a cell; return the media types of the value of its last expression, as a notebook shows it."""
    body = ast.parse(source, title).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), title, "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), title, "eval"), names)
    methods = {"image/jpeg": "_repr_jpeg_", "text/markdown": "_repr_markdown_"}
    return {kind for kind, method in methods.items() if value is not None and getattr(value, method, lambda: None)()}
