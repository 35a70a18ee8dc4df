"""Find out before the first stage runs that a recipe leaves inputs open, and propose the packaged recognizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from facesyn_cli.artifacts.starter_files import is_packaged
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

_LOSSES = ("feature_weight", "identity_weight")  # of train-autoencoder; those stated need `features`


class OpenInputs(UserError):
    """A recipe names no file for some inputs.

    Args:
        words: Settings that name them, `stage.key=value`; the value is `starter-embedder` for a recognizer, else FILE.
        command: The command that runs the recipe with these settings; empty: the settings alone are shown.
    """

    def __init__(self, words: list[str], command: str = "") -> None:
        self.words = words
        names = ", ".join(word.partition("=")[0] for word in words)
        hint = "; starter-embedder is the packaged recognizer" if any("starter" in word for word in words) else ""
        super().__init__(f"the recipe names no file for {names}{hint}. Run: {command or ' '.join(words)}")


def require_inputs(configs: Mapping[str, Any], work: Work) -> None:
    """Refuse stages for which neither the recipe nor the work folder has a recognizer or an autoencoder.

    Args:
        configs: Stage -> config, of all stages that will run.
        work: The work folder.

    Raises:
        OpenInputs: With the settings that name them.
    """
    recognizer = "starter-embedder" if is_packaged() else "FILE"
    words = [f"{setting}={recognizer}" for setting in _without_recognizer(configs)]
    ldm = configs.get("train-ldm")
    has_autoencoder = "train-autoencoder" in configs or work.folder("autoencoder").exists()
    if ldm is not None and not (has_autoencoder or ldm.autoencoder or ldm.autoencoder_model):
        words.append("train-ldm.autoencoder=FILE")
    if words:
        raise OpenInputs(words)
    evaluation = configs.get("eval")
    if evaluation is not None and not evaluation.benchmarks and not evaluation.pairs:
        log.warning("eval has no benchmark, so the run will end with an error there: add eval.pairs=FILE "
                    "eval.images=FOLDER, or end the run earlier with --to train-fr")


def _without_recognizer(configs: Mapping[str, Any]) -> Iterator[str]:
    for stage, key in {"embed": "weights", "report": "judges"}.items():
        if stage in configs and not getattr(configs[stage], key):
            yield f"{stage}.{key}"
    cfg = configs.get("train-autoencoder")
    if cfg is not None and cfg.features is None:
        if any(name in cfg.model_fields_set and getattr(cfg, name) for name in _LOSSES):
            yield "train-autoencoder.features"
