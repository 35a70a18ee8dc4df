"""`run --draw`: every stage of every recipe, texts inside their boxes, finished folders, and the README's picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import ImageFont
from tiny_recognizer import face

import facesyn_cli
from facesyn_cli.artifacts.atomic_files import write_json
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.recipe import TABLE, load_recipe, load_sections, recipe_names
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.pipelines.picture import draw_recipe
from facesyn_cli.pipelines.run import resolve_recipe
from facesyn_cli.report.pipeline_picture import BOX

README_PICTURE = Path(facesyn_cli.__file__).parent / "guide" / "pipeline.svg"
SVG = "{http://www.w3.org/2000/svg}"
PADDING = 8  # least distance of a text from the border of its box
RECIPES = [name for name in recipe_names() if set(load_sections(name)) - {TABLE}]


def parse(picture: str) -> tuple[ElementTree.Element, dict[str, ElementTree.Element]]:
    root = ElementTree.fromstring(picture)
    return root, {group.get("id").removeprefix("stage-"): group for group in root.iter(f"{SVG}g")}


def texts_of(element: ElementTree.Element) -> list[str]:
    return [text.text for text in element.iter(f"{SVG}text")]


def right_end(text: ElementTree.Element) -> float:
    """Return where a text ends in the font that comes with Pillow; a letter of a fixed-width font is 0.6 wide."""
    style, sizes = text.get("class"), {"name": 17, "folder": 13, "about": 14.5, "fact": 14, "pill": 13, "done": 13}
    if style in ("name", "folder"):
        return float(text.get("x")) + 0.6 * sizes[style] * len(text.text)
    return float(text.get("x")) + ImageFont.load_default(sizes[style]).getlength(text.text)


@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_is_a_box_and_texts_stay_inside(name: str, tmp_path: Path) -> None:
    configs = resolve_recipe(load_recipe(name), [], {})
    root, groups = parse(draw_recipe(name, configs, Work(tmp_path / "none"), "facesyn run --draw x.svg"))
    assert list(groups) == list(configs)
    for group in groups.values():
        box = group.find(f"{SVG}rect")
        left, top, height = (float(box.get(key)) for key in ("x", "y", "height"))
        for text in group.iter(f"{SVG}text"):
            assert top < float(text.get("y")) < top + height
            if text.get("class") not in ("count", "done"):
                assert left + PADDING < float(text.get("x")) and right_end(text) <= left + BOX - PADDING, text.text
    lines = [path for path in root.iter(f"{SVG}path") if path.get("class") == "wire"]
    assert len(lines) >= len(configs) - 2
    assert texts_of(root)[-1] == "facesyn run --draw x.svg"
    assert root.find(f"{SVG}desc").text == "Made by: facesyn run --draw x.svg"


def test_inputs_from_outside_and_settings_are_named(tmp_path: Path) -> None:
    configs = resolve_recipe(load_recipe("admis"), ["sample.guidance.name=cfg", "sample.guidance.scale=2"], {})
    _, groups = parse(draw_recipe("admis", configs, Work(tmp_path), "x"))
    expected = {
        "embed": {"photos", "recognizer", "1-embeddings"}, "train-ldm": {"photos", "autoencoder", "idiff-unet, 128 px"},
        "gen-contexts": {"faces", "recognizer", "10,000 identities", "source images"},
        "sample": {"10,000 identities x 50 images", "ddim-admis, 50 steps", "guidance cfg 2"},
        "eval": {"benchmarks", "lfw, cfp-fp, cplfw, agedb-30, calfw"},
    }
    for stage, texts in expected.items():
        assert texts <= set(texts_of(groups[stage])), stage
    assert "photos" not in texts_of(groups["sample"])


def finish(folder: Path, command: str, cfg, counts: dict[str, int]) -> None:
    write_json(folder / "facesyn.json", {
        **Header("ImageSet", command, cfg.to_json(), {}, counts).__dict__, "digest": "sha256:0", "lineage": "sha256:0"})


def test_finished_folders_show_counts_and_generated_faces(tmp_path: Path) -> None:
    sections = {"align": {"images": "photos", "detector": "d"}, "sample": {"ids": 2, "per_id": 1}, "augment": {}}
    configs = resolve_recipe(sections, [], {})
    for stage, folder in (("align", "0-images"), ("sample", "4-samples")):
        for person in range(2):
            (tmp_path / folder / str(person)).mkdir(parents=True)
            (tmp_path / folder / str(person) / "0.png").write_bytes(encode_png(face(person, 0)))
        finish(tmp_path / folder, stage, configs[stage], {"images": 1234})
    root, groups = parse(draw_recipe("r", configs, Work(tmp_path), "x"))
    assert [len(list(group.iter(f"{SVG}image"))) for group in groups.values()] == [0, 2, 0], "photos are not shown"
    assert "1,234 images" in texts_of(groups["sample"]) and "other settings" not in " ".join(texts_of(root))
    other = resolve_recipe({**sections, "sample": {"ids": 2, "per_id": 1, "seed": 5}}, [], {})
    root, groups = parse(draw_recipe("r", other, Work(tmp_path), "x"))
    assert "1,234 images" not in texts_of(groups["sample"]) and "other settings" in " ".join(texts_of(root)[-6:])


def test_the_picture_of_the_readme_is_current() -> None:
    """Made by `sample --work starter-faces --starter packaged --ids 60 --per-id 5`, `augment --work starter-faces
    augmentation.name=photometric` and the command in the picture."""
    kept, kept_groups = parse(README_PICTURE.read_text(encoding="utf-8"))
    _, groups = parse(draw_recipe("admis", resolve_recipe(load_recipe("admis"), [], {}), Work(Path("none")), ""))
    assert {name: texts_of(group) for name, group in kept_groups.items()} == {
        name: texts_of(group) for name, group in groups.items()}
    assert [len(list(kept_groups[stage].iter(f"{SVG}image"))) for stage in ("sample", "augment")] == [5, 5]
    assert README_PICTURE.stat().st_size < 150_000
    assert texts_of(kept)[-1] == "facesyn run --config admis --work starter-faces --draw pipeline.svg"
