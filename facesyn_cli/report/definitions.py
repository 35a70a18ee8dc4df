"""What every figure of a report means: its name, one sentence, the formula, where it is from, and which way is better.

The page and the dataset card show these texts and no others. The texts are in `meanings.py`; here are the families of
names: percentiles and shares of the nearest training face (`privacy.image_p99`, `privacy.real_above_040`), figures by
group (`fairness.identity.eer`), and distances in Inception's features (`features.frechet`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict

from facesyn_cli.report.metric_definitions import DEFINITIONS, UNVEILING, Definition

_STRANGERS = "among all other real people (what is normal between strangers)"
_WHO = {  # who: its name, whose nearest what of the training set is meant
    "image": ("images", "image of every image of the set"),
    "center": ("identities", "identity, its center, of the center of every identity of the set"),
    "real": ("real people", f"image of every real image {_STRANGERS}"),
    "image-to-center": ("images to identities", "identity, its center, of every image of the set"),
    "center-to-image": ("identities to images", "image of the center of every identity of the set"),
    "real-to-center": ("real people to identities", f"identity, its center, of every real image {_STRANGERS}"),
    "real-center": ("real identities", f"identity, its center, of the center of every real person {_STRANGERS}"),
}
_NEAREST = re.compile(rf"privacy\.({'|'.join(_WHO)})_(?:p(\d+)|(max)|above_(.+))")
_NUMBERED = {"030": "0.30", "040": "0.40", "genuine": "the median of two real photos of one person",
             "fmr1e-4": "the threshold of FMR 0.01 %",
             "fmr1e-5": "the threshold of FMR 0.001 %"}


def definition(name: str) -> Definition:
    """Return the definition of one figure, histogram, curve or list.

    Raises:
        KeyError: No such name.
    """
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    if found := _NEAREST.fullmatch(name):
        return _nearest(*found.groups())
    if name.startswith("features."):
        return _of_features(name)
    if name.startswith("fairness."):
        return _by_group(name)
    raise KeyError(name)


def define(names: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Return the definitions of the given names as JSON values, in order.

    Raises:
        KeyError: One of them has none.
    """
    return {name: asdict(definition(name)) for name in names}


def _by_group(name: str) -> Definition:
    """`fairness.X` is X of one group, `fairness.X_spread` how far the groups lie apart; X has a section or is ours."""
    whole = name.removeprefix("fairness.")
    is_spread = whole.endswith("_spread") and whole not in DEFINITIONS  # some figures are spreads themselves
    inner = whole.removesuffix("_spread") if is_spread else whole
    if "." not in inner and f"fairness.{inner}" not in DEFINITIONS:
        raise KeyError(name)
    base = DEFINITIONS.get(f"fairness.{inner}") or definition(inner)
    if is_spread:
        text = f"{base.text} Here: how far the groups lie apart."
        return Definition(f"{base.title}: spread", text, "largest minus smallest of the groups", base.source, "lower")
    return Definition(base.title, f"{base.text} Here: within one group.", base.formula, base.source, base.better)


def _of_features(name: str) -> Definition:
    """`features.X` is the distance `quality.X` in the features of Inception-v3, over all images."""
    base = DEFINITIONS[f"quality.{name.removeprefix('features.')}"]
    text = base.text.replace("features of the judge", "features of Inception-v3").replace("same judge", "same network")
    where = "" if "Inception" in text else " Here: in the features of Inception-v3."
    return Definition(f"{base.title}, Inception", text + where, base.formula, base.source, base.better)


def _nearest(who: str, digits: str | None, is_max: str | None, above: str | None) -> Definition:
    name, long = _WHO[who]
    better = None if who.startswith("real") else "lower"
    text = f"Nearest training {long}"
    if above is not None:
        limit = _NUMBERED.get(above, above.replace("_", " "))
        return Definition(f"{name.capitalize()} above {limit}",
                          f"{text}: the share with a score of at least {limit}"
                          + (", calibrated on real impostor pairs of the same judge." if "FMR" in limit else "."),
                          "share with max over training faces of the cosine >= t", UNVEILING, better)
    if is_max:
        return Definition(f"{name.capitalize()}, closest", f"{text}: the highest score of all.",
                          "maximum of the nearest scores", UNVEILING, better)
    level = f"{digits[:2]}.{digits[2:]}" if len(digits) > 2 else digits
    return Definition(f"{name.capitalize()}, {level} % below",
                      f"{text}: the score that {level} % of them stay below.",
                      f"percentile {level} of the nearest scores", UNVEILING, better)
