"""Verification benchmarks, in the forms in which they are distributed; one folder, `data`, holds their files.

    lfw, cfp-fp, cfp-ff, cplfw, agedb-30, calfw   `<name>.bin` as InsightFace packs them; CFP also as its own
                                                  protocol folders; the others as a pair list, by `file`
    rfw                                           four .bin, one a group; mean and spread over the groups
    ijb-b, ijb-c                                  templates: the two meta files and aligned crops
    tinyface                                      gallery, probes and distractors
    folder                                        any folder or zip of identities: all pairs, see `all_pairs`

To add a benchmark of pairs, declare it with `_declare_pairs` and name it in the table of `plugins/builtin.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from pydantic import Field

from facesyn_cli.artifacts.digest import file_digest, json_digest, path_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.all_pairs import FolderPairs
from facesyn_cli.evaluation.cfp import has_cfp, read_cfp
from facesyn_cli.evaluation.identification import FOLDERS, read_identification
from facesyn_cli.evaluation.pairs import PairSet, is_bin, read_bin, read_pairs
from facesyn_cli.evaluation.protocol import EvaluationSet
from facesyn_cli.evaluation.templates import read_templates
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_PACKED = "112 x 112 aligned faces in a pickled .bin"
_CROPS = "112 x 112 aligned faces in a folder or zip"


@dataclass(frozen=True)
class Part:
    """What one row of the table is computed from."""

    name: str                          # its name in the table
    parents: dict[str, Parent]         # the files it comes from
    load: Callable[[], EvaluationSet]  # reads them
    group: str | None = None           # benchmark of which this is one group; None: of none
    all_pairs_of: Parent | None = None  # images of which all pairs are compared; None: the pairs are a list


class Benchmark(Protocol):
    """What a `benchmark` plugin builds."""

    def parts(self, data: Path | None, images: Path | None) -> list[Part]:
        """Return what to evaluate, one part for each row of the table; this finds the files, `Part.load` reads them.

        Args:
            data: Folder of the benchmark files; None only for benchmarks whose attribute `needs_data` is False.
            images: The images that lists name; None: they are in the data folder.

        Raises:
            UserError: A file is not there.
        """


class BenchmarkConfig(PluginConfig):
    """Settings of a benchmark of pairs."""

    file: str | None = Field(None, description=".bin or pair list in the data folder; None: the usual .bin")
    folds: int = Field(10, ge=2, description="folds of a .bin; lists and protocol folders have their own")


@dataclass(frozen=True)
class PairBenchmark:
    """Pairs with a k-fold protocol."""

    name: str                               # its name in the table
    file: str                               # file name in the data folder
    num_pairs: int                          # how many pairs the official protocol has
    folds: int                              # number of folds of a .bin
    cfp: Literal["FF", "FP"] | None = None  # which part of CFP this is, where it is one

    def parts(self, data: Path, images: Path | None) -> list[Part]:
        """Return what to evaluate; see `Benchmark.parts`."""
        path = data / self.file
        if path.is_file() and is_bin(path):
            parents = {f"benchmark {self.name}": Parent(str(path), file_digest(path))}
            return [Part(self.name, parents, lambda: self._checked(read_bin(path, self.name, self.folds), path))]
        is_cfp = self.cfp is not None and not path.exists() and has_cfp(data, self.cfp)
        own = ", or CFP's own folders Protocol and Data," if self.cfp else ""
        _require(is_cfp or path.is_file(), self.name, path, f"the pairs as InsightFace packs them{own} were")
        crops = ImageSet.open(images or (data / "Data" / "Images" if is_cfp else data))
        protocol = data / "Protocol" if is_cfp else path
        parents = {
            f"benchmark {self.name}": Parent(str(protocol), path_digest(protocol)),
            f"images of {self.name}": crops.parent(),
        }

        def load() -> PairSet:
            pairs = read_cfp(data, self.cfp, crops, self.name) if is_cfp else read_pairs(path, crops, self.name)
            return self._checked(pairs, protocol)

        return [Part(self.name, parents, load)]

    def _checked(self, pairs: PairSet, path: Path) -> PairSet:
        """Warn when there are not as many pairs as the official protocol has."""
        if len(pairs) != self.num_pairs:
            log.warning(
                f"{self.name}: {path} has {len(pairs)} pairs, the official protocol {self.num_pairs}; "
                "the result does not compare with published ones"
            )
        return pairs


def _declare_pairs(name: str, num_pairs: int, about: str, paper: str, cfp: Literal["FF", "FP"] | None = None) -> None:
    """Declare a benchmark of pairs: its name, the number of pairs of the official protocol, and its card."""

    def build(cfg: BenchmarkConfig) -> PairBenchmark:
        return PairBenchmark(name, cfg.file or f"{name.replace('-', '_')}.bin", num_pairs, cfg.folds, cfp)

    build.__qualname__ = f"build_{name}"
    register("benchmark", name, Card(about, paper, _PACKED, "research"))(build)


_declare_pairs("lfw", 6000, "Labeled Faces in the Wild, View 2: 6,000 pairs of photos from the news.",
               "Huang et al. 2007, UMass Amherst TR 07-49")
_declare_pairs("cfp-fp", 7000, "Celebrities in Frontal-Profile, frontal against profile: 7,000 pairs.",
               "Sengupta et al., WACV 2016", "FP")
_declare_pairs("cfp-ff", 7000, "Celebrities in Frontal-Profile, frontal against frontal: 7,000 pairs.",
               "Sengupta et al., WACV 2016", "FF")
_declare_pairs("cplfw", 6000, "Cross-Pose LFW: 6,000 pairs that differ in pose.", "Zheng and Deng 2018, BUPT TR 18-01")
_declare_pairs("agedb-30", 6000, "AgeDB with 30 years between the photos of a person: 6,000 pairs.",
               "Moschoglou et al., CVPR Workshops 2017")
_declare_pairs("calfw", 6000, "Cross-Age LFW: 6,000 pairs that differ in age.", "Zheng et al. 2017, arXiv:1708.08197")


class RfwConfig(PluginConfig):
    """Settings of `rfw`."""

    folds: int = Field(10, ge=2, description="folds of each group")


@dataclass(frozen=True)
class Rfw:
    """Four groups, each with the protocol of LFW; the table adds mean and spread (ddof 1) over the groups.

    # Differs from TFace: its thresholds for RFW end at a squared distance of 0.999, where pairs of one person
    # may well be further apart; here they are those of all other benchmarks, up to 3.99.
    """

    folds: int                # number of folds of each group
    groups = ("African", "Asian", "Caucasian", "Indian")

    def parts(self, data: Path, images: Path | None) -> list[Part]:
        """Return the four groups; see `Benchmark.parts`."""
        parts = []
        for group in self.groups:
            path, name = data / f"{group}_test.bin", f"rfw-{group.lower()}"
            expected = f"the four groups {', '.join(self.groups)} as `<group>_test.bin` were"
            _require(path.is_file(), "rfw", path, expected)
            parents = {f"benchmark {name}": Parent(str(path), file_digest(path))}
            parts.append(Part(name, parents, lambda path=path, name=name: read_bin(path, name, self.folds), "rfw"))
        return parts


@register("benchmark", "rfw", Card("Racial Faces in the Wild: four groups, mean and standard deviation over them.",
                                   "Wang et al., ICCV 2019, arXiv:1812.00194", _PACKED, "research"))
def build_rfw(cfg: RfwConfig) -> Rfw:
    """Build the benchmark."""
    return Rfw(cfg.folds)


class TemplateConfig(PluginConfig):
    """Settings of `ijb-b` and `ijb-c`."""

    flip: bool = Field(False, description="average the embeddings of image and mirror image; published: no")
    points: Literal["nearest", "exact"] = Field(
        "nearest", description="TAR at the nearest FAR (published), or at a FAR of at most f"
    )


@dataclass(frozen=True)
class TemplateBenchmark:
    """Templates against templates."""

    cfg: TemplateConfig

    def parts(self, data: Path, images: Path | None) -> list[Part]:
        """Return the one row; see `Benchmark.parts`."""
        cfg, prefix = self.cfg, self.cfg.name.replace("-", "")  # ijbb
        files = [data / f"{prefix}_{name}.txt" for name in ("face_tid_mid", "template_pair_label")]
        for path in files:
            _require(path.is_file(), cfg.name, path, f"{files[0].name} and {files[1].name} were")
        crops = ImageSet.open(images or data)
        parents = {
            f"benchmark {cfg.name}": Parent(str(data), json_digest([file_digest(path) for path in files])),
            f"images of {cfg.name}": crops.parent(),
        }
        return [Part(cfg.name, parents, lambda: read_templates(*files, crops, cfg.name, cfg.flip, cfg.points))]


@register("benchmark", "ijb-b", Card("IARPA Janus Benchmark B, templates 1:1: TAR at FAR 1e-6 to 1e-1.",
                                     "Whitelam et al., CVPR Workshops 2017", _CROPS, "research"))
@register("benchmark", "ijb-c", Card("IARPA Janus Benchmark C, templates 1:1: TAR at FAR 1e-6 to 1e-1.",
                                     "Maze et al., ICB 2018", _CROPS, "research"))
def build_templates(cfg: TemplateConfig) -> TemplateBenchmark:
    """Build the benchmark that `cfg.name` names."""
    return TemplateBenchmark(cfg)


class TinyfaceConfig(PluginConfig):
    """Settings of `tinyface`."""

    file: str = Field("tinyface", description="folder in the data folder that holds gallery, probe and distractors")
    flip: bool = Field(True, description="average the embeddings of image and mirror image")


@dataclass(frozen=True)
class Tinyface:
    """Identification among a gallery."""

    cfg: TinyfaceConfig

    def parts(self, data: Path, images: Path | None) -> list[Part]:
        """Return the one row; see `Benchmark.parts`."""
        root, name, flip = data / self.cfg.file, self.cfg.name, self.cfg.flip
        _require(root.is_dir(), name, root, f"a folder with {', '.join(FOLDERS)} was")
        digest = json_digest([ImageSet.open(root / f).digest for f in FOLDERS if (root / f).is_dir()])
        parents = {f"benchmark {name}": Parent(str(root), digest)}
        return [Part(name, parents, lambda: read_identification(root, name, flip))]


@register("benchmark", "tinyface", Card("Identification of small faces: rank-1, -5 and -20 among a gallery.",
                                        "Cheng et al., ACCV 2018", _CROPS, "research"))
def build_tinyface(cfg: TinyfaceConfig) -> Tinyface:
    """Build the benchmark."""
    return Tinyface(cfg)


class FolderConfig(PluginConfig):
    """Settings of `folder`."""

    path: Path | None = Field(
        None, description="folder or zip, one folder per identity; None: the `images` of the command, else its `data`"
    )


@dataclass(frozen=True)
class Folder:
    """All pairs of the images of a folder."""

    path: Path | None         # the folder; None: that of the command

    needs_data: ClassVar[bool] = False

    def parts(self, data: Path | None, images: Path | None) -> list[Part]:
        """Return the one row; see `Benchmark.parts`."""
        path = self.path or images or data
        if path is None:
            raise UserError("benchmark folder: give the folder or zip of identities with --images FOLDER")
        found = ImageSet.open(path)
        name = path.resolve().name if path.is_dir() else path.stem
        pairs, parent = FolderPairs(name, found), found.parent()
        return [Part(name, {f"images of {name}": parent}, lambda: pairs, all_pairs_of=parent)]


@register("benchmark", "folder", Card("Any folder or zip of identities: all pairs, TAR at FAR, EER and AUC with 95 % "
                                      "intervals, rank-1 and -5.", input=_CROPS))
def build_folder(cfg: FolderConfig) -> Folder:
    """Build the benchmark."""
    return Folder(cfg.path)


def _require(exists: bool, name: str, path: Path, expected: str) -> None:
    if not exists:
        raise UserError(f"benchmark {name}: {path} does not exist; {expected} expected")
