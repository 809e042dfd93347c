"""The signs of all switching values on the cells of a certificate, from its trees alone."""

from __future__ import annotations

import numpy as np

from jaxregions.engines.certificates import ABOVE, BELOW, LEAF, SPLIT, ZERO, Certificate
from jaxregions.tracing import CPAFunction

__all__ = ["certified_signs", "require_finished"]

_SIGN = {ABOVE: 1, BELOW: -1, ZERO: 0}
_UNKNOWN = 2


def certified_signs(
    net: CPAFunction, certificate: Certificate, whole: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(F,) the windows of the regions, and per stage (F, size) int8, the signs on each.

    Args:
      whole: (W,) windows whose regions are wanted: those that were finished.

    Raises:
      ValueError: a certificate that does not decide all switching values.
    """
    c, stages = certificate, len(net.stages)
    cell = np.flatnonzero((c.stage == stages) & whole[c.window])
    window, found = c.window[cell], []
    leaf = np.full(len(c.window), -1)
    steps = np.flatnonzero(c.kind == LEAF)
    leaf[c.entry[steps]] = steps
    for layer in net.stages[::-1]:
        own, place = np.unique(cell, return_inverse=True)
        found.append(_signs(c, leaf[own], layer.size)[place])
        cell = c.parent[cell]
    return window, found[::-1]


def _signs(c: Certificate, leaf: np.ndarray, size: int) -> np.ndarray:
    """(F, size) decided on the ways from leaves up to where their trees begin."""
    sign = np.full((len(leaf), size), _UNKNOWN, np.int8)
    row, at = np.arange(len(leaf)), leaf
    while True:
        up = c.before[at]
        on = np.flatnonzero(up >= 0)
        if not len(on):
            break
        row, below, at = row[on], at[on], up[on]
        kind, entry = c.kind[at], c.entry[at]
        if (entry >= size).any():
            raise ValueError(f"certificate: expected {size} switching values in a stage")
        known = np.where(c.branch[below] == 1, -1, 1)
        for name, value in _SIGN.items():
            known[kind == name] = value
        sign[row, entry] = known
    if (sign == _UNKNOWN).any():
        raise ValueError("certificate: expected the sign of every switching value on every cell")
    return sign


def require_finished(c: Certificate, stages: int) -> None:
    """
    Raises:
      ValueError: a certificate that is not of a finished count, or of another function.
    """
    start = c.before < 0
    after = np.bincount(c.before[~start], minlength=len(c.kind))
    begun = np.bincount(-1 - c.before[start], minlength=len(c.window))
    wanted = np.where(c.kind == LEAF, 0, np.where(c.kind == SPLIT, 2, 1))
    loose = (after != wanted).any() or (begun != (c.stage < stages)).any()
    if c.stage.max(initial=0) > stages or loose:
        raise ValueError(
            "certificate: expected that of a finished count of this function, received one that "
            "leaves cells open or has other stages"
        )
