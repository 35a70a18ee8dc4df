"""Long training logs are thinned for the page; rare lines and the last ones stay."""

from __future__ import annotations

from facesyn_cli.artifacts.work import Work
from facesyn_cli.stages import report


def test_rare_lines_stay_when_a_curve_is_thinned() -> None:
    lines: list[dict] = []
    for step in range(1, 3001):
        lines.append({"step": step, "loss": 1.0 / step})
        if step % 1000 == 0:
            lines.append({"step": step, "val_loss": 2.0 / step})
    thinned = report._thinned(lines)
    assert [line["step"] for line in thinned if "val_loss" in line] == [1000, 2000, 3000]
    losses = [line["step"] for line in thinned if "loss" in line]
    assert 250 <= len(losses) <= 500 and losses[-1] == 3000 and losses == sorted(losses)


def test_curves_do_not_depend_on_the_speed_of_a_run(tmp_path) -> None:
    curves = []
    for name, speed in (("fast", 900.0), ("slow", 1.5)):
        folder = tmp_path / name / "2-ldm"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 0.5, "images_per_s": {speed}}}\n')
        curves.append(report._training(Work(tmp_path / name)))
    assert curves[0] == curves[1] and curves[0]["ldm"]["lines"] == [{"step": 1, "loss": 0.5}]
