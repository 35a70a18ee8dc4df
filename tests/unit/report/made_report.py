"""A small made-up `report.json` with everything in it, and pictures for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from facesyn_cli.data.pixels import encode_png
from facesyn_cli.report.contents import definitions_of

HOSTILE = "</script><script>alert(1)</script>\" onload='x' `|*_[a](javascript:1) \u202egnp.\udcff"


def figure(name: str, value: float | None, unit: str = "", **more: Any) -> dict[str, Any]:
    rest = {"n": 40, "of": "images", "exact": True, "error": None, "error_from": None, "threshold": None, "group": None}
    return {"id": name, "value": value, "unit": unit, **rest, **more}


def section(**parts: Any) -> dict[str, Any]:
    return {"figures": [], "histograms": [], "curves": [], "lists": [], "notes": [], "verdict": None, **parts}


def one_set(name: str, identity: str) -> dict[str, Any]:
    parents = {"ldm": {"path": "runs/2-ldm", "digest": "sha256:aa"},
               "autoencoder": {"path": "weights/ffhq256/decoder.pt", "digest": "sha256:bb"},
               "contexts": {"path": f"somewhere/{HOSTILE}", "digest": "sha256:cc"}}
    header = {"kind": "ImageSet", "command": "sample", "package_version": "0.3.0", "counts": {}, "extra": {},
              "config": {"identity": {"scheduler": {"name": "ddim", "steps": 50}, "seed": 7}}, "parents": parents}
    chain = [{"folder": "2-ldm", "kind": "Weights", "command": "train-ldm", "package_version": "0.3.0",
              "config": {"identity": {"steps": 9}}, "digest": "sha256:aa", "counts": {}, "extra": {},
              "parents": {"images": {"path": "private/home/casia112", "digest": "sha256:dd"}}}]
    return {"name": name, "path": f"private/{name}", "digest": "sha256:ee", "images": 40, "identities": 4,
            "of_images": 41, "origins": {"generated": 41},
            "unreadable": 1, "per_identity": {"min": 1, "median": 10.0, "max": 20}, "header": header, "chain": chain,
            "conditioned_on": "sha256:ff", "random": [f"{identity}/{i}" for i in range(8)],
            "strips": [{"identity": identity, "keys": [f"{identity}/0"], "context_face": True}]}


def report(num_sets: int = 2, identity: str = HOSTILE) -> dict[str, Any]:
    """Return a report of `num_sets` sets in which `identity` is an identity, and part of names and labels."""
    names = [f"set {i} {identity}" for i in range(num_sets)]

    def pair(name: str) -> dict[str, Any]:
        images = [{"set": name, "key": f"{identity}/0"}, {"set": "reference", "key": "Ann/2"}]
        return {"images": images, "identities": [identity, "Ann"], "score": 0.93, "likeness": 0.9, "label": "copy"}

    def sections(name: str, error: float) -> dict[str, Any]:
        scores = {"id": "identity.scores", "x": "cosine", "edges": [i / 10 for i in range(-10, 11)], "exact": True,
                  "series": [{"name": "genuine", "counts": [0] * 15 + [1, 2, 3, 2, 0], "total": 8},
                             {"name": "impostor", "counts": [0] * 8 + [3, 5, 3] + [0] * 9, "total": 11}],
                  "marks": [{"x": 0.31, "label": f"FMR 1 % {identity}"}]}
        det = {"id": "identity.det", "x": "FMR", "y": "FNMR", "x_scale": "log", "y_scale": "log", "marks": [],
               "series": [{"name": "scores", "x": [1e-4, 1e-2, 0.0, 1.0], "y": [0.5, 0.1, 0.05, 1e-3]}]}
        privacy = [figure(f"privacy.{who}_{what}", 0.4, "cosine") for who in ("image", "center", "real")
                   for what in ("p50", "max", "above_fmr1e-4")]
        groups = [figure("fairness.identity.eer", 0.1, "share", group=f"sex={identity}"),
                  figure("fairness.identity.eer", 0.2, "share", group="sex=other"),
                  figure("fairness.identity.eer_spread", 0.1, "share", group="sex")]
        best = {"images": [{"set": name, "key": f"{identity}/1"}], "identities": [identity], "score": 0.9,
                "likeness": None, "label": ""}
        return {
            "identity": section(figures=[figure("identity.eer", error, "share", error=0.004, threshold=0.31)],
                                histograms=[scores], curves=[det], notes=[f"Note on {identity}."],
                                lists=[{"id": "identity.best", "rows": [best]}]),
            "diversity": section(figures=[figure("diversity.vendi", None)]),
            "quality": section(figures=[figure("quality.frechet", 0.1677, error=0.0027)]),
            "privacy": section(figures=[*privacy, figure("privacy.copies", 1.0, "count")],
                               lists=[{"id": "privacy.copies", "rows": [pair(name)]}],
                               verdict={"level": "fault", "text": f"Copies of {identity}.", "limits": "One judge."}),
            "fairness": section(figures=groups),
        }

    def of_network(name: str, value: float) -> dict[str, Any]:
        row = {"images": [{"set": name, "key": f"{identity}/1"}], "identities": [identity], "score": None,
               "likeness": None, "label": "mean distance 0.1"}
        return section(figures=[figure("diversity.lpips", value, error=0.01)], notes=[f"Network note on {identity}."],
                       lists=[{"id": "diversity.lpips_least", "rows": [row]}])

    groups = section(figures=[
        figure("fairness.benchmark_accuracy", 0.8, "share", group=f"rfw={identity}", error=0.01),
        figure("fairness.benchmark_accuracy", 0.7, "share", group="rfw=other"),
        figure("fairness.benchmark_mean", 0.75, "share", group="rfw"),
        figure("fairness.benchmark_std", 0.0707, "share", group="rfw"),
        figure("fairness.benchmark_accuracy_spread", 0.1, "share", group="rfw"),
    ])
    data = {
        "schema": 1, "facesyn": "0.3.0", "title": ", ".join(names), "command": "report", "seed": 0,
        "sets": [one_set(name, identity) for name in names], "reference": one_set("reference", "Ann"),
        "judges": [{"name": f"judge {identity}", "backbone": "ir-50", "digest": "sha256:11", "input_size": 112,
                    "flip": True}],
        "headline": ["identity.eer", "quality.frechet", "privacy.copies"],
        "results": [{"set": name, "judge": f"judge {identity}", "sections": sections(name, 0.01 + 0.05 * i)}
                    for i, name in enumerate(names)],
        "networks": [{"name": "lpips-alex", "digest": "sha256:33", "section": "diversity", "about": "At 112 px.",
                      "sets": {name: of_network(name, 0.2 + 0.1 * i) for i, name in enumerate(names)}}],
        "pixels": {name: section(figures=[figure("pixels.brightness", 114.0)]) for name in names},
        "comparison": [{"judge": f"judge {identity}", "id": "identity.eer", "first": names[0], "other": names[-1],
                        "values": [0.01, 0.06], "difference": 0.05, "error": 0.006, "clear": True},
                       {"judge": "lpips-alex", "id": "diversity.lpips", "first": names[0], "other": names[-1],
                        "values": [0.2, 0.3], "difference": 0.1, "error": 0.014, "clear": True}][: 2 * num_sets - 2],
        "training": {"ldm": {"path": "2-ldm", "lines": [{"step": i, "loss": 1 / i} for i in range(1, 30)]}, "fr": None},
        "benchmark": {"path": "8-table", "backbone": "ir-50", "weights": "sha256:22", "flip": True,
                      "average_accuracy": None, "groups": {"rfw": {"accuracy": 0.75, "accuracy_std": 0.0707}},
                      "fairness": groups,
                      "rows": [{"benchmark": f"lfw {identity}", "pairs": 6000, "accuracy": 0.9, "accuracy_std": 0.01,
                                "tar": {"1e-03": 0.7, "1e-04": None}, "eer": 0.1, "auc": 0.95, "rank": {"5": 0.66},
                                "interval": {}, "problem": None}]},
        "summary": [{"level": "fault", "set": names[0], "judge": f"judge {identity}", "section": "privacy",
                     "text": f"Copies of {identity}.", "figures": ["privacy.copies"], "lists": ["privacy.copies"]}],
    }
    return data | {"definitions": definitions_of(data)}


class MadePictures:
    """Noise for every key, which compresses worst; nothing for keys in `missing`, damaged bytes for those in `torn`."""

    def __init__(self, missing: tuple[str, ...] = (), torn: tuple[str, ...] = ()) -> None:
        self._missing, self._torn = missing, torn
        generator = np.random.default_rng(0)
        self._png = encode_png(generator.integers(0, 256, (112, 112, 3), dtype=np.uint8))

    def encoded(self, set_name: str, key: str) -> bytes | None:
        if key in self._missing:
            return None
        return self._png[:200] if key in self._torn else self._png

    def context_face(self, set_name: str, identity: str) -> bytes | None:
        return self._png
