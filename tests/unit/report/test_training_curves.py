"""Long training logs are thinned for the page; rare lines and the last ones stay."""

from __future__ import annotations

from facesyn_cli.report import contents


def test_rare_lines_stay_when_a_curve_is_thinned() -> None:
    lines: list[dict] = []
    for step in range(1, 3001):
        lines.append({"step": step, "loss": 1.0 / step})
        if step % 1000 == 0:
            lines.append({"step": step, "val_loss": 2.0 / step})
    thinned = contents._thinned(lines)
    assert [line["step"] for line in thinned if "val_loss" in line] == [1000, 2000, 3000]
    losses = [line["step"] for line in thinned if "loss" in line]
    assert 250 <= len(losses) <= 500 and losses[-1] == 3000 and losses == sorted(losses)


def test_curves_do_not_depend_on_the_speed_of_a_run() -> None:
    curves = [contents.training_curves({"ldm": [{"step": 1, "loss": 0.5, "images_per_s": speed}], "fr": []})
              for speed in (900.0, 1.5)]
    assert curves[0] == curves[1] == {"ldm": {"path": "2-ldm", "lines": [{"step": 1, "loss": 0.5}]}, "fr": None}
