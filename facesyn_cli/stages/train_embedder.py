"""Train a small recognizer towards the embeddings that a larger one wrote (`1-embedder`).

The teacher itself is not needed: its embeddings come from `facesyn embed`, joined with the photos by key. Transformed
views of a photo keep the target of the photo itself. The student therefore shares the teacher's embedding space, so
that embeddings and contexts of both can be compared; config and header name the teacher (`distilled_from`).
"""

from __future__ import annotations

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginList, PluginSection
from facesyn_cli.training.bn_groups import num_groups
from facesyn_cli.training.shared_settings import TrainingConfig
from facesyn_cli.training.tasks.embedder import EmbedderTask
from facesyn_cli.training.tasks.embedder_settings import EmbedderTrainingConfig
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class TrainEmbedderConfig(EmbedderTrainingConfig):
    """Settings of `facesyn train-embedder`."""

    renamed = {
        **TrainingConfig.renamed, "validation.fraction": "validation_fraction",
        "validation.images": "validation_images", "validation.every": "validate_every",
    }

    backbone: PluginConfig = PluginSection("backbone", default="ir-lite")
    transforms: list[PluginConfig] = PluginList(
        "transform",
        default=[
            "flip",
            {"name": "random-resized-crop", "p": 0.5, "scale": [0.8, 1.0], "ratio": [0.95, 1.0526]},
            {"name": "photometric", "p": 0.3, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
        ],
    )


def plan(cfg: TrainEmbedderConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    return EmbedderTask(cfg, work).full_plan()


def run(cfg: TrainEmbedderConfig, work: Work) -> Outcome:
    """Train, or resume, and write the weights."""
    processes = join_processes(cfg)
    num_groups(cfg.batch_size, cfg.norm_batch_size, processes.world_size)
    return run_training(EmbedderTask(cfg, work), processes)
