"""The life of an output folder: begun, killed, resumed, grown, finished, locked."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from facesyn_cli.artifacts.atomic_files import host_tag, write_atomically, write_bytes
from facesyn_cli.artifacts.header import BEGUN, HEADER, Parent, read_header, require_header
from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.artifacts.output import check_output, open_output
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.checkpoint import check_total


class Config:
    """A config as output folders see it."""

    changeable = ("precision",)

    def __init__(
        self, ids: int | None = 5, lr: float = 0.1, batch: int = 4, workers: int = 1, precision: str = "fp32"
    ) -> None:
        self.values = {
            "identity": {"lr": lr, "precision": precision}, "growing": {"ids": ids}, "recorded": {"batch_size": batch},
            "runtime": {"workers": workers},
        }

    def to_json(self) -> dict:
        return self.values

    def upgraded(self, config: dict) -> dict:
        return config


PARENTS = {"images": Parent("a", "sha256:1")}


def go(folder: Path, cfg: Config | None = None, parents: dict | None = None, finish: bool = True, **options: object):
    parents = PARENTS if parents is None else parents
    with open_output(folder, "Thing", "make", cfg or Config(), parents, **options) as out:
        state = (out.finished, out.resumed)
        if finish and not out.finished:
            out.finish({"things": 3}, {"note": 1})
        return state


GONE = 2**22  # no process has this number


def leave_by_a_killed_process(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (0, 0))


def test_header_comes_last_and_says_everything(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    with open_output(folder, "Thing", "make", Config(), PARENTS) as out:
        assert not (folder / HEADER).exists() and (folder / BEGUN).exists()
        header = out.finish({"things": 3}, {"note": 1})
    assert [p.name for p in folder.iterdir()] == [HEADER]
    assert read_header(folder) == header
    assert (header.kind, header.command, header.counts, header.extra) == ("Thing", "make", {"things": 3}, {"note": 1})
    assert header.parents["images"].digest == "sha256:1" and header.config["growing"] == {"ids": 5}


def test_unfinished_work_is_taken_up(tmp_path: Path) -> None:
    assert go(tmp_path / "o", finish=False) == (False, False)
    with pytest.raises(UserError, match="unfinished; run the same `facesyn make`"):
        require_header(tmp_path / "o", "Thing")
    assert go(tmp_path / "o") == (False, True)
    assert go(tmp_path / "o") == (True, True)


@pytest.mark.parametrize(
    "change",
    [
        {"cfg": Config(lr=0.2)}, {"cfg": Config(ids=4)},
        {"parents": {"images": Parent("a", "sha256:2")}}, {"parents": {}},
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_changes_are_refused_with_the_difference(tmp_path: Path, change: dict, finished: bool) -> None:
    go(tmp_path / "o", finish=finished)
    with pytest.raises(UserError, match="was started with other (settings|inputs):\n"):
        go(tmp_path / "o", **change)


def test_a_refusal_shows_both_values_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    go(folder)
    with pytest.raises(UserError) as refused:
        go(folder, Config(lr=0.2, ids=4), {"images": Parent("b", "sha256:2"), "weights": Parent("w", "sha256:3")})
    assert str(refused.value).splitlines() == [
        f"{folder} was started with other settings and inputs:",
        "  setting        in the folder  now",
        "  lr             0.1            0.2",
        "  ids            5              4 (can only be raised)",
        "  input images   sha256:1       sha256:2",
        "                 a              b",
        "  input weights  absent         sha256:3",
        "                                w",
        f"Use the settings and inputs of the folder, write to another one with --out, or remove {folder}.",
    ]


def test_runtime_and_batch_size_may_change(tmp_path: Path) -> None:
    go(tmp_path / "o", finish=False)
    assert go(tmp_path / "o", Config(batch=8, workers=9)) == (False, True)


def test_a_changeable_setting_changes_while_there_is_work_to_do(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "o"
    go(folder, finish=False)
    assert go(folder, Config(precision="bf16")) == (False, True)
    assert "precision: was fp32, is bf16; it holds from here on" in caplog.text
    assert read_header(folder).config["identity"]["precision"] == "bf16"
    with pytest.raises(UserError, match="precision +bf16 +fp32"):  # all of it is done
        go(folder, Config())
    with pytest.raises(UserError, match="precision +bf16 +fp32"):
        check_output(folder, "Thing", Config(), PARENTS)
    assert check_output(folder, "Thing", Config(ids=9), PARENTS) == "grows"
    assert go(folder, Config(ids=9)) == (False, True)


def test_growing_takes_the_header_away_until_finished(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    go(folder)
    assert check_output(folder, "Thing", Config(ids=9), PARENTS) == "grows"
    assert go(folder, Config(ids=9), finish=False) == (False, True)
    assert read_header(folder) is None
    with pytest.raises(UserError, match=r"ids +9 +5 \(can only be raised\)"):
        go(folder, Config(ids=5))
    assert go(folder, Config(ids=9)) == (False, True)
    assert go(folder, Config(ids=None)) == (False, True), "None is without limit"


def test_digest_depends_on_what_makes_the_content(tmp_path: Path) -> None:
    digests = []
    for number, (cfg, parents) in enumerate(
        [(Config(), PARENTS), (Config(workers=7, batch=9), PARENTS), (Config(lr=3), PARENTS), (Config(), {})]
    ):
        go(tmp_path / str(number), cfg, parents)
        digests.append(read_header(tmp_path / str(number)).digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_parts_meet(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    go(folder, part=(2, 3))
    go(folder, part=(1, 3))
    assert read_header(folder) is None
    assert sorted(p.name for p in folder.glob("shard*")) == ["shard-1-of-3.json", "shard-2-of-3.json"]
    go(folder, part=(3, 3))
    assert read_header(folder) is not None and not list(folder.glob("shard*"))


@pytest.mark.parametrize("part", [None, (2, 3)])
def test_a_kill_after_the_header_leaves_nothing(tmp_path: Path, part: tuple[int, int] | None) -> None:
    folder = tmp_path / "o"
    go(folder)
    header = (folder / HEADER).read_bytes()
    (folder / "shard-1-of-3.json").write_text('{"part": 1, "of": 3}')
    for name in (".tmp-report.json", f".tmp-.lock-{'2-of-3' if part else 'all'}"):
        leave_by_a_killed_process(folder / f"{name}-{host_tag()}-{GONE}-1")
    assert go(folder, part=part) == (True, True)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [HEADER]
    assert (folder / HEADER).read_bytes() == header


def test_parts_leave_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    go(folder, part=(1, 3))
    written = folder / "images" / f".tmp-0.png-{host_tag()}-{os.getpid()}-1"
    of_another_host = folder / f".tmp-1.png-{'0' * 8}-{GONE}-1"  # its process number says nothing here
    no_process, gone = folder / ".tmp-own", folder / "images" / f".tmp-2.png-{host_tag()}-{GONE}-1"
    for path in (written, of_another_host, no_process, gone):
        leave_by_a_killed_process(path)
    go(folder, part=(2, 3))
    assert all(path.exists() for path in (written, of_another_host, no_process)) and not gone.exists()
    go(folder, part=(3, 3))  # the last one: nobody writes any more
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [HEADER]


def test_a_second_writer_is_refused_but_another_part_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    with open_output(folder, "Thing", "make", Config(), PARENTS, part=(1, 2)):
        with pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            go(folder, part=(1, 2))
        go(folder, part=(2, 2))


@pytest.mark.parametrize(("first", "second"), [((1, 2), (1, 3)), ((1, 2), None), (None, (2, 2))])
def test_a_folder_is_not_written_in_two_divisions_at_once(tmp_path: Path, first, second) -> None:
    folder = tmp_path / "o"
    with open_output(folder, "Thing", "make", Config(), PARENTS, part=first):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* as {'1/2' if first else 'a whole'}; wait"):
            go(folder, part=second)
        assert [path.name for path in folder.glob(".lock-*")] == [".lock-1-of-2" if first else ".lock-all"]
    owner = {"host": socket.gethostname(), "process": GONE, "started": "1"}
    (folder / ".lock-1-of-2").write_text(json.dumps(owner))
    go(folder, part=second)


def join(folder: Path, part: tuple[int, int] | None, missing: int, between=lambda: None):
    """Finish a set of pieces, as one of several runs."""
    with open_output(folder, "Thing", "make", Config(), PARENTS, part=part) as out:
        between()
        joined = []

        def finish():
            joined.append(1)
            return out.finish({"things": 3}, is_whole=True)

        out.join(processes("cpu"), lambda: missing, "pieces", finish)
        return out.header, len(joined)


def test_the_run_that_finds_all_pieces_joins_them(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    assert join(folder, (1, 2), missing=3) == (None, 0) and read_header(folder) is None
    header, joined = join(folder, (2, 3), missing=0)
    assert joined == 1 and header == read_header(folder) and [p.name for p in folder.iterdir()] == [HEADER]
    assert join(folder, (1, 2), missing=3) == (header, 0), "another run has finished: its pieces are gone"


def test_a_run_that_opened_the_folder_before_another_finished_it_leaves_it_finished(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    join(folder, (1, 2), missing=1)
    header, joined = join(folder, (1, 2), 3, between=lambda: join(folder, (2, 2), missing=0))
    assert joined == 0 and header == read_header(folder) and [p.name for p in folder.iterdir()] == [HEADER]


def test_one_run_joins_at_a_time(tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "o"
    join(folder, (1, 2), missing=1)
    with Lock(folder, "join"):
        assert join(folder, (2, 2), missing=0) == (None, 0)
    assert any(line.startswith("another run joins the parts") for line in said)
    assert join(folder, (2, 2), missing=0)[1] == 1
    killed = json.dumps({"host": socket.gethostname(), "process": GONE, "started": "1"})
    for part in ((1, 2), None):
        (folder / ".lock-join").write_text(killed)
        assert go(folder, part=part) == (True, True)
        assert [p.name for p in folder.iterdir()] == [HEADER], "the lock of a run that was killed after the header"


def test_a_stale_lock_is_taken_over(tmp_path: Path) -> None:
    owner = {"host": socket.gethostname(), "process": 2**22 + 1, "started": "1"}
    (tmp_path / ".lock-all").write_text(json.dumps(owner))
    with Lock(tmp_path):
        assert json.loads((tmp_path / ".lock-all").read_text())["process"] == os.getpid()
    assert not (tmp_path / ".lock-all").exists()


def test_a_lock_of_another_host_counts_until_it_is_old(tmp_path: Path) -> None:
    lock = tmp_path / ".lock-all"
    lock.write_text(json.dumps({"host": "elsewhere", "process": 1, "started": "1"}))
    with pytest.raises(UserError, match="elsewhere"), Lock(tmp_path):
        pass
    os.utime(lock, (1, 1))
    with Lock(tmp_path):
        pass


def test_strangers_are_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="not made by facesyn"):
        go(tmp_path)
    go(tmp_path / "o")
    with (
        pytest.raises(UserError, match="is a Thing made by `facesyn make`"),
        open_output(tmp_path / "o", "Other", "make", Config(), PARENTS),
    ):
        pass
    with (
        pytest.raises(UserError, match="was made by `facesyn make`, not by other; choose another --out"),
        open_output(tmp_path / "o", "Thing", "other", Config(lr=0.3), PARENTS),
    ):
        pass


DAMAGED = ["", "{", "[]", "null", "3", "{}", '{"kind": "Thing", "command": "make", "config": [], "parents": {}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_header_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / HEADER).write_text(text)
    with pytest.raises(UserError, match="facesyn.json"):
        go(tmp_path)
    with pytest.raises(UserError, match="facesyn.json"):
        check_total(tmp_path, 3, "cosine")


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), write_atomically(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write_bytes(tmp_path / "a", b"1")
    write_bytes(tmp_path / "a", b"22")
    assert (tmp_path / "a").read_bytes() == b"22" and len(list(tmp_path.iterdir())) == 1


def test_left_behind_temporaries_go(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    go(folder, finish=False)
    (folder / "sub").mkdir()
    (folder / "sub" / ".tmp-x-1-1").write_bytes(b"torn")
    go(folder)
    assert not list(folder.rglob(".tmp-*"))


@pytest.mark.parametrize("text", ["", '{"host": "', "[]"])
def test_a_lock_that_was_never_written_to_its_end_is_taken_over_soon(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".lock-all"
    path.write_text(text)
    with pytest.raises(UserError, match="is being written"), Lock(tmp_path):
        pass
    os.utime(path, (path.stat().st_mtime - 6,) * 2)
    with Lock(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str, encoding: str) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"), Lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
