"""Results of an ablation: accuracy of each row over seeds, differences between rows, and the table.

A cell is the mean over seeds and its standard error s / sqrt(n). A row with a base is compared with it seed by seed:
with d_k the difference of the two accuracies under seed k,

    difference = mean(d)        standard error = stdev(d) / sqrt(n)        interval = mean(d) +- t(n - 1) s / sqrt(n)

where t(n - 1) is the two-sided 95 % point of Student's distribution. A row is called better or worse when the interval
does not contain zero. The errors cover everything that depends on the seed, not the choice of the benchmark's pairs.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

CONFIDENCE = 0.95
FIGURES = ("accuracy", "auc", "images", "identities", "evaluations")
Verdict = Literal["better", "worse", "not shown", "one seed"]


@dataclass(frozen=True)
class Difference:
    """Difference of the accuracies of a row and its base, as shares.

    Args:
        to: Name of the base.
        values: The difference under each seed that both have.
    """

    to: str
    values: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for one seed."""
        values = list(self.values.values())
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None for one seed."""
        if self.error is None:
            return None
        half = student_quantile(0.5 + CONFIDENCE / 2, len(self.values) - 1) * self.error
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies above, below or around zero."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "not shown"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "to": self.to, "seeds": {str(seed): value for seed, value in self.values.items()}, "mean": self.mean,
            "error": self.error, "interval": self.interval, "verdict": self.verdict,
        }


@dataclass(frozen=True)
class AblationRow:
    """Results of one row.

    Args:
        name: Its name.
        title: Its name in the table.
        base: Name of the row it is compared with, or None.
        seeds: All seeds, finished or not.
        figures: `FIGURES` under each seed that is finished; accuracy and auc as shares, None where not defined.
        problems: Error message under each seed that failed.
        minutes: Duration under each finished seed. Printed, but not written into the table, whose bytes depend on
            settings and inputs only.
    """

    name: str
    title: str
    base: str | None
    seeds: list[int]
    figures: dict[int, dict[str, float | None]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    minutes: dict[int, float] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`finished`, `1 of 3 seeds`, `not run`, or `failed: ...`."""
        if self.problems:
            seed, problem = next(iter(self.problems.items()))
            others = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"failed: seed {seed}: {problem}{others}"
        if not self.figures:
            return "not run"
        return "finished" if len(self.figures) == len(self.seeds) else f"{len(self.figures)} of {len(self.seeds)} seeds"

    def mean_and_error(self, figure: str) -> tuple[float | None, float | None]:
        """Return the mean over the finished seeds and its standard error; None where they are not defined."""
        values = [found.get(figure) for found in self.figures.values()]
        if not values or any(value is None for value in values):
            return None, None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return statistics.fmean(values), error


@dataclass(frozen=True)
class AblationTable:
    """All rows of a table.

    Args:
        facts: What all rows share; name -> text.
        rows: In the order of the table.
    """

    facts: dict[str, str]
    rows: list[AblationRow]

    def difference(self, row: AblationRow) -> Difference | None:
        """Return the difference to the base; None without a base or a common seed."""
        base = next((other for other in self.rows if other.name == row.base), None)
        if base is None:
            return None
        values = {}
        for seed, found in row.figures.items():
            ours, theirs = found["accuracy"], base.figures.get(seed, {}).get("accuracy")
            if ours is not None and theirs is not None:
                values[seed] = ours - theirs
        return Difference(base.name, values) if values else None

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
        return {**self.facts, "rows": rows}

    def to_csv(self) -> str:
        """Return the rows as comma-separated values, accuracy, AUC and differences as shares in full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [f"{name}{suffix}" for name in FIGURES for suffix in ("", "_error")]
        writer.writerow(
            ["row", "title", "base", "seeds", *columns, "difference", "difference_error", "interval_low",
             "interval_high", "verdict", "status"]
        )
        for row in self.rows:
            values: list[Any] = [value for name in FIGURES for value in row.mean_and_error(name)]
            difference = self.difference(row)
            if difference is None:
                values += [None] * 4 + [""]
            else:
                interval = difference.interval or (None, None)
                values += [difference.mean, difference.error, *interval, difference.verdict]
            cells = ["" if value is None else repr(value) if isinstance(value, float) else value for value in values]
            writer.writerow([row.name, row.title, row.base or "", len(row.figures), *cells, row.status])
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the table in Markdown, with the facts and one line per difference."""
        header, *lines = [[cell.replace("|", "\\|") for cell in line] for line in self._cells(False)]
        rule = ["---"] + ["---:"] * (len(header) - 2) + ["---"]
        table = "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
        facts = "".join(f"- {name}: {text}\n" for name, text in self.facts.items())
        reading = "".join(f"- {line}\n" for line in self._reading())
        return f"{table}\n{facts}" + (f"\nRead seed by seed:\n\n{reading}" if reading else "")

    def to_text(self) -> str:
        """Return the table in aligned columns with durations, and one line per difference."""
        cells = self._cells(True)
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        ends = (0, len(widths) - 1)
        lines = [
            "  ".join(cell.ljust(width) if column in ends else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in cells
        ]
        return "\n".join(lines + [""] + self._reading()).rstrip()

    def times(self) -> dict[str, dict[str, float]]:
        """Return the minutes of every finished seed, by row."""
        return {row.name: {str(seed): minutes for seed, minutes in row.minutes.items()} for row in self.rows}

    def _cells(self, has_minutes: bool) -> list[list[str]]:
        lines = [[
            "training set", "images", "identities", "accuracy %", "AUC %", "change, points", "network evaluations",
            *(["minutes"] if has_minutes else []), "state",
        ]]
        for row in self.rows:
            difference = self.difference(row)
            lines.append([
                row.title, _count(row, "images"), _count(row, "identities"), _percent(row, "accuracy"),
                _percent(row, "auc"), _points(difference) if difference else "", _count(row, "evaluations"),
                *([_minutes(row)] if has_minutes else []), row.status,
            ])
        return lines

    def _reading(self) -> list[str]:
        titles = {row.name: row.title for row in self.rows}
        lines = []
        for row in self.rows:
            difference = self.difference(row)
            if difference is None:
                continue
            verdict = {
                "better": "better", "worse": "worse", "not shown": "no difference shown",
                "one seed": "no error estimate from one seed",
            }[difference.verdict]
            interval = difference.interval
            within = f" (95 % interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})" if interval else ""
            change = f"{_points(difference)} points{within}"
            lines.append(f"{row.title}, against {titles[difference.to]}: {change}: {verdict}")
        return lines


def student_quantile(share: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution for a share from 0.5, by bisection."""
    if not 0.5 <= share < 1 or degrees < 1:
        raise ValueError(f"a share from 0.5 below 1 and degrees of freedom from 1 are expected, got {share}, {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _central_half(middle, degrees) < share else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


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
        return "n/a" if row.figures else ""
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
