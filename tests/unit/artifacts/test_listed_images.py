"""Lists that say who is who, and names in two Unicode forms."""

from __future__ import annotations

import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.context_set import ContextSet, write_contexts
from facesyn_cli.artifacts.embedding_set import EmbeddingSet, read_keys, write_embeddings
from facesyn_cli.artifacts.image_set import ImageFinder, ImageSet
from facesyn_cli.artifacts.name_lists import keys_of, read_name_list
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.fairness import read_groups

JPEG = b"\xff\xd8\xff\xe0"
CELEBA = [f"{i:06d}.jpg" for i in range(1, 13)]
WHO = [str(2880 + i % 4) for i in range(12)]
NFC, NFD = "Zoë Müller", unicodedata.normalize("NFD", "Zoë Müller")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG + name.encode())
    return folder


def write_list(path: Path, names: list[str] = CELEBA, who: list[str] = WHO, separator: str = " ") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}{separator}{label}\n" for name, label in zip(names, who, strict=True)), "utf-8")
    return path


def identities(images: ImageSet) -> dict[str, int]:
    return {name: len(group) for name, group in images.by_identity().items()}


@pytest.mark.parametrize("place", [
    "images", "", "img_align_celeba", "img_align_celeba/img_align_celeba", "x.zip", "x.zip/img_align_celeba",
])
@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_labels_of_a_flat_folder_are_the_identities(tmp_path, said, place, separator):
    if place.startswith("x.zip"):
        inner = place.removeprefix("x.zip").removeprefix("/")
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in CELEBA:
                archive.writestr(f"{inner}/{name}" if inner else name, JPEG + name.encode())
    else:
        make(tmp_path / place, *CELEBA)
    images = ImageSet.open(write_list(tmp_path / "identity_CelebA.txt", separator=separator))
    assert identities(images) == {"2880": 3, "2881": 3, "2882": 3, "2883": 3}
    assert images.entries[0].key == "2880/000001" and images.read(images.entries[0]) == JPEG + b"000001.jpg"
    warn_of_unclear_identities(images)
    assert not said


def test_identities_may_be_names_and_change_the_digest(tmp_path):
    make(tmp_path / "images", *CELEBA)
    make(tmp_path / "faces", *CELEBA)
    first = ImageSet.open(write_list(tmp_path / "a.txt", [f"faces/{n}" for n in CELEBA], ["Ann", "Bob", "Zoë"] * 4))
    assert identities(first) == {"Ann": 4, "Bob": 4, "Zoë": 4}
    assert ImageSet.open(write_list(tmp_path / "b.txt")).digest != first.digest


def test_lists_that_contradict_themselves_are_refused(tmp_path, said):
    make(tmp_path / "images", *CELEBA)
    with pytest.raises(UserError, match="gives '000001.jpg' the identities 1 and 2"):
        ImageSet.open(write_list(tmp_path / "a.txt", ["000001.jpg", "000001.jpg"], ["1", "2"]))
    images = ImageSet.open(write_list(tmp_path / "b.txt", ["000001.jpg", "000002.jpg", "000001.jpg"], ["1", "2", "1"]))
    assert len(images.entries) == 2 and images.left_out == {"images that the list names twice": 1}
    assert said == [f"{tmp_path / 'b.txt'}: left out: images that the list names twice: 1, first '000001.jpg'"]


def test_a_list_beside_two_folders_that_fit_is_refused(tmp_path):
    for folder in ("a", "b"):
        make(tmp_path / folder, *CELEBA)
    with pytest.raises(UserError, match="its images are in .*a and .*b; put the list beside only one"):
        ImageSet.open(write_list(tmp_path / "list.txt"))


def test_folders_of_a_split_that_labels_join(tmp_path):
    names = ["train/Ann/1.jpg", "train/Bob/1.jpg", "val/Ann/2.jpg", "val/Bob/2.jpg"]
    make(tmp_path, *names)
    assert len(identities(ImageSet.open(tmp_path))) == 4
    assert identities(ImageSet.open(write_list(tmp_path / "l.txt", names, ["0", "1"] * 2))) == {"Ann": 2, "Bob": 2}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take both forms for one name")
def test_names_in_two_unicode_forms_are_one_identity(tmp_path, said):
    make(tmp_path, f"{NFC}/1.jpg", f"{NFD}/2.jpg", "Bob/1.jpg")
    images = ImageSet.open(tmp_path)
    assert identities(images) == {"Bob": 1, NFC: 2}
    assert [images.read(e)[4:].decode() for e in images.entries[1:]] == [f"{NFC}/1.jpg", f"{NFD}/2.jpg"]
    assert len(said) == 1 and "folders with one name in two Unicode forms: 1" in said[0]
    make(tmp_path, f"{NFD}/1.jpg")
    with pytest.raises(UserError, match=f"several images have the key '{NFC}/1.jpg': '.*' and '.*'; rename"):
        ImageSet.open(tmp_path)


