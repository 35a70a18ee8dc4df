"""The SVG of a pipeline: well-formed, texts inside their boxes, hostile names escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from facesyn_cli.report.pipeline_picture import BOX, WIDTH, StageBox, draw_pipeline, fit, text_width

SVG = "{http://www.w3.org/2000/svg}"


def test_names_are_escaped_and_long_ones_cut() -> None:
    box = StageBox("sample", "a < b & c", "x" * 80, ["word " * 20, "y" * 90], ["<pill>", "z" * 70], done="1,000 images")
    picture = draw_pipeline("A & B", "lead", [box], ["note <1>"], "facesyn run --config 'a&b'")
    root = ElementTree.fromstring(picture)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "a < b & c" in texts and "<pill>" in texts and "facesyn run --config 'a&b'" in texts
    assert all(len(text) < 60 for text in texts) and sum(text.startswith("word") for text in texts) > 1
    assert "1,000 images" not in texts, "there is no room beside that folder"


def test_what_fits_stays_as_it_is() -> None:
    assert fit("ddim, 20 steps", "fact", BOX) == "ddim, 20 steps"
    cut = fit("W" * 100, "fact", 100)
    assert cut.endswith("\N{HORIZONTAL ELLIPSIS}") and text_width(cut, "fact") <= 100


def test_every_number_of_boxes_gives_a_picture() -> None:
    for count in range(1, 8):
        boxes = [StageBox(f"s{k}", "does", f"{k}-out", ["x"], reads=[f"s{j}" for j in range(k)]) for k in range(count)]
        root = ElementTree.fromstring(draw_pipeline("T", "l", boxes, ["a note"], "facesyn"))
        assert len([g for g in root.iter(f"{SVG}g")]) == count and root.get("width") == str(WIDTH)
        lowest = max(float(text.get("y")) for text in root.iter(f"{SVG}text"))
        assert lowest < float(root.get("height"))
