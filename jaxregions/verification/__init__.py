"""A certificate of a count, checked from scratch.

Nothing of the search is used: only the traced function's values, with rigorous bounds or exactly,
and linear algebra. All of it is here, in ``forest`` (trees and points) and in ``values`` (rows and
proofs). What is checked, for every window:

1. Every tree of the certificate is complete: a node is split by the sign of a switching value into
   two, or one sign is refuted and the other known; at a leaf all signs of the stage are known.
   So the leaves of the last stage are all regions there can be, with different signs.
2. Every refutation: signs sigma_i of affine z_i and multipliers y_i >= 0 with
   sum_i y_i sigma_i z_i <= 0 everywhere in the window; so the signs cannot hold together (Farkas).
   All but the refuted one are known at the node.
3. Every region is there: its witness lies in the open window and has its signs, none of them zero
   unless the switching value vanishes on the whole cell.
4. The affine z_i are those of the cell: it is convex, z_i is affine on it, and z_i was evaluated at
   k + 1 points of the closed cell that span the window: the witness and a step along each axis,
   floats or, where these are too coarse, rationals.

A certificate is read in runs of steps, from a file piece by piece. Held are only the ends of trees
that no step has followed yet, with the signs known there, and their cells. When a window has no end
left, its count is whole. Before, it has at least as many regions as there are cells without
children: by 1 their signs differ, by 3 each is there.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from jaxregions.tracing import CPAFunction
from jaxregions.verification.forest import Failure, Forest, require

__all__ = ["Proven", "proven_regions", "verify"]

_MAGIC = b"jaxregions certificate 3\n"  # a file begins so; then pieces: 8 bytes of length, an .npz


class Proven(NamedTuple):
    """What a certificate proves.

    regions: (W,) those of each window, where ``complete`` (W,); elsewhere there are at least so
    many. failure: the first thing that does not hold, None if everything does; with a failure
    nothing is proven.
    """

    regions: np.ndarray
    complete: np.ndarray
    failure: str | None


def verify(net: CPAFunction, window: Any, certificate: Any) -> bool | str:
    """Whether a certificate proves the number of regions of a traced function in its windows.

    The numbers are those of ``proven_regions``.

    Args, Raises: as there.

    Returns:
      True, or a description of the first thing that fails. A certificate of a count that was
      stopped, or a file that ends early, is "incomplete: ...".

    Source: MATHEMATICS.md, exact partitions.
    """
    found = proven_regions(net, window, certificate)
    if found.failure is not None:
        return found.failure
    if not found.complete.all():
        left = int(np.argmin(found.complete))
        return (
            f"incomplete: {int((~found.complete).sum())} of {len(found.complete)} windows are not "
            f"counted to the end; window {left} has at least {found.regions[left]} regions"
        )
    return True


def proven_regions(net: CPAFunction, window: Any, certificate: Any) -> Proven:
    """How many regions a certificate proves, everything in it checked.

    Args:
      net: from ``jr.trace``, of the function that was counted.
      window: the windows that were counted, flattened in order if there are leading axes.
      certificate: of ``count_regions`` or ``load_certificate``, or the path of its file, which is
        read piece by piece.

    Raises:
      ValueError: a function that was not traced, no window or of another input dimension, no
        certificate.
      OSError: a file that cannot be read.

    Source: MATHEMATICS.md, exact partitions.
    """
    _require_arguments(net, window, certificate)
    forest = Forest(net, window)
    try:
        for piece in _pieces(certificate):
            forest.grow(piece)
    except Failure as failure:
        none = np.zeros(len(forest.open), np.int64)
        return Proven(none, none.astype(bool), str(failure))
    return Proven(np.array(forest.regions), np.array(forest.open) == 0, None)


def _require_arguments(net: Any, window: Any, certificate: Any) -> None:
    stored = isinstance(certificate, str | Path) or hasattr(certificate, "exact_point")
    for name, value, expected, holds in (
        ("net", net, "the result of jr.trace", isinstance(net, CPAFunction)),
        ("window", window, "a jr.Window", hasattr(window, "radii")),
        ("certificate", certificate, "that of count_regions(certificate=) or its path", stored),
    ):
        if not holds:
            raise ValueError(f"{name}: expected {expected}, received {type(value).__name__}")
    d = math.prod(net.input_shape)
    if window.input_dimension != d:
        raise ValueError(
            f"window: expected input dimension {d}, of inputs {net.input_shape}, "
            f"received {window.input_dimension}"
        )


def _pieces(certificate: Any) -> Iterator[Any]:
    """The pieces of a file, as far as it was written; a certificate is one."""
    if not isinstance(certificate, str | Path):
        yield certificate
        return
    with open(certificate, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        require(file.read(len(_MAGIC)) == _MAGIC, f"{certificate}: not a certificate")
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head, "little")
            if length > size - file.tell():
                return
            content = io.BytesIO(file.read(length))
            try:
                with np.load(content, allow_pickle=False) as arrays:
                    piece = SimpleNamespace(**arrays)
            except Exception as error:  # damage has no end of kinds
                raise Failure(f"{certificate}: a piece that cannot be read: {error}") from error
            yield piece
