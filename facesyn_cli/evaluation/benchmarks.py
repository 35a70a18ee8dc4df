"""The verification benchmarks of the field, as InsightFace packs them: one `.bin` file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pairs import PairSet, read_bin
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_PACKED = "112 x 112 aligned faces in a pickled .bin"


class BenchmarkConfig(PluginConfig):
    """Settings of a benchmark."""

    file: str | None = None             # file name in the data folder; None: the usual one
    folds: int = Field(10, ge=2)        # folds of the protocol


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that is read from a folder of `.bin` files.

    Args:
        name: Its name in the table.
        file: File name in the data folder.
        num_pairs: How many pairs the official protocol has.
        folds: Number of folds.
    """

    name: str
    file: str
    num_pairs: int
    folds: int

    def path(self, data: Path) -> Path:
        """Return where the file lies in a data folder.

        Raises:
            UserError: It does not.
        """
        path = data / self.file
        if not path.is_file():
            raise UserError(
                f"benchmark {self.name}: {path} does not exist; the pairs as InsightFace packs them were expected"
            )
        return path

    def load(self, data: Path) -> PairSet:
        """Read the pairs; warn when there are not as many as the official protocol has."""
        pairs = read_bin(self.path(data), self.name, self.folds)
        if len(pairs) != self.num_pairs:
            log.warning(
                f"{self.name}: {self.path(data)} has {len(pairs)} pairs, the official protocol {self.num_pairs}; "
                "the result does not compare with published ones"
            )
        return pairs


@register("benchmark", "lfw", Card("Labeled Faces in the Wild, View 2: 6,000 pairs of photos from the news.",
                                   "Huang et al. 2007, UMass Amherst TR 07-49", _PACKED, "research"))
@register("benchmark", "cfp-fp", Card("Celebrities in Frontal-Profile, frontal against profile: 7,000 pairs.",
                                      "Sengupta et al., WACV 2016", _PACKED, "research"))
@register("benchmark", "cfp-ff", Card("Celebrities in Frontal-Profile, frontal against frontal: 7,000 pairs.",
                                      "Sengupta et al., WACV 2016", _PACKED, "research"))
@register("benchmark", "cplfw", Card("Cross-Pose LFW: 6,000 pairs that differ in pose.",
                                     "Zheng and Deng 2018, BUPT TR 18-01", _PACKED, "research"))
@register("benchmark", "agedb-30", Card("AgeDB with 30 years between the photos of a person: 6,000 pairs.",
                                        "Moschoglou et al., CVPR Workshops 2017", _PACKED, "research"))
@register("benchmark", "calfw", Card("Cross-Age LFW: 6,000 pairs that differ in age.",
                                     "Zheng et al. 2017, arXiv:1708.08197", _PACKED, "research"))
def build_benchmark(cfg: BenchmarkConfig) -> Benchmark:
    """Return the benchmark that `cfg.name` names."""
    file = cfg.file or f"{cfg.name.replace('-', '_')}.bin"
    return Benchmark(cfg.name, file, _NUM_PAIRS[cfg.name], cfg.folds)


_NUM_PAIRS = {"lfw": 6000, "cfp-fp": 7000, "cfp-ff": 7000, "cplfw": 6000, "agedb-30": 6000, "calfw": 6000}
