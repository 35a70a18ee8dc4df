"""`facesyn pack`: images -> a few large files for training; integer labels are assigned here and nowhere else.

`.unfinished/progress.json` records up to which image everything is on disk. A resumed run cuts every file back to that
point, so the result equals that of an undisturbed run.
"""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import read_json, write_bytes, write_json
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.names import check_file_names, escape_name
from facesyn_cli.artifacts.origins import PHOTO, origins_of
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set import LABELS, RecordFormat, RecordWriter, natural_labels
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginSection, StageConfig, affects_result, input_path, runtime_only
from facesyn_cli.console import is_first_process, log, progress
from facesyn_cli.data.append_files import AppendFile
from facesyn_cli.data.ordered_pool import ordered_map, usable_cores
from facesyn_cli.data.pack_order import PackItem, PackSource, open_source, pack_items
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_labels import write_labels
from facesyn_cli.data.squares import is_square, say_cut
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.report.pack_card import write_pack_card
from facesyn_cli.untrusted.parsing import validated

UNREADABLE = "unreadable.txt"    # one line `identity/sample \t why` per image left out
_SCRATCH = ".unfinished"
_COMMIT_EVERY = 20_000           # images
_COMMIT_SECONDS = 1.0
_CHUNK, _AHEAD = 8, 2            # images a thread takes at once; chunks per thread that may wait


class PackConfig(StageConfig):
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
    workers: int | None = runtime_only(
        None, "threads that read and encode; None: one per core, up to 16; 0: none", ge=0
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
    return Plan(
        folder, check_output(folder, record_format.kind, cfg, parents),
        {name: parent.path for name, parent in parents.items()}, counts, chosen={"format": cfg.format.name},
    )


def run(cfg: PackConfig, work: Work) -> Outcome:
    """Pack the inputs; only the first of several processes works."""
    folder = cfg.out or work.folder("records")
    if not is_first_process():
        return Outcome(folder, {})
    sources = _open_inputs(cfg, work)
    record_format: RecordFormat = registry.build("record_format", cfg.format)
    items = _items(cfg, sources)
    if record_format.kind == "ImageSet":
        check_file_names((f"{item.identity}/{item.sample}.jpg" for item in items), folder)
    with open_output(folder, record_format.kind, "pack", cfg, _parents(sources)) as out:
        if not out.finished:
            _pack(cfg, sources, items, record_format, out)
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        counts, extra = out.header.counts, out.header.extra
        num_images, unreadable = out.header.count("images"), out.header.count("unreadable")
    inputs = ", ".join(parent.path for parent in _parents(sources).values())
    say_cut(inputs, extra.get("cut_to_square", 0), num_images)
    if unreadable:
        log.warning(f"{unreadable} unreadable images were left out; they are listed in {folder / UNREADABLE}")
    if cfg.format.name == "tfrecord" and "TFR" not in cfg.name:
        log.info(f"note: TFace reads records only when the name of a set contains TFR; {cfg.name} does not")
    return Outcome(folder, {"name": cfg.name, "format": cfg.format.name, **counts})


def _open_inputs(cfg: PackConfig, work: Work) -> list[PackSource]:
    paths = cfg.inputs
    if not paths:
        found = [work.folder(name) for name in ("augmented", "samples") if work.folder(name).exists()]
        if not found:
            raise UserError(
                f"nothing to pack: neither {work.folder('augmented')} nor {work.folder('samples')} exists; "
                "name a folder, zip or packed set with --in"
            )
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


def _pack(
    cfg: PackConfig, sources: list[PackSource], items: list[PackItem], record_format: RecordFormat, out: Output
) -> None:
    scratch = out.folder / _SCRATCH
    journal = scratch / "progress.json"
    state = _Journal()
    if journal.is_file():
        state = validated(_Journal, read_json(journal), journal, "the journal of a pack")
    rows = AppendFile(scratch / "rows", 8 * state.records)
    unreadable = AppendFile(scratch / "unreadable", state.unreadable_bytes)
    done = state.done
    writer = record_format.writer(out.folder, cfg.name, scratch, state.writer)

    suffixes, num_cut = set(state.suffixes), state.cut  # of the images, and how many were cut to a square

    def fit(item: PackItem) -> tuple[bytes, bool] | UnreadableImage:
        try:
            data = sources[item.source].read(item.place)
            fitted = record_format.fit(data, cfg.size)
        except UnreadableImage as error:
            return error
        return fitted, cfg.size is not None and fitted is not data and not is_square(data)

    def commit() -> None:
        written = {"writer": writer.commit(), "records": rows.sync() // 8, "unreadable_bytes": unreadable.sync()}
        write_json(journal, {**written, "done": done, "suffixes": sorted(suffixes), "cut": num_cut})

    cores = usable_cores()
    default = min(cores, 16) if cores > 1 else 0  # on one core a thread of its own only costs
    workers = default if cfg.workers is None else cfg.workers
    try:
        committed = time.monotonic()
        with progress("pack", len(items), done=done) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd images that it can read
            for fitted in ordered_map(fit, items[done:], workers, _AHEAD, _CHUNK):
                item = items[done]
                if isinstance(fitted, UnreadableImage):
                    unreadable.write(f"{escape_name(f'{item.identity}/{item.sample}', keep='/')}\t{fitted}\n".encode())
                else:
                    data, is_cut = fitted
                    suffixes.add(suffix_of(data))
                    num_cut += is_cut
                    writer.append(item.identity, item.sample, data)
                    rows.write(done.to_bytes(8, "little"))
                done += 1
                bar.advance()
                is_due = done % _COMMIT_EVERY == 0 or time.monotonic() - committed > _COMMIT_SECONDS
                if is_due or signals.received():
                    commit()
                    committed = time.monotonic()
                    signals.check()
        commit()
        _finish(cfg, sources, items, out, writer, suffixes, num_cut)
    finally:
        for file in (writer, rows, unreadable):
            file.close()


def _finish(
    cfg: PackConfig, sources: list[PackSource], items: list[PackItem], out: Output, writer: RecordWriter,
    suffixes: set[str], num_cut: int,
) -> None:
    """Assign the labels: identities with at least one image, in natural order, so that no class is empty."""
    scratch = out.folder / _SCRATCH
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
    out.finish(counts, extra=extra)
