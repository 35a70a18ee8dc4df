"""Results of an ablation: rows of whole pipelines under several seeds, their differences, and the table of all rows.

A cell is the mean over seeds and its standard error s / sqrt(n). A row that builds on another one is compared with it
seed by seed: with d_k the difference of the two accuracies under seed k,

    difference = mean(d)        standard error = stdev(d) / sqrt(n)        interval = mean(d) +- t(n - 1) s / sqrt(n)

where t(n - 1) is the two-sided 95 % point of Student's distribution. A step is called better or worse where the
interval leaves zero out. The errors are those of everything that depends on the seed; that the pairs of the benchmark
are a sample too is not in them.

What a table can show: where the true difference is

    (t(n - 1) + t80(n - 1)) stdev(d) / sqrt(n)

with t80 the point below which 80 % of Student's distribution lies, about 80 % of tables of n seeds call the step better
or worse (Cohen 1988, "Statistical Power Analysis", section 2.2; the noncentral distribution is approximated by a
shifted one). Solved for n it is the number of seeds that a wanted difference needs.

A table whose rows stop as soon as they are decided looks at each difference after every seed from the second on. With N
seeds these are N - 1 looks, so each interval is that of 1 - 0.05 / (N - 1) (Bonferroni), and all of them hold the true
difference in 95 % of tables.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from facesyn_cli.artifacts import text_tables
from facesyn_cli.artifacts.text_tables import NOT_AVAILABLE, Block, Column, Table

CONFIDENCE, POWER = 0.95, 0.8
MOST_SEEDS = 1000         # more are not stated
Compared = Literal["accuracy", "auc", "eer"]
FIGURES = ("accuracy", "auc", "eer", "images", "identities", "evaluations")
_TITLES: dict[str, str] = {"accuracy": "accuracy", "auc": "AUC", "eer": "EER"}
Verdict = Literal["better", "worse", "not shown", "one seed"]


@dataclass(frozen=True)
class Difference:
    """How a figure of a row differs from that of the row it builds on, as a share."""

    to: str                   # name of that row
    values: dict[int, float]  # the difference under each seed that both have
    lower_is_better: bool = False
    confidence: float = CONFIDENCE  # of the interval

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None of one seed."""
        return mean_and_error(list(self.values.values()))[1]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean; None of one seed."""
        if self.error is None:
            return None
        half = student_quantile(0.5 + self.confidence / 2, len(self.values) - 1) * self.error
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves zero out, and on which side."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        above, below = ("worse", "better") if self.lower_is_better else ("better", "worse")
        return above if low > 0 else below if high < 0 else "not shown"

    def is_decided(self, wanted: float) -> bool:
        """Return whether the interval leaves zero out, or lies within a difference of interest (a share above 0)."""
        if self.interval is None:
            return False
        low, high = self.interval
        return low > 0 or high < 0 or max(-low, high) < wanted

    @property
    def detectable(self) -> float | None:
        """The true difference that about 80 % of tables of as many seeds would show; None of one seed."""
        return None if self.error is None else _quantiles(len(self.values), self.confidence) * self.error

    def seeds_for(self, wanted: float) -> int | None:
        """Return how many seeds would show a true difference in about 80 % of tables.

        Args:
            wanted: The difference, a share above 0.

        Returns:
            At least 2; None of one seed, or where `MOST_SEEDS` are too few.
        """
        if self.error is None:
            return None
        spread = self.error * math.sqrt(len(self.values))
        counts = range(2, MOST_SEEDS + 1)

        def shows_it(seeds: int) -> bool:
            return _quantiles(seeds, self.confidence) * spread / math.sqrt(seeds) <= wanted

        place = bisect_left(counts, True, key=shows_it)
        return counts[place] if place < len(counts) else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "to": self.to, "seeds": {str(seed): value for seed, value in self.values.items()}, "mean": self.mean,
            "error": self.error, "interval": self.interval, "verdict": self.verdict, "detectable": self.detectable,
        }


@dataclass(frozen=True)
class AblationRow:
    """Results of one row."""

    name: str                                                 # its name
    title: str                                                # its name in the table
    base: str | None                                          # name of the row it builds on, or None
    seeds: list[int]                                          # all seeds of the ablation
    figures: dict[int, dict[str, float | None]] = field(default_factory=dict)  # `FIGURES` under each seed that is
                                                                               # finished; accuracy, auc and eer as
                                                                               # shares, None where not defined
    problems: dict[int, str] = field(default_factory=dict)    # what went wrong, under each seed that failed
    minutes: dict[int, float] = field(default_factory=dict)   # duration of each finished seed; shown on a terminal
                                                              # only, as the bytes of the table depend on settings and
                                                              # inputs alone
    is_decided: bool = False                                  # no further seeds are needed

    @property
    def status(self) -> str:
        """`finished`, `1 of 3 seeds`, `decided, 2 of 3 seeds`, `not run`, or `failed: ...`."""
        if self.problems:
            seed, problem = next(iter(self.problems.items()))
            others = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"failed: seed {seed}: {problem}{others}"
        if not self.figures:
            return "not run"
        if len(self.figures) == len(self.seeds):
            return "finished"
        return f"{'decided, ' if self.is_decided else ''}{len(self.figures)} of {len(self.seeds)} seeds"

    def mean_and_error(self, figure: str) -> tuple[float | None, float | None]:
        """Return the mean over the finished seeds and its standard error; None where they are not defined."""
        return mean_and_error([found.get(figure) for found in self.figures.values()])


@dataclass(frozen=True)
class AblationTable:
    """All rows of a table."""

    facts: dict[str, str]     # facts that all rows share; name -> text
    rows: list[AblationRow]   # in the order of the table
    figure: Compared | None = None  # the figure of differences; None: accuracy where the rows have it, else auc
    wanted: float = 0.01      # the difference for which the seeds are counted, a share
    looks: int = 1            # how often a difference may be looked at before it is stated

    @property
    def confidence(self) -> float:
        """Confidence of each interval."""
        return 1 - (1 - CONFIDENCE) / self.looks

    @property
    def compared(self) -> Compared:
        """The figure of differences."""
        found = [figures for row in self.rows for figures in row.figures.values()]
        has_accuracy = any(figures.get("accuracy") is not None for figures in found)
        return self.figure or ("accuracy" if has_accuracy or not found else "auc")

    def difference(self, row: AblationRow) -> Difference | None:
        """Return the difference to the row it builds on; None where there is none, or no seed of both."""
        base = next((other for other in self.rows if other.name == row.base), None)
        if base is None:
            return None
        values, compared = {}, self.compared
        for seed, found in row.figures.items():
            ours, theirs = found.get(compared), base.figures.get(seed, {}).get(compared)
            if ours is not None and theirs is not None:
                values[seed] = ours - theirs
        return Difference(base.name, values, compared == "eer", self.confidence) if values else None

    def needed(self, names: set[str]) -> set[str]:
        """Return which of some rows more seeds may decide something about: undecided ones and those they build on.

        A row that builds on none, and on which none builds, is always needed.
        """
        rows = [row for row in self.rows if row.name in names]
        bases = {row.base for row in rows}
        found: set[str] = set()
        for row in rows:
            difference = self.difference(row)
            if row.base is None:
                found |= {row.name} - bases
            elif difference is None or not difference.is_decided(self.wanted):
                found |= {row.name, row.base}
        return found & names

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with every seed."""
        rows = []
        for row in self.rows:
            difference = self.difference(row)
            rows.append({
                "name": row.name, "title": row.title, "base": row.base, "status": row.status,
                **{name: dict(zip(("mean", "error"), row.mean_and_error(name), strict=True)) for name in FIGURES},
                "difference": difference and difference.to_json(),
                "seeds": {str(seed): figures for seed, figures in row.figures.items()},
                "problems": {str(seed): problem for seed, problem in row.problems.items()},
            })
        return {**self.facts, "compared": self.compared, "rows": rows}

    def to_csv(self) -> str:
        """Return the rows as comma-separated values, accuracy, AUC and differences as shares in full precision."""
        columns = [f"{name}{suffix}" for name in FIGURES for suffix in ("", "_error")]
        lines: list[list[Any]] = [[
            "row", "title", "base", "seeds", *columns, "compared", "difference", "difference_error", "interval_low",
            "interval_high", "verdict", "detectable", "status",
        ]]
        for row in self.rows:
            change: list[Any] = [None] * 7
            if found := self.difference(row):
                change = [self.compared, found.mean, found.error, *(found.interval or (None, None)), found.verdict,
                          found.detectable]
            lines.append([row.name, row.title, row.base, len(row.figures),
                          *(value for name in FIGURES for value in row.mean_and_error(name)), *change, row.status])
        return text_tables.to_csv(lines)

    def to_markdown(self) -> str:
        """Return the table in Markdown, what all rows share, and how to read it."""
        facts = "".join(f"- {name}: {text}\n" for name, text in self.facts.items())
        reading = "".join(f"- {line}\n" for line in self._reading())
        table = self._table(False).to_markdown()
        return f"{table}\n{facts}" + (f"\nRead seed by seed:\n\n{reading}" if reading else "")

    def blocks(self) -> list[Block]:
        """Return the table with the time that it took, and how to read it."""
        return [self._table(True), *(["\n".join(reading)] if (reading := self._reading()) else [])]

    def times(self) -> dict[str, dict[str, float]]:
        """Return the minutes of every finished seed, by row."""
        return {row.name: {str(seed): minutes for seed, minutes in row.minutes.items()} for row in self.rows}

    def _table(self, has_minutes: bool) -> Table:
        change = "change" if self.compared == "accuracy" else f"change in {_TITLES[self.compared]}"
        columns = [
            Column("training set", is_text=True), Column("images", rank=2), Column("identities", rank=2),
            Column("accuracy %"), Column("AUC %", rank=1), Column("EER %", rank=2), Column(f"{change}, points"),
            Column("network evaluations", rank=4), *([Column("minutes", rank=3)] if has_minutes else []),
            Column("state", is_text=True, rank=0 if any(row.problems for row in self.rows) else 1),
        ]
        lines = []
        for row in self.rows:
            difference = self.difference(row)
            lines.append([
                row.title, _count(row, "images"), _count(row, "identities"),
                *(_percent(row, figure) for figure in ("accuracy", "auc", "eer")),
                _points(difference) if difference else "", _count(row, "evaluations"),
                *([_minutes(row)] if has_minutes else []), row.status,
            ])
        return Table(columns, lines)

    def _reading(self) -> list[str]:
        titles = {row.name: row.title for row in self.rows}
        lines = []
        for row in self.rows:
            difference = self.difference(row)
            if difference is None:
                continue
            words = {
                "better": "better", "worse": "worse", "not shown": "no difference shown",
                "one seed": "no error is known from one seed",
            }[difference.verdict]
            interval = difference.interval
            within = (f" ({100 * self.confidence:.4g} % interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"
                      if interval else "")
            lines.append(f"{row.title}, against {titles[difference.to]}: {_points(difference)} points{within}: {words}"
                         f"{self._power(difference)}")
        return lines

    def _power(self, difference: Difference) -> str:
        """Return what so many seeds could show, and how many the wanted difference needs; empty of one seed."""
        if difference.detectable is None:
            return ""
        count, needed = len(difference.values), difference.seeds_for(self.wanted)
        seeds = f"more than {MOST_SEEDS:,}" if needed is None else f"{needed:,}"
        return (f"; {count} seeds show a difference of {100 * difference.detectable:.2f} points in 80 % of tables, "
                f"{100 * self.wanted:.2f} points need {seeds} seeds")


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean of one value per seed and its standard error; None where they are not defined."""
    if not values or any(value is None for value in values):
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def student_quantile(share: float, degrees: int) -> float:
    """Return the point below which a share of Student's t distribution lies; from 0.5, by bisection."""
    if not 0.5 <= share < 1 or degrees < 1:
        raise ValueError(f"a share from 0.5 below 1 and degrees of freedom from 1 are expected, got {share}, {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _central_half(middle, degrees) < share else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _quantiles(seeds: int, confidence: float) -> float:
    """Return the true difference that a number of seeds shows with `POWER`, in standard errors of the mean."""
    return sum(student_quantile(share, seeds - 1) for share in (0.5 + confidence / 2, POWER))


def _central_half(angle: float, degrees: int) -> float:
    """Return P(0 < t < sqrt(degrees) tan(angle)): half the sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees % 2 == 0:
        term, total = 1.0, 1.0
        for k in range(1, degrees // 2):
            term *= cosine**2 * (2 * k - 1) / (2 * k)
            total += term
        return sine * total / 2
    term, total = cosine, cosine if degrees > 1 else 0.0
    for k in range(1, (degrees - 1) // 2):
        term *= cosine**2 * 2 * k / (2 * k + 1)
        total += term
    return (angle + sine * total) / math.pi


def _percent(row: AblationRow, figure: str) -> str:
    mean, error = row.mean_and_error(figure)
    if mean is None:
        return NOT_AVAILABLE if row.figures else ""
    return f"{100 * mean:.2f}" + ("" if error is None else f" +- {100 * error:.2f}")


def _points(difference: Difference) -> str:
    return f"{100 * difference.mean:+.2f}" + ("" if difference.error is None else f" +- {100 * difference.error:.2f}")


def _count(row: AblationRow, figure: str) -> str:
    mean, _ = row.mean_and_error(figure)
    return "" if mean is None else f"{mean:,.0f}"


def _minutes(row: AblationRow) -> str:
    if not row.minutes:
        return ""
    mean = statistics.fmean(row.minutes.values())
    return f"{mean:.1f}" if mean >= 0.05 else f"{mean:.2f}"