@pytest.mark.parametrize(("on_disk", "listed"), [(NFC, NFD), (NFD, NFC)])
def test_lists_find_names_in_the_other_form(tmp_path, said, on_disk, listed):
    make(tmp_path / "images", f"{on_disk}/{on_disk}_1.jpg", "Bob/1.jpg")
    names = [f"{listed}/{listed}_1.jpg", "Bob/1.jpg"]
    images = ImageSet.open(write_list(tmp_path / "l.txt", names, ["0", "1"]))
    assert [e.key for e in images.entries] == ["Bob/1", f"{NFC}/{NFC}_1"] and not said
    folder = ImageSet.open(tmp_path / "images")
    assert [e.key for e in folder.entries] == [e.key for e in images.entries]
    finder = ImageFinder(folder)
    for name in (*names, f"{listed}_1.jpg", f"{listed}/{listed}_1"):
        assert finder.find(name, named_in=tmp_path) is not None
    assert keys_of(names, tmp_path) == [f"{NFC}/{NFC}_1", "Bob/1"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{on_disk}/1.jpg", JPEG)
    assert ImageSet.open(tmp_path / "x.zip").entries[0].key == f"{NFC}/1"


def test_everything_that_is_joined_by_name_is_nfc(tmp_path):
    with open_output(tmp_path / "e", "EmbeddingSet", "embed", StageConfig(), {}) as output:
        write_embeddings(tmp_path / "e", [f"{NFD}/1"], np.ones((1, 4), np.float32))  # of an earlier facesyn
        output.finish({"embeddings": 1})
    assert EmbeddingSet.open(tmp_path / "e").join([f"{NFC}/1"]).shape == (1, 4)
    (tmp_path / "keys.txt").write_text(f"{NFD}/1\n{NFC}/1\n", "utf-8")
    with pytest.raises(UserError, match="one key in two Unicode forms"):
        read_keys(tmp_path / "keys.txt")
    for names, fits in (([NFD, "Bob"], True), ([NFD, NFC], False)):
        with open_output(tmp_path / str(fits), "ContextSet", "gen-contexts", StageConfig(), {}) as output:
            write_contexts(tmp_path / str(fits), names, np.eye(2, 4, dtype=np.float32), [{}, {}], [None, None])
            output.finish({"contexts": 2})
    assert ContextSet.open(tmp_path / "True").identities == [NFC, "Bob"]
    with pytest.raises(UserError, match="two contexts of the identity"):
        ContextSet.open(tmp_path / "False")
    (tmp_path / "groups.csv").write_text(f"identity,sex\n{NFD},f\n", "utf-8")
    assert read_groups(tmp_path / "groups.csv")[1] == {"sex": {NFC: "f"}}


@pytest.mark.parametrize(("names", "says"), [
    (CELEBA, "images outside of folders, each an identity of its own: 12 of 12, first '000001.jpg'"),
    ([*(f"p{i}/{j}.jpg" for i in range(2) for j in range(6)), "cover.jpg"], "each an identity of its own: 1 of 13"),
    ([f"{i}/face.jpg" for i in range(12)], "nearly one identity per image: 12 of 12 images"),
    (["train/Ann/1.jpg", "train/Ann/2.jpg", "val/Ann/3.jpg"],
     "folder names under several folders, each a separate identity: 1, first 'train/Ann' and 'val/Ann'"),
    (["a/frontal/1.jpg", "a/profile/1.jpg", "b/frontal/1.jpg"], "identity: 1, first 'a/frontal' and 'b/frontal'"),
    (["Train/1.jpg", "Train/2.jpg", "Val/1.jpg"], "identities named like parts of a split: 'Train', 'Val'"),
    ([f"faces/{name}" for name in CELEBA], "few identities for 12 images: 1, first 'faces'"),
])
def test_folders_that_do_not_say_who_is_who(tmp_path, said, names, says):
    make(tmp_path / "set", *names)
    warn_of_unclear_identities(ImageSet.open(tmp_path / "set"))
    assert len(said) == 1 and says in said[0] and "a text list with lines `FILE IDENTITY`" in said[0]


def test_folders_that_say_it_are_taken_as_they_are(tmp_path, said):
    make(tmp_path / "set", *(f"p{i}/{j}.jpg" for i in range(4) for j in range(3)))
    warn_of_unclear_identities(ImageSet.open(tmp_path / "set"))
    with open_output(tmp_path / "ours", "ImageSet", "align", StageConfig(), {}) as output:
        make(tmp_path / "ours", *CELEBA)
        output.finish({"images": 12})
    warn_of_unclear_identities(ImageSet.open(tmp_path / "ours"))
    assert not said


@pytest.mark.parametrize("where", ["identity_CelebA.txt", "img/identity_CelebA.txt"])
def test_the_list_beside_the_images_is_named_and_works(tmp_path, said, where):
    make(tmp_path / "img", *CELEBA)
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg {i % 3}\n" for i in range(1, 4000)))
    (tmp_path / "readme.txt").write_text("hello\n")
    found = write_list(tmp_path / where)
    images = ImageSet.open(tmp_path / "img")
    said.clear()
    warn_of_unclear_identities(images)
    assert len(said) == 1 and f"{found} lists the identities: give it in place of {tmp_path / 'img'}" in said[0]
    assert len(identities(ImageSet.open(found))) == 4
    assert read_name_list(found).labels == WHO
