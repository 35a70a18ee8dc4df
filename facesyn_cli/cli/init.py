"""`facesyn init`: a recipe from a few questions or flags."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.pipelines.init_inputs import Machine
    from facesyn_cli.pipelines.init_recipe import Choices

EXAMPLES = (
    "facesyn init",
    "facesyn init --photos photos.zip --recognizer starter --size small --yes",
    "facesyn init mine.yaml --photos photos/ --recognizer w600k.onnx --yes",
)

T = TypeVar("T")


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recipe to write.")] = Path("facesyn.yaml"),
    photos: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Folder or zip of face photos to train on; none: the starter generates the "
                     "set."),
    ] = None,
    align: Annotated[
        bool | None,
        typer.Option("--align/--no-align", help="Whether faces are cut out of the photos first; default: unless they "
                     "are 112 x 112."),
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YuNet, the face detector for --align, an .onnx file.")
    ] = None,
    recognizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="Recognizer whose embeddings condition the LDM, or starter.")
    ] = None,
    size: Annotated[
        Literal["small", "medium", "full"] | None,
        typer.Option(metavar="SIZE", help="small: a laptop; medium: one good GPU; full: the numbers of ADMIS."),
    ] = None,
    ids: Annotated[int | None, typer.Option(metavar="N", help="Identities of the set.", min=2)] = None,
    per_id: Annotated[int | None, typer.Option(metavar="N", help="Images of each identity.", min=1)] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Autoencoder of sizes medium and full, or taesd3; default: one is trained."),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Verification pairs to evaluate on: a list or a .bin.")
    ] = None,
    pair_images: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder or zip of the images that the list names.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Independent recognizer that scores the set.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    json: Json = False,
) -> None:
    """Write a recipe for your photos and this machine.

    On a terminal it asks for what the options do not say. The recipe needs no further options: `facesyn run --config
    FILE` makes the set. Paths are kept as given, so a relative one counts from the folder in which facesyn is called.
    """
    start()
    if file.exists() and not force:
        raise UserError(f"{file} exists; give another name, or --force to overwrite it")
    if pair_images is not None and pairs is None:
        raise UserError("--pair-images belongs to a list of pairs: give --pairs too")
    from facesyn_cli.pipelines.init_inputs import look_at_machine

    machine = look_at_machine()
    asker = _Asker(is_asking=not yes and _has_terminal())
    choices = _choose(asker, machine, photos, align, detector, recognizer, size, ids, per_id, autoencoder, judge)
    choices = _choose_pairs(asker, choices, pairs, pair_images)
    print_result(_write(file, machine, choices), json, _render)


class _Asker:
    """Asks on the terminal for what no option says; without a terminal takes the default."""

    def __init__(self, is_asking: bool) -> None:
        self.is_asking = is_asking

    def get(self, given: Any, question: str, default: Any, read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the given value, the answer or the default; a refused answer is asked again."""
        if given is not None or not self.is_asking:
            return read(default if given is None else given)
        while True:
            answer = typer.prompt(question, default="" if default is None else str(default), err=True,
                                  show_default=default is not None)
            try:
                return read(answer.strip() or None)
            except (UserError, ValueError) as problem:
                typer.echo(f"  {problem}", err=True)


def _choose(
    asker: _Asker, machine: "Machine", photos: Path | None, align: bool | None, detector: Path | None,
    recognizer: str | None, size: str | None, ids: int | None, per_id: int | None, autoencoder: Path | None,
    judge: Path | None,
) -> "Choices":
    from facesyn_cli.pipelines import init_inputs as look
    from facesyn_cli.pipelines.init_recipe import COUNTS, Choices, proposed_size

    found = asker.get(photos, "Face photos, a folder or zip (Enter: none, the starter generates the set)",
                      None, lambda path: look.look_at_photos(Path(path)) if path else None)
    _say(asker, f"found {found}" if found else "no photos: the packaged starter generates the set")
    if found is None:
        refused = {"--align": align, "--detector": detector, "--recognizer": recognizer, "--autoencoder": autoencoder}
        if given := [name for name, value in refused.items() if value is not None]:
            raise UserError(f"{', '.join(given)} belongs to a training on photos: give --photos too")
        if size not in (None, "small"):
            raise UserError(f"--size {size} trains a generator: give --photos, the faces to train it on")
        look.require_starter()
    elif align is None and detector is None and not found.is_aligned and not asker.is_asking:
        raise UserError(f"{found.path} holds photos of {', '.join(found.sizes)} px, not aligned faces of 112 x 112: "
                        "give --detector FILE (YuNet, of OpenCV's model zoo) to cut the faces out, or --no-align to "
                        "take them as they are")
    if found is not None and align is not False and (align or detector is not None or not found.is_aligned):
        question = "YuNet face detector, an .onnx file (Enter: the photos are aligned already)"
        detector = asker.get(detector, question, None, _file)
        if align and detector is None:
            raise UserError("--align needs --detector FILE, YuNet of OpenCV's model zoo")
    elif align is False:
        detector = None
    embedding, weights = None, None
    if found is not None:
        weights = asker.get(recognizer, "Recognizer that conditions the generator, a file or starter", "starter",
                            lambda text: None if text == "starter" or text is None else Path(text))
        if weights is None:
            look.require_starter()
        else:
            embedding = look.look_at_recognizer(weights)
            _say(asker, f"found {embedding.architecture}, embeddings of {embedding.size} numbers")
        _say(asker, f"found {machine}")
        question = "Size: small (laptop), medium (one good GPU) or full"
        size = asker.get(size, question, proposed_size(machine, found), _size)
    size = size or "small"
    if autoencoder is not None and size == "small":
        raise UserError("--autoencoder belongs to --size medium and full; small takes the packaged one")
    latents = look.look_at_autoencoder(autoencoder) if autoencoder else None
    ids = asker.get(ids, "Identities of the set", COUNTS[size][0], _count)
    per_id = asker.get(per_id, "Images of each identity", COUNTS[size][1], _count)
    judge = asker.get(judge, "Independent recognizer that scores the set (Enter: the starter's)", None, _file)
    if judge is not None:
        look.look_at_recognizer(judge)
    return Choices(size, ids, per_id, found, detector is not None, detector, weights, embedding, autoencoder, latents,
                   machine.bf16, judge=judge)


