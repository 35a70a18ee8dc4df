"""The gallery: what it holds, what it does in a real browser, and that no name of a stranger acts as markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import ask, needs_browser
from made_report import HOSTILE

from facesyn_cli.data.pixels import decode_image
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.report.gallery import FOLDER, PAGE, SIDE, GallerySet, write_gallery
from facesyn_cli.report.gallery_rows import GalleryRows, gallery_rows

_SAMPLES = 5
_PEOPLE = ["ann", "bob", "</script><script>document.title = 'taken'</script>",
           "<img src=x onerror=\"document.title='taken'\">",
           *[f"n{k:03d}" for k in range(26)]]


def people(names: list[str], seed: int = 0, name: str = "set") -> LabeledEmbeddings:
    """Return embeddings of people with `_SAMPLES` images each; image 0 of `ann` shows `bob`."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((len(names), 32))
    rows = np.repeat(centers, _SAMPLES, 0) + 0.5 * generator.standard_normal((len(names) * _SAMPLES, 32))
    rows[0] = rows[_SAMPLES]
    keys = [f"{one}/{k}" for one in names for k in range(_SAMPLES)]
    owners = [one for one in names for _ in range(_SAMPLES)]
    return LabeledEmbeddings.of(keys, owners, rows / np.linalg.norm(rows, axis=1, keepdims=True), name)


def rows_of(most: int | None = None, max_pairs: int = 10**9) -> GalleryRows:
    whole = people(_PEOPLE)
    lengths = {key: float((7 * k) % 150) for k, key in enumerate(whole.keys)}
    return gallery_rows(whole, lengths, people(["r0", "r1"], 1), most, max_pairs, 0)


def write(
    folder: Path, made_from: Any = 1, names: tuple[str, ...] = ("set",), most: int | None = None, pairs: int = 10**9
) -> Path:
    """Write a gallery in which every image has a gray value of its own."""
    reference = people(["r0", "r1"], 1).keys
    shown = next(reference[row] for row in rows_of().training)

    def gray(name: str, key: str) -> np.ndarray | None:
        if key == "bob/1":
            return None
        return np.full((20, 20, 3), people(_PEOPLE).keys.index(key) % 256, np.uint8)

    sets = [GallerySet(name, "Origin.", "judge", lambda: reference, {shown: "data:image/png;base64,AAAA"},
                       lambda: rows_of(most, pairs)) for name in names]
    write_gallery(folder, sets, made_from, gray, 2)
    return folder / FOLDER / PAGE


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report"))


def test_neighbors_and_doubts_are_those_of_the_whole_set() -> None:
    found = rows_of()
    whole = people(_PEOPLE)
    scores = whole.vectors @ whole.centers.T
    scores[np.arange(len(scores)), whole.owner] = -np.inf
    np.testing.assert_array_equal(found.other, scores.argmax(1))
    np.testing.assert_allclose(found.to_other, scores.max(1), atol=1e-6)
    assert found.other[0] == 1 and found.is_doubtful[0] and found.is_doubtful.sum() < 10
    training = people(["r0", "r1"], 1)
    np.testing.assert_array_equal(found.training, (whole.vectors @ training.vectors.T).argmax(1))


def test_a_bound_takes_whole_identities_and_keeps_their_neighbors() -> None:
    found, whole = rows_of(most=23), rows_of()
    assert len(found.rows.keys) == 20 and set(found.rows.sizes) == {_SAMPLES} and found.num_images == 150
    place = [whole.rows.keys.index(key) for key in found.rows.keys]
    np.testing.assert_array_equal(found.other, whole.other[place])
    np.testing.assert_array_equal(found.is_doubtful, whole.is_doubtful[place])
    np.testing.assert_array_equal(found.quality, whole.quality[place])


def test_neighbors_beyond_the_pairs_are_left_open_and_the_page_says_so(page: Path, tmp_path: Path) -> None:
    assert "label doubts are known for 10 images" in write(tmp_path, pairs=300).read_text()
    assert "are known for" not in page.read_text()
    found = rows_of(max_pairs=300)  # 30 identities: 10 images
    assert (found.other >= 0).sum() == 10 and np.isnan(found.to_other).sum() == 140
    assert not found.is_doubtful[found.other < 0].any()


def test_sprites_hold_the_images_in_order(page: Path) -> None:
    sprites = sorted((page.parent / "thumbs-1").iterdir())
    assert [path.name for path in sprites] == ["00000.jpg", "00001.jpg"]
    pixels = np.concatenate([decode_image(path.read_bytes()) for path in sprites])
    tiles = pixels.reshape(16, SIDE, 16, SIDE, 3).swapaxes(1, 2).reshape(256, SIDE, SIDE, 3)
    means = tiles.mean((1, 2, 3))
    wanted = np.arange(150.0)
    wanted[people(_PEOPLE).keys.index("bob/1")] = 128  # unreadable
    np.testing.assert_allclose(means[:150], wanted, atol=1.5)
    np.testing.assert_allclose(means[150:], 128, atol=1.5)


