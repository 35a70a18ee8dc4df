"""`facesyn pack`: images -> a few large files for training; integer labels are assigned here and nowhere else.

`.unfinished/progress.json` records up to which image everything is on disk. A resumed run cuts every file back to that
point, so the result equals that of an undisturbed run. Several processes, and runs with `--shard i/n`, read and encode
blocks of images (`data/pack_blocks.py`), and one of them packs these in order: the files are those of a run alone.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from facesyn_cli import distributed, signals
from facesyn_cli.artifacts.atomic_files import read_json, write_bytes, write_json
from facesyn_cli.artifacts.header import Header, Parent
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.names import check_file_names, escape_name
from facesyn_cli.artifacts.origins import PHOTO, origins_of
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set import LABELS, RecordFormat, RecordWriter, natural_labels
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginSection, affects_result, input_path, runtime_only
from facesyn_cli.config.shard import ShardedConfig
from facesyn_cli.console import log
from facesyn_cli.data.append_files import AppendFile
from facesyn_cli.data.ordered_pool import usable_cores
from facesyn_cli.data.pack_blocks import FittedImage, PackImages, blocks_of
from facesyn_cli.data.pack_order import PackItem, PackSource, open_source, pack_items
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_labels import write_labels
from facesyn_cli.data.squares import is_square, say_cut
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.progress import progress
from facesyn_cli.report.pack_card import write_pack_card
from facesyn_cli.untrusted.parsing import validated

UNREADABLE = "unreadable.txt"    # one line `identity/sample \t why` per image left out
_SCRATCH, _JOURNAL = ".unfinished", "progress.json"
_COMMIT_EVERY = 20_000           # images
_COMMIT_SECONDS = 1.0


class PackConfig(ShardedConfig):
    """Settings of `facesyn pack`."""

    inputs: list[Path] | None = input_path(None, "image or packed sets; None: 5-augmented, else 4-samples")
    source_format: str = input_path("auto", "auto, folder (images), or the record format of the inputs")
    format: PluginConfig = PluginSection("record_format", default="tfrecord")
    name: str = affects_result("TFR-facesyn", "name of the set; TFace reads records only when it contains TFR")
    size: int | None = affects_result(112, "side in pixels; None keeps every image as it is", gt=0, le=8000)
    drop_first: bool = affects_result(
        False, "leave out the first image of every identity, as the published converter does"
    )
    min_images: int = affects_result(1, "leave out identities with fewer images", ge=1)
    shuffle: bool = affects_result(False, "random order of records, from the seed, instead of identity by identity")
    shard: str | None = runtime_only(
        None, "i/n, i from 1: read and encode part i of n; the run that finds all parts writes the set. The disk holds "
        "the images twice until then"
    )
    workers: int | None = runtime_only(
        None, "threads that read and encode, per process; None: one per core, up to 16; 0: none", ge=0
    )

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, value: str) -> str:
        taken = (Path(LABELS).stem, Path(UNREADABLE).stem)
        if not value or value[0] in ". " or escape_name(value) != value or len(value.encode()) > 200:
            raise ValueError("a name that can be a file name is expected")
        if value in taken:
            raise ValueError(f"a name other than {' and '.join(taken)} is expected, which are files of the set")
        return value

    @field_validator("source_format")
    @classmethod
    def _is_format(cls, value: str) -> str:
        known = ["auto", *registry.available("record_format")]
        if value not in known:
            raise ValueError(f"one of {', '.join(known)} is expected")
        return value


def plan(cfg: PackConfig, work: Work) -> Plan:
    """Return what `run` would do."""
    folder = cfg.out or work.folder("records")
    sources = _open_inputs(cfg, work)
    items = _items(cfg, sources)
    record_format: RecordFormat = registry.build("record_format", cfg.format)
    per_shard = getattr(cfg.format, "records_per_shard", None)
    parents = _parents(sources)
    counts = {"images": len(items), "identities": len({item.identity for item in items})}
    if per_shard:
        counts["shards"] = -(-len(items) // per_shard)
    if cfg.part is not None:
        counts["images_of_part"] = sum(map(len, blocks_of(len(items), cfg.part)))
    return Plan(
        folder, check_output(folder, record_format.kind, cfg, parents),
        {name: parent.path for name, parent in parents.items()}, counts, chosen={"format": cfg.format.name},
    )


def run(cfg: PackConfig, work: Work) -> Outcome:
    """Pack the inputs; see the module docstring."""
    folder = cfg.out or work.folder("records")
    processes = distributed.processes(cfg.device)
    sources = _open_inputs(cfg, work)
    record_format: RecordFormat = registry.build("record_format", cfg.format)
    items = _items(cfg, sources)
    if record_format.kind == "ImageSet":
        check_file_names((f"{item.identity}/{item.sample}.jpg" for item in items), folder)
    packing = _Packing(cfg, sources, items, record_format, folder / _SCRATCH)
    images = packing.images(processes.world_size)

    def missing(part: tuple[int, int] | None) -> list[range]:
        return images.missing(images.blocks(part), packing.journal().done)

    parents = _parents(sources)
    with open_shared_output(processes, folder, record_format.kind, "pack", cfg, parents, cfg.part) as out:
        if not out.finished:
            if cfg.part is not None or processes.world_size > 1:
                images.make(processes.from_first(lambda: missing(cfg.part)), processes)
            out.join(processes, lambda: len(missing(None)), "blocks of images", lambda: _pack(packing, images, out))
        header = out.header
        if header is None:
            return Outcome(folder, {"part": cfg.shard})
        if processes.is_first:
            shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    num_images, unreadable = header.count("images"), header.count("unreadable")
    inputs = ", ".join(parent.path for parent in parents.values())
    say_cut(inputs, header.extra.get("cut_to_square", 0), num_images)
    if unreadable:
        log.warning(f"{unreadable} unreadable images were left out; they are listed in {folder / UNREADABLE}")
    if cfg.format.name == "tfrecord" and "TFR" not in cfg.name:
        log.info(f"note: TFace reads records only when the name of a set contains TFR; {cfg.name} does not")
    return Outcome(folder, {"name": cfg.name, "format": cfg.format.name, **header.counts})


def _open_inputs(cfg: PackConfig, work: Work) -> list[PackSource]:
    paths = cfg.inputs
    if not paths:
        found = [work.folder(name) for name in ("augmented", "samples") if work.folder(name).exists()]
        if not found:
            raise missing_input(work.folder("samples"), "a set of images", "a folder, zip or packed set with --in")
        paths = found[:1]
    return [open_source(path, cfg.source_format) for path in paths]


def _parents(sources: list[PackSource]) -> dict[str, Parent]:
    if len(sources) == 1:
        return {"input": sources[0].parent()}
    return {f"input-{i}": source.parent() for i, source in enumerate(sources, 1)}


class _Journal(BaseModel):
    """How much of an unfinished set is on disk."""

    model_config = ConfigDict(strict=True, extra="forbid")

    records: int = Field(0, ge=0)
    unreadable_bytes: int = Field(0, ge=0)
    done: int = Field(0, ge=0)
    writer: dict[str, Any] = {}
    suffixes: list[str] = []
    cut: int = Field(0, ge=0)


def _items(cfg: PackConfig, sources: list[PackSource]) -> list[PackItem]:
    return pack_items(sources, cfg.drop_first, cfg.min_images, cfg.seed if cfg.shuffle else None)


@dataclass(frozen=True)
class _Packing:
    """What is packed, and how."""

    cfg: PackConfig
    sources: list[PackSource]
    items: list[PackItem]
    record_format: RecordFormat
    scratch: Path

    def images(self, num_processes: int) -> PackImages:
        """Return the images as the format stores them."""
        size = self.cfg.size

        def fit(item: PackItem) -> FittedImage:
            try:
                data = self.sources[item.source].read(item.place)
                fitted = self.record_format.fit(data, size)
            except UnreadableImage as error:
                return FittedImage(None, reason=str(error))
            return FittedImage(fitted, size is not None and fitted is not data and not is_square(data))

        cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
        workers = min(cores, 16) if cores > 1 else 0  # on one core a thread of its own only costs
        workers = workers if self.cfg.workers is None else self.cfg.workers
        return PackImages(self.items, fit, workers, self.scratch / "blocks")

    def journal(self) -> _Journal:
        """Return how much is packed."""
        path = self.scratch / _JOURNAL
        return validated(_Journal, read_json(path), path, "the journal of a pack") if path.is_file() else _Journal()


def _pack(packing: _Packing, images: PackImages, out: Output) -> Header | None:
    """Write all records, from the journal on, and finish the set."""
    items, scratch, state = packing.items, packing.scratch, packing.journal()
    rows = AppendFile(scratch / "rows", 8 * state.records)
    unreadable = AppendFile(scratch / "unreadable", state.unreadable_bytes)
    done, num_left_out = state.done, 0
    writer = packing.record_format.writer(out.folder, packing.cfg.name, scratch, state.writer)
    suffixes, num_cut = set(state.suffixes), state.cut  # of the images, and how many were cut to a square
    blocks = images.blocks()

    def commit() -> None:
        written = {"writer": writer.commit(), "records": rows.sync() // 8, "unreadable_bytes": unreadable.sync()}
        write_json(scratch / _JOURNAL, {**written, "done": done, "suffixes": sorted(suffixes), "cut": num_cut})
        while blocks and blocks[0].stop <= done:
            images.remove(blocks.pop(0))

    try:
        committed = time.monotonic()
        with progress("pack", len(items), done=done) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd images that it can read
            for image in images.images(done):
                item = items[done]
                if image.data is None:
                    name = escape_name(f"{item.identity}/{item.sample}", keep="/")
                    unreadable.write(f"{name}\t{image.reason}\n".encode("utf-8", "backslashreplace"))
                    num_left_out += 1
                    bar.advance(0, left_out=num_left_out)
                else:
                    suffixes.add(suffix_of(image.data))
                    num_cut += image.is_cut
                    writer.append(item.identity, item.sample, image.data)
                    rows.write(done.to_bytes(8, "little"))
                done += 1
                bar.advance()
                is_due = done % _COMMIT_EVERY == 0 or time.monotonic() - committed > _COMMIT_SECONDS
                if is_due or signals.received():
                    commit()
                    committed = time.monotonic()
                    signals.check()
        commit()
        return _finish(packing, out, writer, suffixes, num_cut)
    finally:
        for file in (writer, rows, unreadable):
            file.close()


def _finish(
    packing: _Packing, out: Output, writer: RecordWriter, suffixes: set[str], num_cut: int
) -> Header | None:
    """Assign the labels: identities with at least one image, in natural order, so that no class is empty."""
    cfg, sources, items, scratch = packing.cfg, packing.sources, packing.items, packing.scratch
    rows = np.fromfile(scratch / "rows", dtype="<i8")
    if not len(rows):
        raise UserError(f"none of the {len(items)} images is readable; see {scratch / 'unreadable'}")
    names = {items[row].identity: None for row in rows}
    identities, labels_of = natural_labels(list(names))
    label_of = dict(zip(names, labels_of.tolist(), strict=True))
    labels = np.array([label_of[items[row].identity] for row in rows], dtype=np.int32)
    writer.finish(labels, (items[row].sample for row in rows))
    write_labels(out.folder / LABELS, identities, np.bincount(labels, minlength=len(identities)))
    write_bytes(out.folder / UNREADABLE, (scratch / "unreadable").read_bytes())
    counts = {"images": len(rows), "identities": len(identities), "unreadable": len(items) - len(rows)}
    extra = {"format": cfg.format.name, "name": cfg.name, "suffixes": sorted(suffixes)}
    if num_cut:
        extra["cut_to_square"] = num_cut
    if left_out := {source.parent().path: dict(source.left_out) for source in sources if source.left_out}:
        extra["left_out"] = left_out  # besides the images: path -> reason -> count
    has_photos = any(PHOTO in origins_of(Path(source.parent().path)) for source in sources)
    write_pack_card(out.folder, extra, counts["images"], counts["identities"], has_photos=has_photos)
    return out.finish(counts, extra=extra, is_whole=True)
