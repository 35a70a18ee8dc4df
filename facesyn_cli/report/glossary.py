"""One sentence on every word that the page uses before its figures, for readers new to biometrics.

Words that name a metric are explained by its declaration (`evaluation/metrics.py`), others here. Only words that the
page uses are listed.
"""

from __future__ import annotations

import re

from facesyn_cli.report.blocks import Block, Details, Facts, Text
from facesyn_cli.report.view import ReportView

# Word, its sentence, and the metrics that make the page use it; the word links to the first one that is on the page.
_WORDS = (
    ("Judge and score", "The judge is a recognizer that turns every face into a vector; the score of two faces is the "
     "cosine of their vectors, between -1 and 1, and higher for faces that look more alike to it.",
     ("identity.scores", "identity.genuine_mean", "identity.eer")),
    ("Genuine and impostor pairs", "Genuine pairs are two images with one label, impostor pairs two images with "
     "different labels.", ("identity.scores", "identity.genuine_mean", "identity.eer")),
    ("FMR and FNMR", "At a given threshold, the false match rate is the share of impostor pairs that are accepted, the "
     "false non-match rate the share of genuine pairs that are rejected.",
     ("identity.det", "identity.fmr100", "privacy.image_above_fmr1e-4")),
    ("Leakage", "Images of people from the training set, where new people were asked for: every image is compared with "
     "its nearest training face.", ("privacy.nearest", "privacy.image_above_fmr1e-4", "privacy.copies")),
)
_EXPLAINED = ("identity.consistency", "diversity.near_duplicates_within", "identity.wrong_label_share",
              "benchmark.accuracy", "benchmark.tar", "benchmark.auc")  # beside the headline figures
_SHORT = {"identity.eer": "Equal error rate (EER)", "quality.frechet": "Frechet distance (FD)",
          "features.frechet": "Frechet distance, Inception (FID)", "benchmark.auc": "AUC"}
_ERROR = ("\N{PLUS-MINUS SIGN}", "One standard error: measured on other images of the same kind, a figure stays within "
          "two of them in about 95 % of cases.")


def glossary(view: ReportView) -> list[Block]:
    """Return the words of the page with a sentence each; call it when all sections of the page are made."""
    shown = {found.id for found in view.definitions.values()}
    rows: list[tuple[Text, Text]] = []
    for word, sentence, names in _WORDS:
        if name := next((name for name in names if name in shown), None):
            rows.append((view.term(name, word), sentence))
    for name in (*view.data["headline"], *_EXPLAINED):
        if name in shown:
            term = view.term(name, _SHORT.get(name))
            found = next(one for one in view.definitions.values() if one.id == name)
            rows.append((term, _first_sentence(found.text)))
    return [Details("What the words mean", [Facts([*rows, _ERROR], "glossary")], True)] if rows else []


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z)%]\.) ", text, maxsplit=1)[0]