def test_names_of_strangers_are_data(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and "<img" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert data["names"][: len(_PEOPLE)] == _PEOPLE and len(data["samples"]) == 150
    assert data["samples"][:2] == ["0", "1"]


def test_images_of_the_reference_are_named_and_only_those_of_the_report_shown(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert len(data["trainingKeys"]) > 1 and len(data["photos"]) == 1
    assert {path.name for path in page.parent.iterdir()} == {PAGE, "thumbs-1", "made-from.json"}


def test_a_gallery_is_kept_until_what_it_is_made_from_changes(tmp_path: Path) -> None:
    page = write(tmp_path)
    page.write_text("kept")
    write(tmp_path)
    assert page.read_text() == "kept"
    (tmp_path / ".tmp-gallery-new").mkdir()  # of a killed run
    assert "10 of 150" in write(tmp_path, made_from=2, most=10).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_every_set_has_a_page_that_leads_to_the_others(tmp_path: Path) -> None:
    page = write(tmp_path, names=("one", HOSTILE))
    text = page.read_text(encoding="utf-8")
    assert 'href="set-2.html"' in text and 'href="index.html" aria-current="page"' in text
    other = (page.parent / "set-2.html").read_text(encoding="utf-8")
    assert "thumbs-2" in other and other.count("<script") == 2


@needs_browser
@pytest.mark.parametrize("width", [500, 1400])
def test_filter_sort_and_paging_in_a_browser(page: Path, width: int) -> None:
    found = ask(page, """
      const all = (name) => [...document.querySelectorAll(name)];
      const shown = () => all(".tile").map((one) => one.title);
      const scores = () => all(".tile span:last-child").map((one) => Number(one.textContent));
      const set = (id, value, kind) => { const one = document.getElementById(id);
        if (one.type === "checkbox") one.checked = value; else one.value = value; one.dispatchEvent(new Event(kind)); };
      const count = () => document.getElementById("count").textContent;
      const press = (words) => all("button").find((one) => one.textContent === words).click();
      const detail = document.getElementById("detail");
      const name = () => document.getElementById("detail-name").textContent;
      const answer = {first: shown(), all: count()};
      press("Next"); answer.second = shown();
      press("Last"); answer.last = [shown(), location.hash];
      set("sort", "quality", "change"); answer.quality = scores();
      set("sort", "best", "change"); answer.best = scores();
      set("sort", "training", "change"); answer.training = scores();
      set("doubts", true, "change"); answer.doubts = [shown(), count()];
      set("doubts", false, "change");
      set("identity", "BO", "input"); answer.bob = [shown(), count(), location.hash];
      all(".tile")[0].click(); answer.detail = [detail.open, name(), all("#detail figure").length];
      detail.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true})); answer.next = name();
      history.back(); await until(() => location.hash.includes("doubts")); answer.back = location.hash;
      answer.picture = await new Promise((go) => { const one = new Image(); one.onload = () => go(one.naturalWidth);
        one.onerror = () => go(0); one.src = "thumbs-1/00001.jpg"; });
      answer.overflow = document.documentElement.scrollWidth > innerWidth;
      return {...answer, errors, title: document.title};
    """, width)
    keys = people(_PEOPLE).keys
    titles = [f"{key.rpartition('/')[0]}, {key.rpartition('/')[2]}" for key in keys]
    assert found["first"] == titles[:60] and found["second"] == titles[60:120]
    assert found["last"] == [titles[120:], "#page=3"]
    assert found["all"] == "150 images"
    lengths = sorted((7 * k) % 150 for k in range(150))
    assert found["quality"] == lengths[:60] and found["best"] == lengths[::-1][:60]
    assert found["training"] == sorted(found["training"], reverse=True) and len(set(found["training"])) > 20
    rows = rows_of()
    assert found["doubts"][0][0] in {titles[k] for k in np.flatnonzero(rows.is_doubtful)}
    assert len(found["doubts"][0]) == rows.is_doubtful.sum()
    assert sorted(found["bob"][0]) == titles[5:10] and found["bob"][1:] == ["5 images", "#identity=BO&sort=training"]
    assert found["back"] == "#doubts=1&sort=training"
    assert found["detail"][0] is True and found["detail"][2] == 3
    assert found["detail"][1].startswith("Identity bob, image ")
    assert found["next"].startswith("Identity bob, image ") and found["next"] != found["detail"][1]
    assert found["picture"] == 16 * SIDE
    assert not found["overflow"] and found["errors"] == [] and found["title"] == "set: facesyn gallery"


@needs_browser
def test_links_from_the_report_open_what_they_name(page: Path) -> None:
    path = page.with_name("linked.html")
    path.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    found = ask(path, """
      location.hash = "#doubts=1&sort=center&identity=ann";
      await until(() => document.querySelectorAll(".tile").length < 6);
      return [...document.querySelectorAll(".tile")].map((one) => one.title);
    """)
    assert found == ["ann, 0"]
