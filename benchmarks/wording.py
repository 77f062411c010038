"""How the report writes figures."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.comparison import Spread
from benchmarks.statistics import Estimate

NONE = "–"


def number(value: float | None) -> str:
    """
    >>> number(0.56250000001), number(-0.0001), number(16.74), number(None)
    ('0.562', '0.000', '16.7', '–')
    """
    if value is None:
        return NONE
    digits = 3 if abs(value) < 10 else 1
    return f"{round(round(value, 9), digits) + 0.0:.{digits}f}"  # the inner: two machines may differ in the last bits


def estimate(found: Estimate | None) -> str:
    """
    >>> estimate(Estimate(0.5, (0.4, 0.6)))
    '0.500 (0.400 to 0.600)'
    """
    if found is None or found.interval is None:
        return NONE if found is None else number(found.value)
    return f"{number(found.value)} ({number(found.interval[0])} to {number(found.interval[1])})"


def whole(value: float) -> str:
    """Tokens, megabytes.

    >>> whole(120_000.2), whole(math.nan)
    ('120,000', '–')
    """
    return NONE if math.isnan(value) else f"{value:,.0f}"


def seconds(value: float) -> str:
    """
    >>> seconds(0.04), seconds(9.96), seconds(1234.5)
    ('0.0', '10.0', '1,234')
    """
    return f"{value:.1f}" if value < 10 else whole(value)


def spread(found: Spread, show: Callable[[float], str]) -> str:
    """The median, and the most in parentheses.

    >>> spread(Spread(5, math.inf), whole), spread(Spread(math.inf, math.inf), whole)
    ('5 (not by all)', 'not reached')
    """
    if found.median == math.inf:
        return "not reached"
    return f"{show(found.median)} ({'not by all' if found.most == math.inf else show(found.most)})"


def count(n: int, what: str) -> str:
    """
    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"
