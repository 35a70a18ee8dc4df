"""Verdicts on the headline figures in plain words, and the commands that change a figure.

A figure is called good or bad only where its definition says so (a copy is a copy) or where the same figure of the
reference tells: the rule is that of the comparison of sets, a difference above two of its standard errors. Everything
else has no published threshold, and the card says so.

Names of folders and files stand in the commands without the folders above them, as everywhere on the page, which may be
published.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from facesyn_cli.artifacts.work import FOLDERS
from facesyn_cli.evaluation.all_metrics import metric
from facesyn_cli.report.blocks import Advice, Appraisal
from facesyn_cli.report.figure_text import Figure, value_text
from facesyn_cli.report.provenance import last_part, settings_of
from facesyn_cli.report.view import ReportView

_CLEAR = 2                  # standard errors, as in the comparison of sets
_CLEAR_OF_STRANGERS = 3     # as in `evaluation/leakage.py`

# Figure -> the same figure of the reference.
_REFERENCE = {
    "identity.eer": "identity.real_eer", "identity.fdr": "identity.real_fdr",
    "identity.unique_share": "identity.real_unique_share", "diversity.perceptual": "diversity.perceptual_real",
    "diversity.lpips": "diversity.lpips_real", "privacy.image_above_fmr1e-4": "privacy.real_above_fmr1e-4",
}
_FLOORS = {"quality.frechet": "quality.frechet_floor", "features.frechet": "features.frechet_floor"}
_PUBLISHED = {
    "identity.unique_share": "DCFace reports 92.4 % for its own images, with its own judge.",
    "identity.consistent_share": "DCFace reports 90.35 % for its own images, with its own judge.",
}
_GOOD, _LOOK, _PROBLEM = ("good", "Good"), ("caution", "Look at this"), ("bad", "Problem")
_OPEN = ("unknown", "No threshold")


@dataclass(frozen=True)
class _Places:
    """The names of a set and its run in commands.

    Args:
        images: The set.
        judge: Weights of the first judge.
        work: Option that names the run; None: the set is no run's.
        networks: Options that name the run and its networks, to sample again; None where they are not known.
        scale: Scale of guidance in the run; 1 is none.
        is_conditioned: The judge is the recognizer behind the contexts.
        gallery: Address of the gallery; None: there is none.
    """

    images: str
    judge: str
    work: str | None
    networks: str | None
    scale: float
    is_conditioned: bool
    gallery: str | None

    @property
    def independent_judge(self) -> str:
        """Weights of a judge that is not the recognizer behind the contexts."""
        return "ANOTHER_RECOGNIZER" if self.is_conditioned else self.judge


def appraise(view: ReportView, figure: Figure) -> Appraisal:
    """Return the verdict on a headline figure of the first set."""
    name, value = figure["id"], figure["value"]
    if name == "privacy.copies":
        tone, text = (_GOOD, "No copy of a training image was found.") if not value else (
            _PROBLEM, "By definition, none of these images is a new person.")
    elif (other := _figure(view, _REFERENCE.get(name))) is not None:
        tone, text = _against_reference(figure, other)
    elif (floor := _figure(view, _FLOORS.get(name))) is not None:
        tone = _OPEN
        text = f"There is no published threshold. Two halves of the reference are {value_text(floor)} apart: about " \
               "that is the value of a perfect set."
    else:
        tone, text = _OPEN, f"There is no published threshold. {_PUBLISHED.get(name) or _compare_with(view, name)}"
    return Appraisal(*tone, text, None if tone is _GOOD else advise(view, name))


def advise(view: ReportView, name: str) -> Advice | None:
    """Return what changes a figure of the first set, by the figure's id; None where no command does."""
    make = _ADVICE.get(name)
    return make(_places(view)) if make else None


def measure_more(view: ReportView, section: str) -> Advice | None:
    """Return how to measure a section that the report leaves out for want of an input."""
    places = _places(view)
    option = {"quality": "--reference REAL_FACES", "privacy": "--reference TRAINING_FACES",
              "fairness": "--groups GROUPS.csv"}.get(section)
    if option is None:
        return None
    what = places.work or places.images
    return Advice("Measure it:", [f"facesyn report {what} --judge {places.judge} {option} --out report-2"])


def _against_reference(figure: Figure, other: Figure) -> tuple[tuple[str, str], str]:
    """Return the verdict on a figure by the same figure of the reference."""
    found = metric(figure["id"])
    is_strangers = figure["id"].startswith("privacy.")
    limit = _CLEAR_OF_STRANGERS if is_strangers else _CLEAR
    than = "more than among real strangers" if is_strangers else "worse than the reference"
    worse = (figure["value"] - other["value"]) * (-1 if found.better == "higher" else 1)
    error = math.hypot(figure["error"] or 0.0, other["error"] or 0.0)
    if worse > limit * error and worse > 0:
        return _LOOK, f"Clearly {than}: {value_text(other)}."
    return _GOOD, f"No {than}: {value_text(other)}."


def _compare_with(view: ReportView, name: str) -> str:
    """Return what to compare a figure with that has neither a threshold nor a value of the reference."""
    if name in _REFERENCE and not view.data["reference"]:
        return "Give real images with --reference to compare with them."
    if name == "diversity.vendi":
        return f"It is at most the number of images, {view.data['sets'][0]['images']:,}: compare sets of equal size."
    return "Compare it with that of another set, by the same judge."


