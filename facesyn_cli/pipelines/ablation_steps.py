"""The stages of one row of a table under one seed, and their folders.

    <work>/ablation/parts/<stage>-<address>/        output of the stage
    <work>/ablation/parts/<stage>-<address>.json    its cost, or why it failed
    <work>/ablation/times/<stage>-<address>.json    how many seconds it took, and whether it is running

The address is a digest of the settings that affect the result, of the content of inputs and of the addresses of earlier
steps. So rows, seeds and tables with the same settings share their work, and finished work is not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
from facesyn_cli.artifacts.digest import file_digest, json_digest, path_digest
from facesyn_cli.artifacts.header import BEGUN, Header, read_header
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.ablation_rows import Row
from facesyn_cli.config.fields import StageConfig, role_of
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.stage import plan_stage, run_stage

FOLDER = "ablation"
PARTS = "parts"
TIMES = "times"
GROWING = ("ids", "per_id")  # rows share samples and may need different numbers of them
_SMALL_FOLDER = 64  # files; the digest of a larger folder is of names and sizes, not of content


@dataclass(frozen=True)
class Step:
    """One stage of a row.

    Args:
        stage: Its name.
        cfg: Its settings, with its inputs and its folder.
    """

    stage: str
    cfg: StageConfig

    @property
    def address(self) -> str:
        """Name of its folder, from the digest of settings and inputs."""
        return self.folder.name

    @property
    def folder(self) -> Path:
        """Folder that it writes."""
        return self.cfg.out

    @property
    def is_finished(self) -> bool:
        """True when everything that this row needs is written."""
        header = read_header(self.folder)
        return header is not None and all(
            header.config.get("growing", {}).get(key, 0) >= getattr(self.cfg, key, 0) for key in GROWING
        )

    @property
    def was_killed(self) -> bool:
        """True when its stage was killed, even after it wrote the header, or wrote no contact sheet."""
        from facesyn_cli.stages.sample import lacks_sheet

        if self._times.get("running", False):
            return True
        header = read_header(self.folder) if self.stage == "sample" else None
        return header is not None and lacks_sheet(self.cfg, self.folder, header.count("images"))

    @property
    def notes(self) -> dict[str, Any]:
        """Notes about its work: evaluations, images, faces, problem."""
        return _read_notes(self._notes_path)

    def note(self, **values: Any) -> None:
        """Add notes; None removes one."""
        merged = {**self.notes, **values}
        write_json(self._notes_path, {key: value for key, value in merged.items() if value is not None})

    @property
    def seconds(self) -> float:
        """Seconds that it took, in all runs together."""
        return self._times.get("seconds", 0)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note the seconds of the block, and that the stage is running until the block ends without an error."""
        start, note = time.monotonic(), {"seconds": self.seconds, "running": True}
        write_json(self._time_path, note)
        try:
            yield
            del note["running"]
        finally:
            note["seconds"] = round(note["seconds"] + time.monotonic() - start, 2)
            write_json(self._time_path, note)

    @property
    def _times(self) -> dict[str, Any]:
        return _read_notes(self._time_path)

    @property
    def _time_path(self) -> Path:
        return self.folder.parents[1] / TIMES / f"{self.folder.name}.json"

    @property
    def _notes_path(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")


@dataclass(frozen=True)
class Chain:
    """All steps of a row under one seed.

    Args:
        row: The row.
        seed: The seed of everything random.
        steps: In the order of the data; the last two are train-fr and eval.
        identities: Of the training set.
        images: Of the training set.
    """

    row: Row
    seed: int
    steps: list[Step]
    identities: int
    images: int

    @property
    def is_finished(self) -> bool:
        """True when the accuracy is measured."""
        return self.steps[-1].is_finished

    @property
    def was_killed(self) -> bool:
        """True when a stage was killed after the header of its folder was written."""
        return any(step.is_finished and step.was_killed for step in self.steps)

    @property
    def problem(self) -> str | None:
        """Why an earlier run failed."""
        return None if self.is_finished else self.steps[-1].notes.get("problem")

    def step(self, stage: str) -> Step | None:
        """Return the step of a stage, if the row has one."""
        return next((step for step in self.steps if step.stage == stage), None)

    def figures(self) -> dict[str, float | None]:
        """Return the figures of the table; the chain must be finished."""
        table = BenchmarkTable.read(self.steps[-1].folder)
        return {
            "accuracy": table.average_accuracy,
            "auc": _mean([row.auc for row in table.rows]),
            "eer": _mean([row.eer for row in table.rows]),
            "images": self.images,
            "identities": self.identities,
            "evaluations": sum(step.notes.get("evaluations", 0) * self._share(step) for step in self.steps),
        }

    def minutes(self) -> float:
        """Return the minutes of its steps, of shared samples its share; the chain must be finished."""
        return sum(step.seconds * self._share(step) for step in self.steps) / 60

    def run(self, work: Work, per_id: dict[str, int], failed: dict[str, UserError]) -> None:
        """Run the unfinished steps; a failure is noted.

        Args:
            work: Work folder.
            per_id: Address of samples -> the most per identity that a row needs.
            failed: Address of failed steps -> the error; these are not run again. New failures are added.

        Raises:
            UserError: A stage failed; the others keep their finished work.
        """
        self.steps[-1].note(problem=None)
        for step in self.steps:
            if self.is_finished and not step.is_finished:
                continue
            try:
                if step.address in failed:
                    raise failed[step.address]
                if not step.is_finished or step.was_killed:
                    _run(step, work, per_id.get(step.address, 0))
                _note_cost(step, work)
            except UserError as error:
                failed[step.address] = error
                self.steps[-1].note(problem=" ".join(str(error).split()))
                raise

    def _share(self, step: Step) -> float:
        """Return the share of a step's work that this row needs; other rows may have extended the samples."""
        if step.stage != "sample":
            return 1
        return step.cfg.ids * step.cfg.per_id / step.notes.get("images", step.cfg.ids * step.cfg.per_id)


def _mean(values: list[float | None]) -> float | None:
    """Return the mean; None where a value is None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _run(step: Step, work: Work, per_id: int) -> None:
    """Run one stage and note its time."""
    cfg = step.cfg
    if step.stage == "sample":  # a set that was begun can grow, not shrink
        path = step.folder / BEGUN
        header = Header.read(path) if path.is_file() else read_header(step.folder)
        begun = header.config.get("growing", {}) if header else {}
        size = {key: max(getattr(cfg, key), begun.get(key) or 0) for key in GROWING}
        cfg = cfg.model_copy(update={**size, "per_id": max(size["per_id"], per_id)})
    with step.timed():
        run_stage(step.stage, cfg, work)


def _read_notes(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object was expected; remove the file and run the same command again")
    return found


def _note_cost(step: Step, work: Work) -> None:
    """Note the cost of a finished step, unless it is known."""
    notes, header = step.notes, read_header(step.folder)
    if step.stage == "sample" and notes.get("images") != header.count("images"):
        count = header.count("images")
        step.note(images=count, evaluations=count * header.figure("network_evaluations_per_image"))
    elif step.stage == "gen-contexts" and "evaluations" not in notes:
        step.note(evaluations=context_evaluations(step, work) * header.count("candidates"))
    elif step.stage == "train-fr" and "faces" not in notes:
        step.note(faces=header.count("steps") * step.cfg.batch_size)


def context_evaluations(step: Step, work: Work) -> float:
    """Return the denoiser evaluations per candidate; checks all inputs of gen-contexts.

    Raises:
        UserError: One is missing or wrong.
    """
    return plan_stage("gen-contexts", step.cfg, work).chosen["evaluations_per_candidate"].get("denoiser", 0)


def sources_of(cfg: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path | str]]:
    """Yield the dotted key and the path (or name) of every input in the settings."""
    for name, info in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        for number, item in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            key = f"{prefix}{name}.{number}" if isinstance(value, (list, tuple)) else f"{prefix}{name}"
            if isinstance(item, BaseModel):
                yield from sources_of(item, f"{key}.")
            elif role_of(info) == "input" and item is not None and key != "out":
                yield key, item


def content_of(named: Path | str) -> str:
    """Return the digest of an input: of its header, its content, or the names and sizes of many files.

    Raises:
        UserError: There is no such file or folder.
    """
    path = Path(named)
    if not path.exists():
        if isinstance(named, str):
            return named  # a name, not a path
        raise missing_input(path, "a file or folder")
    if path.is_file():
        return file_digest(path)
    header = read_header(path)
    if header is not None:
        return header.digest
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) <= _SMALL_FOLDER:
        return path_digest(path)
    return json_digest([[file.relative_to(path).as_posix(), file.stat().st_size] for file in files])


def num_faces(step: Step, images: int) -> int:
    """Return the number of faces that a `train-fr` step trains on, repetitions included."""
    return step.cfg.epochs * step.cfg.batch_size * -(-images // step.cfg.batch_size)


def expected_time(work: Work, evaluations: int, faces: int) -> dict[str, float]:
    """Return the expected minutes at the speed of the finished steps; empty when there are none."""
    minutes = 0.0
    for names, unit, number in (("[gs]*", "evaluations", evaluations), ("train-fr-*", "faces", faces)):
        paths = (work.path / FOLDER / PARTS).glob(f"{names}.json")  # gen-contexts and sample; train-fr
        times = {path.name: _read_notes(path).get("seconds", 0)
                 for path in (work.path / FOLDER / TIMES).glob(f"{names}.json")}
        notes = [{"seconds": times.get(path.name, 0), **_read_notes(path)} for path in paths]
        notes = [note for note in notes if note.get(unit)]
        if number and not notes:
            return {}
        done = sum(note[unit] for note in notes)
        minutes += number * sum(note["seconds"] for note in notes) / (60 * done) if number else 0
    return {"expected_minutes": round(minutes, 1)}
