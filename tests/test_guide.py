"""What the guides say: commands, settings, links and test files exist, and what a guide says can be run runs.

A block of a guide is run where its first line says so: ```bash run, ```python run. A block ```python file, or ```yaml
file, is written to the path that its first line, a comment, names. Blocks of one guide are taken in their order, in one
empty folder, Python in one namespace.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from command_lines import check, in_markdown
from test_arrows import LEVELS

from facesyn_cli.cli import guide
from facesyn_cli.plugins import registry

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "facesyn_cli/guide"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
_BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS_HERE = [(topic, words) for topic, text in TEXTS.items()
                 for words in in_markdown(_BLOCK.sub(lambda block: "" if block[2] == "run" else block[0], text))]
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)")


def _blocks(topic: str, language: str = r"\w+", mark: str = ".*") -> list[tuple[str, str, str]]:
    """Return (language, mark, code) of the blocks of a guide that match."""
    return [block for block in _BLOCK.findall(TEXTS[topic])
            if re.fullmatch(language, block[0]) and re.fullmatch(mark, block[1])]


def test_the_index_names_every_guide() -> None:
    named, written = set(guide.topics()), set(TEXTS) - {"README"}
    assert written == named
    assert max(map(len, guide.topics().values())) <= 61, "beside the longest topic, one line of 80 characters"


@pytest.mark.parametrize("topic", TEXTS)
def test_a_guide_has_a_title_and_can_be_read_at_once(topic: str) -> None:
    lines = TEXTS[topic].splitlines()
    assert lines[0].startswith("# ") and lines[1] == "" and len(lines) <= 340
    assert not re.search(r"TODO|MEASURED|FIXME", TEXTS[topic])
    assert TEXTS[topic].count("\n```") % 2 == 0, "a block of code has no end"
    assert {mark for _, mark, _ in _blocks(topic)} <= {"", "run", "file"}


@pytest.mark.parametrize(("topic", "words"), COMMANDS_HERE, ids=lambda value: value if isinstance(value, str) else
                         " ".join(value))
def test_a_command_is_as_the_guide_says(topic: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize("topic", TEXTS)
def test_python_blocks_are_python(topic: str) -> None:
    for _, _, code in _blocks(topic, "python"):
        ast.parse(code)


@pytest.mark.parametrize("topic", TEXTS)
def test_links_and_test_files_exist(topic: str) -> None:
    for target, heading in _LINK.findall(TEXTS[topic]):
        path = (FOLDER / target).resolve()
        assert path.exists(), target
        assert not heading or heading in _anchors(path.read_text(encoding="utf-8")), f"{target} has no #{heading}"
    missing = {name for name in re.findall(r"tests/[\w/]+\.py|facesyn_cli/[\w/]+\.\w+", TEXTS[topic])
               if not (ROOT / name).is_file()}
    assert not missing


def test_the_layers_are_those_of_the_imports() -> None:
    block = TEXTS["code"].partition("## Layers")[2].split("```")[1]
    names = [set(re.findall(r"\w+", line.partition("   ")[0])) for line in block.strip().splitlines()]
    assert names == [level - {"__main__", "__init__"} for level in LEVELS]


def _anchors(text: str) -> set[str]:
    """Return the anchors that a forge gives to the headings of a Markdown text."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("topic", [topic for topic in TEXTS if _blocks(topic, mark="run")])
def test_what_can_be_run_runs(topic: str, run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": f"guide_{topic}"}
    for language, mark, code in _blocks(topic):
        if mark == "file":
            path = tmp_path / code.splitlines()[0].lstrip("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
            _install(path)
        elif mark and language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    assert words[0] == "facesyn", f"only commands of facesyn are run: {line}"
                    ran = run_cli(*words[1:])
                    assert ran.code == 0, f"{line}\n{ran.err}"
        elif mark:
            exec(compile(code, f"{topic}.md", "exec"), names)


def _install(project: Path) -> None:
    """Make the entry points of a `pyproject.toml` known, as `pip install -e .` does."""
    if project.name != "pyproject.toml":
        return
    info = project.parent / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    sections = re.findall(r'^\[project\.entry-points\."(facesyn\.\w+)"\]\n((?:[\w-]+ = "[\w.]+".*\n?)+)',
                          project.read_text(), re.MULTILINE)
    assert sections
    lines = "".join(f"[{group}]\n" + points.replace('"', "") for group, points in sections)
    (info / "entry_points.txt").write_text(lines)
    registry._entry_points.cache_clear()


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch):
    """Leave the registry as it was."""
    before = dict(registry._registered)
    yield
    monkeypatch.undo()
    registry._entry_points.cache_clear()
    for key in set(registry._registered) - set(before):
        if not registry._registered[key].build.__module__.startswith("facesyn_cli."):
            del registry._registered[key]