def _figure(view: ReportView, name: str | None) -> Figure | None:
    """Return a figure of the first set that has a value."""
    judges = [view.judge, *(network["name"] for network in view.data["networks"])]
    found = (view.figure(view.first, judge, name) for judge in judges) if name else ()
    return next((figure for figure in found if figure and figure["value"] is not None), None)


def _places(view: ReportView) -> _Places:
    one, judge = view.data["sets"][0], view.data["judges"][0]
    path = one["path"].replace("\\", "/").rstrip("/")
    work = f"--work {_name(path.rpartition('/')[0] or '.')}" if one["chain"] else None
    sampled = next((stage for stage in one["chain"] if stage["command"] == "sample"), None)
    networks, scale = None, 1.0
    if sampled is not None:
        is_own = any(stage["folder"] == FOLDERS["ldm"] for stage in one["chain"])
        if is_own or _is_of_starter(sampled):
            networks = f"{work}{'' if is_own else ' --starter packaged'}"
        scale = settings_of(sampled).get("guidance.scale", scale)
    return _Places(_name(path), _name(judge.get("path") or judge["name"]), work, networks, scale,
                   one["conditioned_on"] == judge["digest"], view.gallery)


def _is_of_starter(sampled: dict[str, Any]) -> bool:
    """Return whether images were sampled with the networks of the packaged starter."""
    return sampled["parents"].get("ldm", {}).get("path", "").endswith("facesyn_cli/starter/ldm")


def _name(path: str) -> str:
    return shlex.quote(last_part(path))


def _guide_more(places: _Places) -> Advice | None:
    if places.networks is None:
        return _select(places)
    scale = f"{places.scale + 1:g}"
    return Advice(f"More guidance makes people more distinct, at the cost of variety; it was {places.scale:g}:",
                  [f"facesyn sample {places.networks} --out guided guidance.name=cfg guidance.scale={scale}"])


def _select(places: _Places) -> Advice:
    return Advice("Drop identities that the judge takes for one person:", _select_commands(places, "drop"))


def _merge(places: _Places) -> Advice:
    return Advice("Join labels that show one person:", _select_commands(places, "merge"))


def _select_commands(places: _Places, collisions: str) -> Sequence[str]:
    return [f"facesyn embed --images {places.images} --weights {places.judge} --out judged",
            f"facesyn select --in {places.images} --embeddings judged --out selected --collisions {collisions}"]


def _draw_again(places: _Places) -> Advice:
    if places.networks is None:
        return _look(places, "Look at the images with a doubtful label", "#doubts=1")
    return Advice("Draw images again that are unlike their identity:",
                  [f"facesyn sample {places.networks} --out consistent filter.name=consistency "
                   f"filter.judge={places.independent_judge}"])


def _vary_more(places: _Places) -> Advice | None:
    if places.networks is None:
        return None
    return Advice("Vary the context from image to image, at the cost of consistency:",
                  [f"facesyn sample {places.networks} --out varied variation=idperturb"])


def _study(places: _Places) -> Advice | None:
    if places.networks is None:
        return None
    return Advice("Compare schedulers, steps and guidance on a few identities:",
                  [f"facesyn study {places.networks} --judge {places.independent_judge} --methods cfg --out study"])


def _avoid_known(places: _Places) -> Advice:
    if places.networks is None:
        return _look(places, "Look at the images nearest to training faces", "#sort=training")
    return Advice("Make contexts that are near to no training person, then sample from them:",
                  [f"facesyn gen-contexts {places.networks} --out novel-contexts 'filters=[unique, novel]'",
                   f"facesyn sample {places.networks} --contexts novel-contexts --out novel"])


def _see_identities(places: _Places) -> Advice:
    return _look(places, "Look at these identities", "")


def _look(places: _Places, what: str, place: str) -> Advice:
    if places.gallery is None:
        return Advice(f"{what}, and take wrong ones out of the set.")
    return Advice(f"{what} in the gallery, and take wrong ones out of the set.", link=places.gallery + place)


_ADVICE: dict[str, Callable[[_Places], Advice | None]] = {
    "identity.eer": _guide_more, "identity.fdr": _guide_more, "identity.unique_share": _select,
    "identity.consistent_share": _draw_again, "identity.wrong_label_share": _draw_again,
    "identity.mixed_identities": _see_identities, "identity.split_identities": _merge,
    "diversity.vendi": _vary_more, "diversity.d_intra": _vary_more, "diversity.perceptual": _vary_more,
    "diversity.lpips": _vary_more, "diversity.near_duplicates_within": _vary_more,
    "diversity.near_duplicates_between": _see_identities, "quality.frechet": _study, "features.frechet": _study,
    "privacy.copies": _avoid_known, "privacy.image_above_fmr1e-4": _avoid_known,
    "privacy.image_above_fmr1e-5": _avoid_known,
}


def advice_on(view: ReportView, finding: dict[str, Any]) -> Advice | None:
    """Return what to do about a finding of the first set: the advice on its first figure."""
    if finding["set"] != view.first or finding["level"] == "good":
        return None
    return next((found for name in finding["figures"] if (found := advise(view, name))), None)
