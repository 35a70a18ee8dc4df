"""Turn the rows of a table into chains of stages: settings, inputs, numbers of images and addresses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.ablation_rows import SHARED_STAGES, AblateConfig, Row, Settings
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.ablation_steps import FOLDER, PARTS, Chain, Step, content_of, sources_of
from facesyn_cli.pipelines.stage import resolve_stage
from facesyn_cli.plugins import registry

_CONTEXT_INPUTS = (  # an input that a source can need, its setting, and the folder of --work that is the default
    ("ldm", "ldm", "ldm"), ("ldm", "autoencoder", None), ("recognizer", "weights", "embeddings"),
    ("known", "known", "embeddings"),
)


class Chains:
    """Makes the chains of a table.

    Args:
        table: The section `ablate`.
        sections: Settings that all rows share, by stage.
        rows: All rows, also those that do not run; the smallest one can set the number of images.
        judge: Weights of the recognizer for rows that filter their samples without naming one.
        work: Work folder.

    Attributes:
        shared: Settings of the stages that are the same in all rows.

    Raises:
        UserError: One of these settings is wrong.
    """

    def __init__(
        self, table: AblateConfig, sections: dict[str, Settings], rows: list[Row], judge: Path | None, work: Work
    ) -> None:
        self._table, self._sections, self._rows, self._judge, self._work = table, sections, rows, judge, work
        self._parts = work.path / FOLDER / PARTS
        self._real: dict[Path, ImageSet] = {}
        self._digests: dict[Path | str, str] = {}
        self._ldms: dict[Path, Any] = {}
        self._configs: dict[tuple[str, str], Any] = {}
        self.shared = self._resolve_shared()

    def chain(self, row: Row, seed: int) -> Chain:
        """Return the chain of a row under a seed.

        Raises:
            UserError: A setting is wrong, an input is missing, or the row has too few images.
        """
        identities, whole = self._size(row)
        images = self._target(row)
        if images > whole:
            raise UserError(f"{images} images are wanted, the row has {whole}")
        choose = self._generated_faces if row.real is False else self._real_faces
        steps = choose(row, seed, images)
        address, inputs = {"images": steps[-1].address}, (steps[-1].folder,)
        if row.beside is not None:
            real = next(other for other in self._rows if other.name == row.beside)
            steps = [*self._real_faces(real, seed, self._target(real)), *steps]
            address, inputs = {**address, "beside": steps[0].address}, (steps[0].folder, *inputs)
            identities, images = identities + self._size(real)[0], images + self._target(real)
        cfg = self.shared["train-fr"].model_copy(update={"seed": seed})
        steps.append(self._step("train-fr", cfg, address, inputs=inputs))
        cfg = self.shared["eval"]
        steps.append(self._step("eval", cfg, {"weights": steps[-1].address}, weights=steps[-1].folder))
        return Chain(row, seed, steps, identities, images)

    def evaluations(self, step: Step) -> int:
        """Return the denoiser evaluations per image of a `sample` step, without rejection sampling.

        Raises:
            UserError: The LDM is missing or wrong, or the scheduler does not support the steps.
        """
        from facesyn_cli.diffusion.denoising_loop import count_evaluations
        from facesyn_cli.diffusion.schedule import ldm_schedule
        from facesyn_cli.diffusion.scheduler_choice import build_scheduler, with_default_scheduler
        from facesyn_cli.models.loading import load_denoiser

        if step.cfg.ldm not in self._ldms:
            self._ldms[step.cfg.ldm] = load_denoiser(step.cfg.ldm).config
        settings = self._ldms[step.cfg.ldm]
        schedule = ldm_schedule(settings)
        cfg = with_default_scheduler(step.cfg, settings.prediction, is_silent=True)
        scheduler = build_scheduler(cfg.scheduler, settings.prediction)(schedule)
        return count_evaluations(scheduler, registry.build("guidance", cfg.guidance), schedule.num_timesteps)

    def _resolve_shared(self) -> dict[str, StageConfig]:
        stages = {name: resolve_stage(name, self._sections.get(name, {}), [], self._flags()) for name in SHARED_STAGES}
        if stages["train-fr"].inputs:
            raise UserError("train-fr.inputs cannot be set in a table: every row has its own images")
        if not stages["eval"].benchmarks and not stages["eval"].pairs:
            raise UserError("nothing to evaluate: give --benchmarks NAMES with --data FOLDER, or --pairs with --images")
        return stages

    def _flags(self, **flags: Any) -> dict[str, Any]:
        return {"device": self._table.device, **flags}

    def _target(self, row: Row) -> int:
        """Return the number of images of a row."""
        images = row.images or self._table.images or self._size(row)[1]
        return min(self._size(other)[1] for other in self._rows) if images == "smallest" else images

    def _size(self, row: Row) -> tuple[int, int]:
        """Return the identities and images of a row before it is reduced."""
        if row.real is not False:
            counts = sorted(map(len, self._real_images(row).by_identity().values()), reverse=True)
            counts = counts[: self._identities(row) or len(counts)]
            return len(counts), sum(counts)
        cfg = self._config(row, "sample")
        return cfg.ids, cfg.ids * (cfg.per_id + self._additions(row)(cfg.per_id))

    def _identities(self, row: Row) -> int | None:
        return row.identities or self._table.identities

    def _real_images(self, row: Row) -> ImageSet:
        path = self._table.real if row.real is True else row.real
        if path is None:
            raise UserError("give the folder of real faces with --real")
        if path not in self._real:
            self._real[path] = ImageSet.open(path)
        return self._real[path]

    def _real_faces(self, row: Row, seed: int, images: int) -> list[Step]:
        found = self._real_images(row)
        identities = self._identities(row) or len(found.by_identity())
        if len(found.by_identity()) < identities:
            raise UserError(f"{identities} identities are wanted, {found.path} has {len(found.by_identity())}")
        if images < 2 * identities:
            raise UserError(f"{images} images of {identities} identities are fewer than 2 each; give fewer identities")
        flags = {"seed": seed, "images": found.path, "identities": self._identities(row), "count": images}
        cfg = resolve_stage("cut", {"choose": "random"}, [], flags)
        return [self._step("cut", cfg, {})]

    def _generated_faces(self, row: Row, seed: int, images: int) -> list[Step]:
        sample = self._config(row, "sample").model_copy(update={"seed": seed})
        steps, contexts, address = [], sample.contexts, {}
        if contexts is None:
            steps.append(self._contexts_step(row, seed))
            contexts, address = steps[0].folder, {"contexts": steps[0].address}
        count = self._num_samples(row, images, sample.ids, sample.per_id)
        per_id = -(-count // sample.ids)  # no more than are used
        if sample.filter is not None:
            registry.build("sample_filter", sample.filter).check(per_id, "", None)
        steps.append(self._step("sample", sample, address, contexts=contexts, per_id=per_id))
        cut = resolve_stage("cut", {}, [], {"identities": sample.ids, "count": count})
        steps.append(self._step("cut", cut, {"images": steps[-1].address}, images=steps[-1].folder))
        if "augment" in row.sections:
            augment = self._config(row, "augment").model_copy(update={"seed": seed})
            address = {"images": steps[-1].address}
            steps.append(self._step("augment", augment, address, images=steps[-1].folder, contexts=contexts))
        return steps

    def _config(self, row: Row, stage: str) -> Any:
        """Return the settings of one stage of a row, cached; without seed, folder and outputs of earlier steps."""
        if (row.name, stage) not in self._configs:
            section = row.sections.get(stage, {})
            resolve = {"gen-contexts": self._contexts_config, "sample": self._sample_config}.get(stage)
            self._configs[row.name, stage] = resolve(row, section) if resolve else resolve_stage(stage, section, [], {})
        return self._configs[row.name, stage]

    def _contexts_config(self, row: Row, section: Settings) -> Any:
        """Return the settings of `gen-contexts`, without inputs that this row does not need."""
        cfg, ids = resolve_stage("gen-contexts", section, [], self._flags()), self._config(row, "sample").ids
        if cfg.count is not None and cfg.count < ids:
            raise UserError(f"sample.ids is {ids}, but gen-contexts.count is {cfg.count}")
        unused = [key for need, key, _ in _CONTEXT_INPUTS if need not in _needs(cfg)]
        return cfg.model_copy(update={"count": cfg.count or ids, **dict.fromkeys(unused)})

    def _contexts_step(self, row: Row, seed: int) -> Step:
        cfg, address = self._config(row, "gen-contexts"), {}
        needs = _needs(cfg)
        for need, key, folder in _CONTEXT_INPUTS:
            if need in needs and getattr(cfg, key) is None and folder and self._work.folder(folder).exists():
                address[key] = self._content(self._work.folder(folder))
        return self._step("gen-contexts", cfg.model_copy(update={"seed": seed}), address)

    def _sample_config(self, row: Row, section: Settings) -> Any:
        """Return the settings of `sample`, with the number of identities and the paths of its networks."""
        if section.get("filter") and self._judge is not None:
            chosen = section["filter"]
            chosen = {"name": chosen} if isinstance(chosen, str) else chosen
            section = {**section, "filter": {"judge": str(self._judge), **chosen}}
        cfg = resolve_stage("sample", section, [], self._flags())
        if cfg.layout == "tar" or cfg.shard is not None:
            raise UserError("sample.layout=tar and sample.shard cannot be set in a table: its rows are folders")
        if cfg.filter is not None and getattr(cfg.filter, "judge", None) is None:
            raise UserError("a filter needs a judge, the weights of a face recognizer: --judge FILE")
        ids = cfg.ids or row.sections.get("gen-contexts", {}).get("count")
        if ids is None:
            raise UserError("the number of identities is missing: set sample.ids or gen-contexts.count")
        ldm = cfg.ldm or self._work.folder("ldm")
        if not ldm.exists():
            raise missing_input(ldm, "an LDM", "--ldm PATH")
        return cfg.model_copy(update={"ids": ids, "ldm": ldm})

    def _additions(self, row: Row) -> Callable[[int], int]:
        """Return a function: number of images of an identity -> number that augmentation adds."""
        if "augment" not in row.sections:
            return lambda num_samples: 0
        return registry.build("augmentation", self._config(row, "augment").augmentation).num_additions

    def _num_samples(self, row: Row, images: int, ids: int, per_id: int) -> int:
        """Return the number of samples that, together with what augmentation adds, is a number of images."""
        additions = self._additions(row)
        for count in range(min(images, ids * per_id), ids - 1, -1):
            each, more = divmod(count, ids)
            added = more * additions(each + 1) + (ids - more) * additions(each)
            if count + added == images:
                return count
            if count + added < images:
                break
        raise UserError(
            f"{images} images of {ids} identities cannot be composed of samples and augmented images; "
            "choose another number of images"
        )

    def _step(self, stage: str, cfg: StageConfig, address: dict[str, str], **parents: Any) -> Step:
        """Return a step; `address` holds those of inputs that `cfg` does not name, `parents` settings for folders."""
        groups = cfg.to_json()
        growing = {key: value for key, value in groups["growing"].items() if key != "ids"}
        named = {key: self._content(path) for key, path in sources_of(cfg)}
        found = json_digest([stage, groups["identity"], growing, {**named, **address}])
        out = self._parts / f"{stage}-{found.removeprefix('sha256:')[:16]}"
        return Step(stage, cfg.model_copy(update={**parents, "out": out}))

    def _content(self, named: Path | str) -> str:
        if named not in self._digests:
            self._digests[named] = content_of(named)
        return self._digests[named]


def _needs(cfg: Any) -> set[str]:
    """Return the inputs that the source and the filters of contexts need."""
    source = registry.build("contexts", cfg.source)
    filters = [registry.build("context_filter", each) for each in cfg.filters]
    return set(source.needs | source.may_use).union(*(each.needs for each in filters))
