"""The lines that commands end with, followed literally from the first stage to the report."""

from __future__ import annotations

from pathlib import Path

import yaml
from command_lines import in_lines
from test_data_way import recipe
from tiny_recognizer import write_recognizer, write_run_inputs

from facesyn_cli.artifacts.work import FOLDERS


def test_following_the_lines_makes_the_whole_run(run_cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = Path("my run")
    write_run_inputs(work, 8, 3)
    write_recognizer(work / "0-embedder", widths=[8, 16], blocks=[1, 1], embedding_size=32)
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe(work)))
    words = ["embed", "--config", "tiny.yaml", "--work", str(work), "--device", "cpu"]
    followed = []
    while words is not None:
        ran = run_cli(*words)
        assert ran.code == 0, (words, ran.err)
        followed.append(words[0])
        last = ran.err.splitlines()[-1]
        assert last.startswith("next"), last
        words = next(iter(in_lines([last])), None)
    assert followed == ["embed", "train-ldm", "gen-contexts", "sample", "augment", "pack", "train-fr", "eval", "report"]
    assert last == f"next: open {work / '9-report' / 'report.html'} in a browser"
    made = {"embedder", "autoencoder", "identity"}  # not in this recipe
    assert all((work / folder).exists() for name, folder in FOLDERS.items() if name not in made)
    ran = run_cli("run", "--config", "tiny.yaml", "--work", work, "--device", "cpu")
    assert ran.code == 0 and ran.err.splitlines()[-1] == last, "finished: nothing is left but the page"
    stages = [line.split()[0] for line in ran.out.partition("\n\n")[0].splitlines()]
    assert stages == ["stage", *followed] and "accuracy %" in ran.out
