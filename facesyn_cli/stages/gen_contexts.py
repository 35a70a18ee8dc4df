"""`facesyn gen-contexts`: a source of candidate identities -> the contexts that filters accept.

Candidates come in a fixed order; the first `count` that pass the filters become the identities `0`, `1`, ... Every
process, and every run with `--shard i/n`, makes batches of its own; one process accepts them in their order, so the set
is the same for any number of them. A finished batch is on disk: a killed run resumes with the next one, and a larger
`count` extends the folder.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import torch

from facesyn_cli import distributed
from facesyn_cli.artifacts.atomic_files import write_json, write_text
from facesyn_cli.artifacts.context_set import FACES, ROWS, VECTORS, write_contexts
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.header import BEGUN, Header, Parent
from facesyn_cli.artifacts.origins import FACE_ORIGIN, PHOTO, UNKNOWN, Origin
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.weights import predicted_by
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config import fields
from facesyn_cli.config.shard import ShardedConfig
from facesyn_cli.console import log
from facesyn_cli.contexts.candidate_files import CandidateFiles
from facesyn_cli.contexts.collect import Acceptance, CandidateMaker, collect
from facesyn_cli.contexts.open_resources import ContextInputs
from facesyn_cli.contexts.selection import CANDIDATES, FOLDER, Progress, in_order
from facesyn_cli.contexts.source import ContextFilter, ContextSource
from facesyn_cli.data.alignment import DetectFaces
from facesyn_cli.diffusion.scheduler_choice import with_default_scheduler
from facesyn_cli.distributed import choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig, PluginList, PluginSection
from facesyn_cli.sampling.workers import num_workers, one_core_each

FAILED = "failed.txt"  # faces that could not be read, one line each


class GenContextsConfig(ShardedConfig):
    """Settings of `facesyn gen-contexts`."""

    source: PluginConfig = PluginSection("contexts", default="two-stage")
    count: int | None = fields.growable(None, "contexts to accept; None: all of a source that ends", ge=1)
    filters: list[PluginConfig] = PluginList("context_filter", default=["unique"])
    images: Path | None = fields.input_path(None, "folder or zip of faces, for the sources images and embeddings")
    embeddings: Path | None = fields.input_path(None, "given embeddings, for the source embeddings")
    embedding_names: Path | None = fields.input_path(None, "their row-order list; None: image_names.* beside an array")
    known: Path | None = fields.input_path(None, "EmbeddingSet of real people for the filter novel; None: 1-embeddings")
    generator: str | None = fields.input_path(None, "diffusers pipeline: a folder, or a hub id, which is downloaded")
    ldm: Path | None = fields.input_path(None, "LDM for the source two-stage; None: 2-ldm")
    autoencoder: str | None = fields.input_path(None, "its autoencoder or decoder; None: that of its training")
    weights: Path | None = fields.input_path(None, "recognizer; None: the one that made 1-embeddings")
    backbone: PluginConfig | None = PluginSection("backbone", default=None)
    align: DetectFaces | None = fields.affects_result(
        None, "align.detector=FILE: given or drawn images are photos; find and align their faces"
    )
    batch_size: int | None = fields.batch_setting(
        None, "faces the networks see at once; None: 32 on a GPU, 8 on a CPU", ge=1
    )
    workers: int | None = fields.runtime_only(
        None, "batches made at once on a CPU, one core each; None: all cores", ge=1
    )
    shard: str | None = fields.runtime_only(
        None, "i/n, i from 1: make part i of n of as many candidates as contexts are missing; the run that finds all "
        "parts accepts them, and makes more candidates where that leaves too few contexts"
    )
    patience: int = fields.runtime_only(
        5000, "dropped candidates in a row after which an endless source is given up", ge=1
    )


def plan(cfg: GenContextsConfig, work: Work) -> Plan:
    """Return what `run` would do, with the network evaluations where every candidate is accepted."""
    folder = cfg.out or work.folder("contexts")
    device = choose_device(cfg.device)
    cfg = _with_schedulers(_with_batch_size(cfg, device), work)
    source, filters, parents, batch_size = _open(cfg, work, device)
    state = check_output(folder, "ContextSet", cfg, parents)
    wanted = min(n for n in (cfg.count, source.num_candidates) if n is not None)
    counts = {"contexts": wanted, **({} if source.num_candidates is None else {"candidates": source.num_candidates})}
    left = 0 if state == "finished" else wanted
    if cfg.part is not None and left:
        files = CandidateFiles(folder / FOLDER / CANDIDATES, batch_size, source.num_candidates)
        batches = files.of_part(cfg.part, *_first_candidates(cfg, folder))
        counts["candidates_of_part"] = sum(len(numbers) for numbers, _ in batches)
        left = sum(len(numbers) for numbers, is_finished in batches if not is_finished)
    evaluations: Counter[str] = Counter()  # of one candidate
    for part in (source, *(context_filter for _, context_filter in filters)):
        evaluations.update(part.evaluations)
    has_faces = "images" in source.needs | source.may_use and cfg.images or "recognizer" in source.needs
    return Plan(
        folder,
        state,
        {name: parent.path for name, parent in parents.items()},
        counts,
        {network: number * left for network, number in evaluations.items()},
        left * (2 * 2048 + (25_000 if has_faces else 0)) / 2**20,
        chosen={
            "source": cfg.source.name, "filters": [name for name, _ in filters],
            "evaluations_per_candidate": dict(evaluations),
        },
    )


def run(cfg: GenContextsConfig, work: Work) -> Outcome:
    """Accept candidates until there are `count` contexts; see the module docstring.

    Raises:
        UserError: An input is missing or not what was expected, or the source ended before there were enough.
    """
    folder = cfg.out or work.folder("contexts")
    processes = distributed.processes(cfg.device)
    cfg = _with_schedulers(_with_batch_size(cfg, processes.device), work)
    source, filters, parents, batch_size = _open(cfg, work, processes.device)
    files = CandidateFiles(folder / FOLDER / CANDIDATES, batch_size, source.num_candidates)
    with open_shared_output(processes, folder, "ContextSet", "gen-contexts", cfg, parents, cfg.part) as out:
        if not out.finished:
            workers = processes.from_first(lambda: num_workers(cfg.workers, processes.device, processes.world_size))
            with one_core_each(workers, processes.device) as pool:
                maker = CandidateMaker(source, filters, files, processes, pool, workers * processes.world_size)
                _collect(cfg, maker, out, parents)
        header = out.header
    if header is None:
        return Outcome(folder, {"part": cfg.shard})
    _log_origin(cfg, source, header, folder)
    if failed := header.count("failed"):
        log.warning(f"{failed} faces could not be read; they are listed in {folder / FAILED}")
    return Outcome(folder, {"source": cfg.source.name, **header.counts, "dropped": header.extra.get("dropped")})


def _collect(cfg: GenContextsConfig, maker: CandidateMaker, out: Output, parents: dict[str, Parent]) -> None:
    """Make the candidates of this run; accept them, and finish, if those of all other runs are there. A collective."""
    files, processes = maker.files, maker.processes
    progress_folder = out.folder / FOLDER
    if cfg.part is not None:
        maker.make_part(cfg.part, *processes.from_first(lambda: _first_candidates(cfg, out.folder)))

    def num_missing() -> int:
        """Return how many batches of candidates other runs have not made yet."""
        start, num_wanted = _first_candidates(cfg, out.folder)
        return sum(not is_finished for _, is_finished in files.of_part((1, 1), start, num_wanted))

    with ExitStack() as stack:
        joining = out.joining(num_missing, "batches of candidates")
        if not processes.from_first(lambda: stack.enter_context(joining)):
            return
        found = Progress.open(progress_folder, cfg.count) if processes.is_first else Progress(progress_folder)
        collect(maker, Acceptance(
            [(name, f) for name, f in maker.filters if f.remembers], found, out.folder / FACES, cfg.count,
            cfg.patience if maker.source.num_candidates is None else None,
        ))

        def finish() -> Header | None:
            if not found.num_kept or (cfg.count is not None and not found.has(cfg.count)):
                raise _too_few(cfg, maker.source, found, out, parents)
            return _finish(cfg, maker.source, found, out)

        out.header = processes.from_first(finish)


def _first_candidates(cfg: GenContextsConfig, folder: Path) -> tuple[int, int | None]:
    """Return the first candidate that sharded runs make, and how many they make: one for each context that is missing.

    None: all of a source that ends.
    """
    found = Progress.open(folder / FOLDER, cfg.count, is_reader=True)
    return found.next_candidate, found.room(cfg.count)


def _with_batch_size(cfg: GenContextsConfig, device: torch.device) -> GenContextsConfig:
    default = 8 if device.type == "cpu" else 32
    return cfg.model_copy(update={"batch_size": cfg.batch_size or default})


def _with_schedulers(cfg: GenContextsConfig, work: Work) -> GenContextsConfig:
    """Return settings in which sources and filters that state no scheduler have one that fits the LDM."""
    if not any("scheduler" in type(section).model_fields for section in (cfg.source, *cfg.filters)):
        return cfg  # the LDM is not used, so nothing is read of it
    return with_default_scheduler(cfg, predicted_by(cfg.ldm or work.folder("ldm")))


def _open(
    cfg: GenContextsConfig, work: Work, device: torch.device
) -> tuple[ContextSource, list[tuple[str, ContextFilter]], dict[str, Parent], int]:
    """Build source and filters and open their inputs; return them, the inputs and the number of candidates a batch."""
    source: ContextSource = registry.build("contexts", cfg.source)
    try:
        filters = in_order([(f.name, registry.build("context_filter", f)) for f in cfg.filters])
    except ValueError as error:
        raise UserError(f"filters: {error}") from error
    names = ("images", "embeddings", "embedding_names", "known", "generator", "ldm", "autoencoder", "weights")
    inputs = ContextInputs(
        {name: getattr(cfg, name) for name in names}, cfg.seed, cfg.batch_size, device, cfg.backbone, cfg.align
    )
    resources, parents = inputs.open(source, cfg.source.name, filters, work)
    if cfg.count is None and source.num_candidates is None:
        raise UserError(f"source {cfg.source.name} is endless; say how many contexts with --count")
    return source, filters, parents, resources.batch_size


def _finish(cfg: GenContextsConfig, source: ContextSource, found: Progress, out: Output) -> Header | None:
    blocks = found.blocks
    origins = [{"source": cfg.source.name, **origin} for block in blocks for origin in block.origins]
    faces = [face for block in blocks for face in block.faces]
    write_contexts(out.folder, [str(row) for row in range(len(origins))], found.vectors, origins, faces)
    failed = [text for block in blocks for _, text in block.failed]
    if failed:
        write_text(out.folder / FAILED, "".join(f"{text}\n" for text in failed))
    counts = {
        "contexts": len(origins),
        "faces": sum(face is not None for face in faces),
        "candidates": found.next_candidate,
        "failed": len(failed),
    }
    digest = json_digest([source.embedder, *(file_digest(out.folder / name) for name in (VECTORS, ROWS))])
    extra = {"embedder": source.embedder, "dropped": found.dropped()}
    if counts["faces"]:
        extra[FACE_ORIGIN] = _face_origin(source)
    return out.finish(counts, extra=extra, digest=digest, is_whole=True)


def _log_origin(cfg: GenContextsConfig, source: ContextSource, header: Header, folder: Path) -> None:
    """Warn where the origin of the faces is unknown, is photos, or differs from the one in a finished folder."""
    if not header.count("faces"):
        return
    kept = header.extra.get(FACE_ORIGIN, UNKNOWN)
    if kept != _face_origin(source):
        log.warning(f"{folder} is finished with faces of origin {kept}; that they are {_face_origin(source)} is not "
                    "recorded there (augment takes faces_origin)")
    elif kept == UNKNOWN:
        log.warning(f"{header.counts['faces']} context faces are of unknown origin; {cfg.source.name} takes "
                    "source.origin=generated or source.origin=photo")
    elif kept == PHOTO:
        log.warning(f"{header.counts['faces']} context faces are photos of real people; augment does not add them to a "
                    "set by default")


def _face_origin(source: ContextSource) -> Origin:
    return getattr(source, "face_origin", UNKNOWN)  # plugins of others may be older than the attribute


def _too_few(
    cfg: GenContextsConfig, source: ContextSource, found: Progress, out: Output, parents: dict[str, Parent]
) -> UserError:
    """Return the error with what there is, and record that number as the wanted one: giving it finishes the folder."""
    dropped = ", ".join(f"{name} dropped {number}" for name, number in found.dropped().items())
    failed = sum(len(block.failed) for block in found.blocks)
    why = f"source {cfg.source.name} has no more candidates" if source.num_candidates is not None else (
        f"source {cfg.source.name} is given up: its last {cfg.patience} candidates were all dropped"
    )
    kept = found.num_kept
    seen = f"accepted {kept} of {found.next_candidate} candidates ({dropped or 'no filter'}; {failed} unreadable)"
    if not kept:
        return UserError(f"{why}: {seen}")
    lowered = cfg.model_copy(update={"count": kept})
    begun = Header("ContextSet", "gen-contexts", lowered.to_json(), parents)
    write_json(out.folder / BEGUN, dataclasses.asdict(begun))
    return UserError(
        f"{why}: {seen}, {cfg.count} are wanted; --count {kept} finishes with these, "
        "more need another source or a filter with a higher r (and another --out)"
    )
