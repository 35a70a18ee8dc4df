"""Figures as text: values with their units, to the digit that their standard errors support."""

from __future__ import annotations

import math
from typing import Any

Figure = dict[str, Any]
MISSING = "\N{EN DASH}"
_TINY = 1e-5  # errors below are written with an exponent
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def value_text(figure: Figure | None) -> str:
    """Return the value of a figure with its unit, to the digit that its standard error supports."""
    if figure is None or figure["value"] is None:
        return MISSING
    value, unit, error = figure["value"], figure["unit"], figure.get("error")
    if error and math.isfinite(error):
        return _fixed(value, unit, error)
    if unit == "share":
        return percent(value)
    if unit == "cosine":
        return f"{value:.3f}"
    return number(round(value) if unit == "count" else value)


def error_text(figure: Figure | None) -> str:
    """Return the standard error of a figure, with the sign, or empty."""
    if figure is None or figure["value"] is None or not figure.get("error"):
        return ""
    return f"{_PLUS_MINUS} {_fixed(figure['error'], figure['unit'], figure['error'])}"


def number(value: float | int | None) -> str:
    """Return a number as text: counts with thousands separators, others with about three digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    if isinstance(value, int) or (value == round(value) and abs(value) >= 1000):
        return f"{round(value):,}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else (f"{value:.2g}", None)
        return mantissa if exponent is None else f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Return a fraction in percent, with as many digits as distinguish it from 0 and 100."""
    if value is None or not math.isfinite(value):
        return MISSING
    share = 100 * value
    if share == round(share) or abs(share) >= 99.995:
        return f"{share:.0f} %" if share == round(share) else f"{share:.4f} %"
    if abs(share) < 0.01:
        return f"{share:.1g} %" if abs(share) >= 1e-4 else f"{share:.0e} %".replace("e-0", "e-")
    return f"{share:.1f} %" if 10 <= abs(share) < 99.9 else f"{share:.2f} %"


def _fixed(value: float, unit: str, error: float) -> str:
    """Return a value with as many decimals as show two digits of its error."""
    scale = 100 if unit == "share" else 1
    if abs(error) * scale < _TINY:
        return f"{number(value * scale)}{' %' if unit == 'share' else ''}"
    decimals = min(max(1 - math.floor(math.log10(abs(error) * scale)), 0), 6)
    return f"{value * scale:,.{decimals}f}{' %' if unit == 'share' else ''}"
