"""Cards on the hub: a new one, and the license in the head of one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from published_folders import HOME, finish, recognizer, sampled

from facesyn_cli.artifacts.atomic_files import write_text
from facesyn_cli.artifacts.publication import Publication
from facesyn_cli.errors import UserError
from facesyn_cli.report.hub_card import card_of, license_of


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_new_card_tells_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s")
    finish(folder, "ImageSet", "sample", {"images": 8}, settings={"seed": 3, "noise": f"{HOME}/noise.npy"})
    card = card_of(Publication.of(folder), "me/fa_ces", None)
    assert head_of(card) == {"license": "other", "license_name": "unknown",
                             "tags": ["facesyn", "face-recognition", "synthetic"]}
    assert license_of(card, "card") is None
    for text in ("# fa\\_ces\n", "8 images.", "none is meant to show a real person", "facesyn pull me/fa_ces\n",
                 "`facesyn sample` of facesyn", "noise: noise.npy\n", "seed: 3\n"):
        assert text in card, card
    assert HOME not in card
    assert "pytorch" in head_of(card_of(Publication.of(recognizer(tmp_path / "fr")), "me/net", None))["tags"]


@pytest.mark.parametrize(("before", "after"), [
    ("# Title\n", "---\nlicense: mit\n---\n\n# Title\n"),
    ("---\n# mine\nlicense: other\nlicense_name: unknown\ntags: [a]\n---\nText\n---\n",
     "---\nlicense: mit\n# mine\ntags: [a]\n---\nText\n---\n"),
    ("---\ntags: [a]\n---", "---\nlicense: mit\ntags: [a]\n---\n"),
    ("---\nlicense: mit\n---\nText", "---\nlicense: mit\n---\nText"),
])
def test_the_license_goes_into_the_head_and_nothing_else_changes(tmp_path: Path, before: str, after: str) -> None:
    folder = sampled(tmp_path / "s")
    write_text(folder / "README.md", before)
    made = Publication.of(folder)
    assert card_of(made, "me/faces", None) == before
    assert card_of(made, "me/faces", "mit") == after and license_of(after, "card") == "mit"
    assert (folder / "README.md").read_text() == before


@pytest.mark.parametrize(("card", "says"), [
    ("---\nlicense: [\n---\n", "the head of .*: invalid YAML"), ("---\n- a\n---\n", "no YAML mapping"),
    ("---\nlicense: apache-2.0\n---\n", "states the license apache-2.0, --license mit"),
])
def test_heads_that_do_not_fit(tmp_path: Path, card: str, says: str) -> None:
    folder = sampled(tmp_path / "s")
    write_text(folder / "README.md", card)
    with pytest.raises(UserError, match=says):
        card_of(Publication.of(folder), "me/faces", "mit")
