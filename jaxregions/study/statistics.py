"""Means over windows with their uncertainty, as rows of one tidy table."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

__all__ = ["FIELDS", "Row", "Summary", "proportion", "summarize", "unpaired"]

_Z95 = 1.959963984540054  # normal quantile of 0.975


class Summary(NamedTuple):
    """A mean over ``count`` windows, its standard error, and a 95% interval; NaN: not defined."""

    mean: float
    standard_error: float
    low95: float
    high95: float
    count: int


class Row(NamedTuple):
    """One number of the study and what it is of; None: does not apply."""

    model: str
    epoch: int
    layer: int
    kind: str
    radius: float | None
    dimension: int | None
    quantity: str
    value: Summary

    def flat(self) -> tuple:
        """In the order of ``FIELDS``."""
        return (*self[:-1], *self.value)


FIELDS = (*Row._fields[:-1], *Summary._fields)


def summarize(values: Any) -> Summary:
    """Mean, standard error s / sqrt(n), and the t-interval mean +- t_{n-1, 0.975} s / sqrt(n)."""
    values = np.asarray(values, np.float64).ravel()
    if not len(values):
        return _undefined(math.nan, 0)
    mean = float(values.mean())
    if len(values) == 1 or not math.isfinite(mean):
        return _undefined(mean, len(values))
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    return _interval(mean, error, len(values) - 1, len(values))


def unpaired(a: Any, b: Any) -> Summary:
    """mean(a) - mean(b) of independent samples, with Welch's t-interval; count: the smaller n."""
    a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
    count = min(len(a), len(b))
    if count == 0:
        return _undefined(math.nan, 0)
    mean = float(a.mean() - b.mean())
    if count == 1 or not math.isfinite(mean):
        return _undefined(mean, count)
    parts = [float(v.var(ddof=1) / len(v)) for v in (a, b)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Summary(mean, 0.0, mean, mean, count)
    weights = [part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True)]
    return _interval(mean, error, sum(parts) ** 2 / sum(weights), count)


def proportion(flags: Any) -> Summary:
    """The share of True, with Wilson's 95% interval."""
    flags = np.asarray(flags, bool).ravel()
    n = len(flags)
    if not n:
        return _undefined(math.nan, 0)
    share = float(flags.mean())
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(share * (1 - share) / n + (_Z95 / (2 * n)) ** 2)
    low, high = min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)
    return Summary(share, math.sqrt(share * (1 - share) / n), low, high, n)


def _undefined(mean: float, count: int) -> Summary:
    return Summary(mean, math.nan, math.nan, math.nan, count)


def _interval(mean: float, error: float, freedom: float, count: int) -> Summary:
    half = float(stdtrit(freedom, 0.975)) * error
    return Summary(mean, error, mean - half, mean + half, count)
