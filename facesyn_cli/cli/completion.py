"""Shell completion: commands, options, and the names and settings that can follow them.

The scripts beside this file call `facesyn` with the line up to the cursor in the environment and get candidates. They
are our own, and not Typer's, because settings are typed as `key=value`: no space may follow the `=`, and bash takes `=`
and `:` for the start of another word. A candidate that ends in one of `OPEN` is continued without a space.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from facesyn_cli.config.recipe import STAGES, recipe_about, recipe_names
from facesyn_cli.config.setting_table import setting_table
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import KINDS

Candidates = Iterator[tuple[str, str]]  # value, what it is

SHELL = "_FACESYN_COMPLETE"  # environment variables of the scripts: shell, line up to the cursor, COMP_WORDBREAKS
_LINE, _BREAKS = "_FACESYN_LINE", "_FACESYN_BREAKS"
OPEN = "=./"
_START_FILES = {"bash": ".bashrc", "zsh": ".zshrc"}
SUBJECTS = ("sample", "embed", "train-ldm", "train-fr", "pack", "eval", "reading", "classifier", "scale")


def answer(root: Any) -> str:
    """Return the candidates for the line in the environment, in the form that the script of the shell reads.

    Args:
        root: The command `facesyn`, with its commands.
    """
    line, shell = os.environ.get(_LINE, ""), os.environ[SHELL]
    word = _split(line)[-1]
    found = sorted(set(complete(root, line)))
    if shell == "bash":  # it replaces what follows the last break
        start = 1 + max((word.rfind(character) for character in os.environ.get(_BREAKS, "") if character in "=:"),
                        default=-1)
        return "\n".join(value[start:] for value, _ in found)
    if shell == "zsh":
        return "\n".join(f"{'-' if value[-1] in OPEN else '+'}{_escaped(value)}{about and ':'}{about}"
                         for value, about in found)
    return "\n".join(f"{value}\t{about}" for value, about in found)


def complete(root: Any, line: str) -> Candidates:
    """Yield what the last word of a command line can become; nothing where it can be any file or number."""
    *words, word = _split(line)[1:] or [""]
    command, name = root, ""
    given: list[str] = []  # words that are no options of the command
    waiting = None  # option whose value is next
    for text in words:
        inner = getattr(command, "commands", {}).get(text) if waiting is None else None
        if inner is not None:
            command, name, given = inner, f"{name} {text}".strip(), []
        elif waiting is not None:
            given.append(f"{waiting}={text}")
            waiting = None
        elif text.startswith("-") and "=" not in text:
            waiting = text if _takes_value(command, text) else None
        else:
            given.append(text)
    if waiting is not None:
        candidates, start = _values(name, waiting, word), ""
    elif word.startswith("--") and "=" in word:
        option, _, word = word.partition("=")
        candidates, start = _values(name, option, word), f"{option}="
    elif word.startswith("-"):
        candidates, start = _options(command), ""
    elif hasattr(command, "commands"):
        candidates, start = ((key, _first_line(inner.help)) for key, inner in command.commands.items()), ""
    else:
        candidates, start = _arguments(name, given, word), ""
    yield from ((start + value, about) for value, about in candidates if value.startswith(word))


def script(shell: str) -> str:
    """Return the script of a shell: bash, zsh or fish.

    Raises:
        UserError: Another shell.
    """
    path = Path(__file__).with_name(f"completion.{shell}")
    if not path.is_file():
        raise UserError(f"there is no completion for the shell {shell!r}, only for bash, zsh and fish")
    return path.read_text(encoding="utf-8")


def current_shell() -> str:
    """Return the name of the shell that started this process, or of the login shell."""
    import shellingham

    try:
        return shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        return Path(os.environ.get("SHELL", "")).name


def install(shell: str) -> tuple[Path, Path | None]:
    """Write the script of a shell, and a line that loads it to the end of the shell's start file.

    Returns:
        Path of the script, and of the start file where the shell needs one (bash, zsh).
    """
    from facesyn_cli.artifacts.atomic_files import write_text

    text = script(shell)
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        path, start = config / "fish/completions/facesyn.fish", None
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
        path, start = data / f"facesyn/completion.{shell}", Path.home() / _START_FILES[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    if start is not None:
        _add_line(start, f"[ -r {shlex.quote(str(path))} ] && . {shlex.quote(str(path))}")
    return path, start


def _add_line(path: Path, line: str) -> None:
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if line not in before.splitlines():
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if before and not before.endswith("\n") else "") + f"{line}\n")


def _arguments(name: str, given: list[str], word: str) -> Candidates:
    """Yield candidates for an argument of a command, after those in `given`."""
    number = sum(not text.startswith("-") for text in given)
    if name in STAGES:
        yield from _settings(name, given, word)
    elif name in ("run", "ablate"):
        stage, dot, rest = word.partition(".")
        if not dot:
            yield from ((f"{stage}.", "") for stage in STAGES)
        elif stage in STAGES:
            yield from ((f"{stage}.{value}", about) for value, about in _settings(stage, given, rest))
    elif name == "plugins" and number < 2:
        yield from KINDS.items() if number == 0 else _plugins(given[0])
    elif name == "config" and number == 0:
        yield from _recipes(word)
    elif name == "bench" and number == 0:
        yield from ((subject, "") for subject in SUBJECTS)
    elif name == "guide" and number == 0:
        topics = (Path(__file__).parents[1] / "guide").glob("*.md")
        yield from ((path.stem, "") for path in topics if path.stem != "README")


def _settings(stage: str, given: list[str], word: str) -> Candidates:
    """Yield keys of settings, or values of the key that is typed; a plugin named before decides about its settings."""
    chosen = {}
    for text in given:
        key, _, value = text.removeprefix("--").removeprefix(f"{stage}.").partition("=")
        chosen[_SECTION_OF.get(key, key).removesuffix(".name")] = value
    choices: dict[str, Callable[[], Candidates] | list[str]] = {}
    for key, entry in setting_table()["stages"][stage].items():
        if isinstance(entry, list):
            choices[key] = entry
            continue
        kind = entry["plugin"]
        choices[f"{key}.name"] = choices[key] = lambda kind=kind: _plugins(kind)
        plugin = setting_table()["plugins"][kind].get(chosen.get(key, entry["default"]), {"settings": {}})
        inner = {name: values for name, values in plugin["settings"].items() if isinstance(values, list)}
        choices |= {f"{key}.{name}": values for name, values in inner.items()}
    key, equals, _ = word.partition("=")
    if not equals:
        yield from ((f"{key}=", "") for key, values in choices.items() if not callable(values) or key.endswith(".name"))
        return
    values = choices.get(key, [])
    found = values() if callable(values) else ((value, "") for value in values)
    yield from ((f"{key}={value}", about) for value, about in found)


def _values(command: str, option: str, word: str) -> Candidates:
    """Yield values of an option; `word` is what is typed of it."""
    if option in ("--from", "--to") and command == "run" or option == "--stage":
        yield from ((stage, "") for stage in STAGES)
    elif option in _KIND_OF.get(command, {}) or option in _KIND_OF[""]:
        kinds, is_list = _KIND_OF.get(command, {}).get(option) or _KIND_OF[""][option]
        start = word[: word.rfind(",") + 1] if is_list else ""
        for kind in kinds:
            yield from ((start + value, about) for value, about in _plugins(kind) if value not in start.split(","))
    elif option == "--config":
        yield from _recipes(word)
    elif option == "--starter":
        yield from (("packaged", "the starter that comes with the package"), *_paths(word, ()))
    elif option == "--device":
        yield from ((device, "") for device in ("auto", "cpu", "cuda", "cuda:0", "mps"))
    elif (command, option) in _WORDS:
        yield from ((value, "") for value in _WORDS[command, option])
    else:
        choices = setting_table()["stages"].get(command, {}).get(option.removeprefix("--").replace("-", "_"), [])
        yield from ((value, "") for value in choices if isinstance(choices, list))


_KIND_OF: dict[str, dict[str, tuple[tuple[str, ...], bool]]] = {  # command -> option -> kinds, comma-separated list
    "": {
        "--scheduler": (("scheduler",), False), "--backbone": (("backbone",), False), "--head": (("head",), False),
        "--source": (("contexts",), False), "--benchmark": (("benchmark",), False),
        "--benchmarks": (("benchmark",), True), "--schedulers": (("scheduler",), True),
        "--methods": (("guidance", "context_variation"), True),
    },
    "pack": {"--from": (("record_format",), False), "--to": (("record_format",), False)},
}
_SECTION_OF = {"source": "source", "to": "format"}  # option -> section of settings of the plugin that it names
_WORDS = {
    ("models convert", "--to"): ("safetensors", "published", "onnx"),
    ("models convert", "--channel-order"): ("rgb", "bgr"), ("models verify", "--channel-order"): ("rgb", "bgr"),
    ("models convert", "--precision"): ("fp32", "fp16"), ("pairs", "--cfp"): ("FP", "FF"),
}


def _plugins(kind: str) -> Candidates:
    known = setting_table()["plugins"].get(kind, {})
    names = registry.available(kind) if kind in KINDS else []
    yield from ((name, known.get(name, {}).get("about", "")) for name in names)


def _recipes(word: str) -> Candidates:
    """Yield built-in recipes, and YAML files and folders."""
    yield from ((name, recipe_about(name)) for name in recipe_names())
    yield from _paths(word, (".yaml", ".yml"))


def _paths(word: str, suffixes: tuple[str, ...]) -> Candidates:
    """Yield folders, and files with one of the suffixes, whose path begins with a word."""
    folder = word[: word.rfind("/") + 1]
    for path in Path(folder or ".").iterdir() if Path(folder or ".").is_dir() else ():
        is_hidden = path.name.startswith(".") and not word.removeprefix(folder).startswith(".")
        if (path.is_dir() or path.suffix in suffixes) and not is_hidden:
            yield f"{folder}{path.name}{'/' if path.is_dir() else ''}", ""


def _options(command: Any) -> Candidates:
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            yield from ((option, parameter.help or "") for option in (*parameter.opts, *parameter.secondary_opts))
    yield "--help", "Show the help."


def _takes_value(command: Any, option: str) -> bool:
    return any(option in parameter.opts and not parameter.is_flag for parameter in command.params
               if parameter.param_type_name == "option")


def _split(line: str) -> list[str]:
    """Return the words of a line, the last one as far as it is typed; an open quote is closed."""
    for closing in ("", '"', "'", "\\"):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return words if line and not line[-1].isspace() else [*words, ""]
    return [""]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(":", "\\:")
