"""The cache of decoded faces: the same pixels as without it, whatever happens to its file."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data import decoded_cache
from facesyn_cli.data.datasets import LabeledImages, TrainingFaces, WeightedSet
from facesyn_cli.data.decoded_cache import CachePlan, DecodedCache, plan_caches
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.transforms import compose
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

COUNT, SIDE = 10, 16
ROW = SIDE * SIDE * 3 + 4


class Counted(LabeledImages):
    """Images that count how often each was read."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images)
        self.reads: Counter[int] = Counter()

    def read(self, index: int) -> bytes:
        self.reads[index] += 1
        return super().read(index)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images larger than the faces that are read."""
    random = np.random.default_rng(0)
    for i in range(COUNT):
        path = tmp_path / "faces" / f"p{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(random.integers(0, 256, (SIDE + 3, SIDE, 3), dtype=np.uint8)))
    return tmp_path / "faces"


def opened(images: Path, folder: Path | None) -> tuple[TrainingFaces, Counted]:
    """Return faces with random changes, read from a cache where there is a folder for it, and what they read."""
    examples = Counted(ImageSet.open(images))
    transforms = compose([registry.configure("transform", {"name": name}) for name in ("flip", "random-erasing")])
    faces = TrainingFaces([WeightedSet(examples)], transforms, 1, SIDE)
    if folder is not None:
        faces.use(faces.plan_caches("cache", folder, folder, 2), processes("cpu"))
    return faces, examples


def all_of(faces: TrainingFaces, epoch: int) -> list[tuple[torch.Tensor, int]]:
    return [faces[epoch, row] for row in range(len(faces))]


def assert_same(one: list, other: list) -> None:
    for (pixels_u8, label), (expected, expected_label) in zip(one, other, strict=True):
        assert torch.equal(pixels_u8, expected) and label == expected_label


def file_of(folder: Path) -> Path:
    (path,) = folder.rglob("faces.u8")
    return path


def test_faces_are_the_same_with_and_without_it_and_each_image_is_decoded_once(images: Path, tmp_path: Path):
    plain, _ = opened(images, None)
    faces, examples = opened(images, tmp_path / "cache")
    for epoch in range(3):
        assert_same(all_of(faces, epoch), all_of(plain, epoch))
    assert examples.reads == Counter(range(COUNT))
    assert file_of(tmp_path / "cache").stat().st_size == COUNT * ROW == faces.caches[0].num_bytes
    again, examples = opened(images, tmp_path / "cache")
    assert_same(all_of(again, 3), all_of(plain, 3))
    assert not examples.reads, "another run reads the same cache"


def test_a_transform_may_write_to_the_face_it_is_given(images: Path, tmp_path: Path):
    """A plugin of others may; the cache keeps its own pixels."""
    faces, _ = opened(images, tmp_path / "cache")

    def blacken(pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        pixels_u8[:] = 0
        return pixels_u8

    faces.transform = blacken
    for epoch in (0, 1):
        assert not faces[epoch, 3][0].any()
    faces.transform = None
    plain, _ = opened(images, None)
    plain.transform = None
    assert torch.equal(faces[2, 3][0], plain[2, 3][0])


def test_a_killed_run_goes_on_and_finished_rows_are_not_decoded_again(images: Path, tmp_path: Path):
    faces, _ = opened(images, tmp_path / "cache")
    for row in (4, 0, 7):
        faces[0, row]
    with open(file_of(tmp_path / "cache"), "r+b") as file:  # killed while row 2 was written
        file.seek(2 * ROW)
        file.write(b"\x05" * (ROW // 2))
    again, examples = opened(images, tmp_path / "cache")
    assert_same(all_of(again, 1), all_of(opened(images, None)[0], 1))
    assert examples.reads == Counter({row: 1 for row in range(COUNT) if row not in (4, 0, 7)})


@pytest.mark.parametrize("place", [3 * ROW, 3 * ROW + 100, 4 * ROW - 1], ids=["first", "middle", "checksum"])
def test_a_damaged_row_is_decoded_again_and_mended(images: Path, tmp_path: Path, place: int):
    faces, _ = opened(images, tmp_path / "cache")
    all_of(faces, 0)
    data = bytearray(file_of(tmp_path / "cache").read_bytes())
    data[place] ^= 1
    file_of(tmp_path / "cache").write_bytes(data)
    for expected in (Counter({3: 1}), Counter()):
        again, examples = opened(images, tmp_path / "cache")
        assert_same(all_of(again, 0), all_of(opened(images, None)[0], 0))
        assert examples.reads == expected


def test_a_file_that_was_cut_short_or_removed_is_made_again(images: Path, tmp_path: Path):
    faces, _ = opened(images, tmp_path / "cache")
    all_of(faces, 0)
    os.truncate(file_of(tmp_path / "cache"), 5 * ROW + 1)
    again, examples = opened(images, tmp_path / "cache")
    assert_same(all_of(again, 0), all_of(opened(images, None)[0], 0))
    assert examples.reads == Counter(range(5, COUNT))
    shutil.rmtree(tmp_path / "cache")
    assert_same(all_of(again, 1), all_of(opened(images, None)[0], 1))  # the open file outlives its name


def test_a_row_of_zeros_is_no_face(tmp_path: Path):
    cache = DecodedCache(tmp_path, "none", 2, SIDE).open()
    assert cache.read(0) is None and cache.read(1) is None and cache.read(2) is None
    cache.write(1, np.zeros((SIDE, SIDE, 3), np.uint8))
    assert cache.read(0) is None and not cache.read(1).any()


def test_other_images_have_another_cache(images: Path, tmp_path: Path):
    def folder() -> Path:
        return opened(images, None)[0].plan_caches("cache", tmp_path, tmp_path, 2).caches[0].folder

    first = folder()
    assert folder() == first
    path = next(images.rglob("*.png"))
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))  # written again, with the same size
    assert folder() != first
    content = opened(images, None)[1].content()
    assert DecodedCache(tmp_path, content, COUNT, SIDE).folder != DecodedCache(tmp_path, content, COUNT, 32).folder
    few = LabeledImages(ImageSet.open(images), np.arange(1, COUNT))
    assert few.content() != content


def test_an_image_that_changed_is_read_anew(images: Path, tmp_path: Path):
    all_of(opened(images, tmp_path / "cache")[0], 0)
    path = images / "p1" / "1.png"
    path.write_bytes(encode_png(np.full((SIDE, SIDE, 3), 200, np.uint8)))
    os.utime(path, ns=(5, 5))
    faces, _ = opened(images, tmp_path / "cache")
    assert_same(all_of(faces, 0), all_of(opened(images, None)[0], 0))


def test_readers_beside_each_other_fill_one_cache(images: Path, tmp_path: Path):
    """Two processes are two openings of one file; here each has two threads."""
    readers = [opened(images, tmp_path / "cache") for _ in range(2)]
    plain = all_of(opened(images, None)[0], 0)
    with ThreadPoolExecutor(4) as pool:
        rows = [(reader, (start + row) % COUNT) for row in range(COUNT) for start in (0, 3) for reader in range(2)]
        found = list(pool.map(lambda job: readers[job[0]][0][0, job[1]], rows))
    assert_same(found, [plain[row] for _, row in rows])
    _, examples = again = opened(images, tmp_path / "cache")
    assert_same(all_of(again[0], 0), plain)
    assert not examples.reads


def test_a_full_disk_costs_speed_alone(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    faces, examples = opened(images, tmp_path / "cache")
    whole, written = os.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        written.append(offset)
        if len(written) == 4:
            whole(descriptor, data[:100], offset)
            raise OSError(28, "No space left on device")
        return whole(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    plain, _ = opened(images, None)
    for epoch in range(2):
        assert_same(all_of(faces, epoch), all_of(plain, epoch))
    assert len(written) == 4, "nothing is written after the disk is full"
    assert [examples.reads[row] for row in range(COUNT)] == [1] * 3 + [2] * 7
    assert caplog.text.count("No space left") == 1 and "faces.u8 cannot be written" in caplog.text


def test_unreadable_images_are_named_as_without_it(images: Path, tmp_path: Path):
    (images / "p1" / "1.png").write_bytes(b"no image at all")
    faces, _ = opened(images, tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(UserError, match=r"p1/1\.png in .* is unreadable"):
            all_of(faces, 0)


def test_folder_that_cannot_be_written_is_one_line(images: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a folder was expected"):
        opened(images, tmp_path / "file")


class TestChoice:
    """What auto takes, and what the others refuse."""

    def plan(self, tmp_path: Path, choice: str = "auto", reads: float = 2) -> CachePlan:
        caches = [DecodedCache(tmp_path, "a", 1000, 112), DecodedCache(tmp_path, "b", 24, 112)]
        return plan_caches(lambda: caches, choice, reads)

    def free(self, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
        monkeypatch.setattr(decoded_cache, "free_bytes", lambda folder: num_bytes)

    def test_auto_takes_half_of_the_free_space_where_images_are_read_again(self, tmp_path, monkeypatch):
        size = 1024 * (112 * 112 * 3 + 4)
        self.free(monkeypatch, 2 * size)
        plan = self.plan(tmp_path)
        assert plan.is_used and plan.num_bytes == size and f"{size / 2**30:.2f} GiB" in plan.reason
        assert not self.plan(tmp_path, reads=1).is_used and not self.plan(tmp_path, "fly").is_used
        self.free(monkeypatch, 2 * size - 2)
        plan = self.plan(tmp_path)
        assert not plan.is_used and plan.num_bytes == 0 and "half of the 0.07 GiB" in plan.reason
        assert self.plan(tmp_path, "cache", 1).is_used
        self.free(monkeypatch, size - 1)
        with pytest.raises(UserError, match="decoded=cache takes 0.04 GiB"):
            self.plan(tmp_path, "cache")

    def test_auto_has_a_limit(self, tmp_path, monkeypatch):
        self.free(monkeypatch, 2**50)
        monkeypatch.setattr(decoded_cache, "AUTO_LIMIT", 2**20)
        assert not self.plan(tmp_path).is_used and self.plan(tmp_path, "cache").is_used

    def test_what_is_on_disk_needs_no_space(self, tmp_path, monkeypatch):
        cache = DecodedCache(tmp_path, "a", 4, 112).open()
        for row in range(4):
            cache.write(row, np.random.default_rng(row).integers(0, 256, (112, 112, 3), dtype=np.uint8))
        with open(cache.path, "rb+") as file:
            os.fsync(file.fileno())  # some file systems allocate late
        assert cache.num_missing() < cache.num_bytes / 4 < DecodedCache(tmp_path, "b", 4, 112).num_missing()
        self.free(monkeypatch, cache.num_bytes // 2)
        assert plan_caches(lambda: [cache], "auto", 2).is_used


def test_only_the_cache_of_the_output_itself_is_removed(images: Path, tmp_path: Path):
    for given in (None, tmp_path / "shared"):
        faces, _ = opened(images, None)
        faces.use(faces.plan_caches("auto", given, tmp_path / "out", 2), processes("cpu"))
        all_of(faces, 0)
        plan = faces.plan_caches("auto", given, tmp_path / "out", 2)
        assert plan.is_used and plan.caches[0].path.is_file()
        plan.remove_scratch()
        assert plan.caches[0].path.is_file() == (given is not None)
        assert_same(all_of(faces, 1), all_of(opened(images, None)[0], 1))


def test_files_of_every_kind_of_set_are_known(images: Path, tmp_path: Path, run_cli):
    ours = ImageSet.open(images)
    assert len(ours.files()) == COUNT and all(path.is_file() for path in ours.files())
    for name in ("tfrecord", "rec", "webdataset", "lmdb", "parquet"):
        out = tmp_path / name
        assert run_cli("pack", "--in", images, "--to", name, "--out", out, "size=16").code == 0
        files = RecordSet.open(out).files()
        assert files and all(path.is_file() and path.stat().st_size > 1000 for path in files), name