def _choose_pairs(asker: _Asker, choices: "Choices", pairs: Path | None, images: Path | None) -> "Choices":
    from dataclasses import replace

    from facesyn_cli.evaluation.pairs import is_bin
    from facesyn_cli.pipelines.init_inputs import check_pairs

    pairs = asker.get(pairs, "Verification pairs of real faces, a list or .bin (Enter: none)", None, _file)
    if pairs is None:
        return choices
    if images is None and asker.is_asking and not is_bin(pairs):
        images = asker.get(None, "Folder or zip of the images that the list names", None, _path)
    check_pairs(pairs, images)
    return replace(choices, pairs=pairs, pair_images=images)


def _write(file: Path, machine: "Machine", choices: "Choices") -> dict[str, Any]:
    """Write the recipe; return what was found and decided, and the command that runs it."""
    import shlex
    from dataclasses import asdict

    from facesyn_cli import __version__
    from facesyn_cli.artifacts.atomic_files import write_text
    from facesyn_cli.pipelines.init_recipe import expected_disk_gib, make_sections
    from facesyn_cli.pipelines.init_text import recipe_text
    from facesyn_cli.pipelines.stage import resolve_stage
    from facesyn_cli.pipelines.stage_facts import stage_facts

    sections = make_sections(choices)
    stages = {stage: ", ".join(stage_facts(stage, resolve_stage(stage, settings, [], {})))
              for stage, settings in sections.items()}
    run = shlex.join(["facesyn", "run", "--config", str(file), "--work", f"runs/{file.stem}"])
    photos = str(choices.photos) if choices.photos else "none; the networks of the packaged starter generate the set"
    recognizer = f"{choices.recognizer}, {choices.embedding.architecture}" if choices.embedding else "the starter's"
    disk = expected_disk_gib(choices, sections)
    warnings = []
    if choices.size != "small" and machine.gpu is None:
        warnings.append(f"size {choices.size} needs a GPU, and this machine has none that torch can use")
    if disk > machine.disk_free:
        warnings.append(f"the run takes about {disk:.0f} GiB of disk, {machine.disk_free:.0f} GiB are free here")
    if choices.judge is None and choices.recognizer is None:
        warnings.append("the starter's recognizer conditions the generator and also scores the set, so the scores of "
                        "identities are too good; name another one with --judge")
    head = [
        f"Recipe written by facesyn {__version__}, size {choices.size}. Run it, stop it and run it again with",
        "", f"    {run}", "",
        "Paths are relative to the folder in which facesyn is called. Each setting can also be given on the command "
        "line,", "for example sample.ids=300. facesyn config --stage NAME lists the settings of a stage.", "",
        f"Photos: {photos}.", f"Machine: {machine}.",
    ]
    write_text(file, recipe_text(sections, head))
    return {
        "recipe": str(file), "command": run,
        "found": {"photos": photos, "recognizer": recognizer, "machine": str(machine)},
        "choices": asdict(choices), "stages": stages, "disk_gib": round(disk, 2),
        "warnings": warnings, "sections": sections,
    }


def _render(made: dict[str, Any]) -> str:
    width = max(len(stage) for stage in made["stages"])
    return "\n".join([
        *(f"{name + ':':12}{about}" for name, about in made["found"].items()), "",
        f"size {made['choices']['size']}, about {made['disk_gib']:.1f} GiB of disk:",
        *(f"  {stage:{width}}  {about}" for stage, about in made["stages"].items()), "",
        *(f"note: {text}" for text in made["warnings"]), *([""] if made["warnings"] else []),
        f"wrote {made['recipe']}; read it, change what you like, then:", f"  {made['command']}",
    ])


def _has_terminal() -> bool:
    import sys

    return sys.stdin.isatty() and sys.stderr.isatty()


def _say(asker: _Asker, text: str) -> None:
    if asker.is_asking:
        typer.echo(f"  {text}", err=True)


def _path(text: Any) -> Path | None:
    return Path(text) if text else None


def _file(text: Any) -> Path | None:
    path = _path(text)
    if path is not None and not path.exists():
        raise UserError(f"{path} does not exist")
    return path


def _size(text: Any) -> str:
    if text not in ("small", "medium", "full"):
        raise UserError(f"{text!r} is none of small, medium, full")
    return text


def _count(text: Any) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a number from 1")
    return int(text)
