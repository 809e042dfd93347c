"""l_inf windows: axis-aligned boxes in input space, or boxes in a k-dimensional slice of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxregions._records import as_array, build, is_traced, record, require_finite

__all__ = ["Window", "require_window"]


@record
class Window:
    """An open l_inf window, or a batch of them.

    Full-dimensional: {x : |x_j - center_j| < r_j}, dimension k = d.
    Slice: {center + basis u : |u_j| < r_j}, basis (d, k) of rank k, measured in u.
    Slice with an anchor: {anchor + basis (shift + u) : |u_j| < r_j}. The point ``anchor`` then lies
    in the slice *exactly*, which a float64 ``center`` alone cannot promise; an anchored slice
    through a batch centroid keeps the concurrency of BatchNorm's hyperplanes there exact. ``shift``
    are the slice coordinates of the centre, stored as float64.

    The stored floats are the exact window: engines treat them as exact rationals. NumPy float32
    centres are stored as they are (float64 would double their memory and say nothing new); exact
    decisions convert them, which is exact.

    Args:
      center: (..., d).
      radius: a number, one per window (...,), or one per axis (..., k); in input units, for slices
        in units of the basis vectors.
      basis: None, (d, k) shared by all windows, or (..., d, k).
      anchor: None, (d,) or (..., d); only with a basis.

    Raises:
      ValueError: shapes that do not fit, NaN or infinities, a radius <= 0, a basis without full
        column rank, an anchor that is not in the slice (to rounding).

    Source: MATHEMATICS.md, windows.
    """

    center: np.ndarray
    radius: np.ndarray
    basis: np.ndarray | None = None
    anchor: np.ndarray | None = None
    shift: np.ndarray | None = None

    def __init__(self, center, radius, basis=None, anchor=None):
        center = as_array(center, "center", keep_single=True)
        radius = as_array(radius, "radius")
        if center.ndim == 0:
            raise ValueError("center: expected shape (..., d), received a scalar")
        if center.shape[-1] == 0:
            raise ValueError("center: expected d >= 1, received d = 0")
        require_finite(center, "center")
        require_finite(radius, "radius")
        batch, d = center.shape[:-1], center.shape[-1]
        if basis is not None:
            basis = as_array(basis, "basis")
            require_finite(basis, "basis")
            if basis.ndim < 2 or basis.shape[-2] != d or basis.shape[:-2] not in ((), batch):
                raise ValueError(
                    f"basis: expected shape {(d, 'k')} or {(*batch, d, 'k')} for centres of shape "
                    f"{center.shape}, received {basis.shape}"
                )
            _require_rank(basis)
        k = d if basis is None else basis.shape[-1]
        if radius.shape not in {(), batch, (*batch, k)}:
            raise ValueError(
                f"radius: expected shape (), {batch} (one per window) or {(*batch, k)} (one per "
                f"axis), received {radius.shape}"
            )
        if not is_traced(radius) and not (np.asarray(radius) > 0).all():
            raise ValueError(f"radius: expected > 0, received {np.min(np.asarray(radius))}")
        if radius.shape == ():
            radius = _broadcast(radius, batch)
        shift = None
        if anchor is not None:
            if basis is None:
                raise ValueError("anchor: expected together with a basis, received basis=None")
            anchor, shift = _anchored(center, basis, as_array(anchor, "anchor"))
        for name, value in (
            ("center", center),
            ("radius", radius),
            ("basis", basis),
            ("anchor", anchor),
            ("shift", shift),
        ):
            object.__setattr__(self, name, value)

    @staticmethod
    def through(p0, p1, p2, *, margin: float = 1.0) -> Window:
        """The 2-d slice through three points, as one window that holds them.

        Centre: their mean. Basis: orthonormal, by Gram-Schmidt of p1 - p0 and p2 - p0. Radius: the
        smallest scalar whose closed window holds the three points, times ``margin``. p0 lies in
        the slice exactly (it is the window's anchor), so put a batch centroid first.

        Args:
          p0, p1, p2: (d,) points, d >= 2.
          margin: factor on the radius, > 0.

        Raises:
          ValueError: wrong shapes, points on one line.
        """
        points = np.stack(
            [np.asarray(as_array(p, f"p{i}"), np.float64) for i, p in enumerate((p0, p1, p2))]
        )
        if points.ndim != 2 or points.shape[1] < 2:
            raise ValueError(
                f"expected three points of shape (d,), d >= 2, received {points.shape}"
            )
        require_finite(points, "points")
        edges = (points[1:] - points[0]).T
        basis, triangle = np.linalg.qr(edges)
        scale = np.linalg.norm(edges, axis=0).max()
        if abs(np.diag(triangle)).min() <= 8 * np.finfo(np.float64).eps * scale:
            raise ValueError(
                "expected three points that are not on one line, received collinear ones"
            )
        basis = basis * np.sign(np.diag(triangle)) + 0.0
        center = points.mean(axis=0)
        radius = float(np.abs((points - center) @ basis).max()) * float(margin)
        return Window(center, np.nextafter(radius, np.inf), basis, anchor=points[0])

    @property
    def dimension(self) -> int:
        """k: the dimension of the window."""
        return self.center.shape[-1] if self.basis is None else self.basis.shape[-1]

    @property
    def input_dimension(self) -> int:
        """d: the dimension of the input space."""
        return self.center.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes: one window each."""
        return self.center.shape[:-1]

    def radii(self):
        """One radius per axis, (..., k)."""
        radius, k = self.radius, self.dimension
        if radius.shape == (*self.batch_shape, k) and radius.ndim == self.center.ndim:
            return radius
        return _broadcast(radius[..., None], (*self.batch_shape, k))

    def log_volume(self):
        """log of the k-volume in input space: sum_j log 2 r_j + log det(B'B) / 2, (...,)."""
        xp = _namespace(self.center, self.radius, self.basis)
        box = xp.sum(xp.log(2 * self.radii()), axis=-1)
        if self.basis is None:
            return box
        gram = _matmul(xp.swapaxes(self.basis, -1, -2), self.basis)
        return box + xp.linalg.slogdet(gram)[1] / 2

    def points(self, u):
        """Input points of slice coordinates relative to the centre: u (..., k) -> (..., d)."""
        if self.basis is None:
            return self.center + u
        if self.anchor is None:
            return self.center + _matmul(self.basis, u[..., None])[..., 0]
        return self.anchor + _matmul(self.basis, (self.shift + u)[..., None])[..., 0]

    def reshape(self, *batch_shape: int) -> Window:
        """The same windows with other leading axes (-1 as in numpy)."""
        old = len(self.batch_shape)
        shape = np.empty(self.batch_shape).reshape(batch_shape).shape

        def move(value):
            return None if value is None else value.reshape(shape + value.shape[old:])

        shared = self.basis is None or self.basis.ndim == 2
        return build(
            Window,
            center=move(self.center),
            radius=move(self.radius),
            basis=self.basis if shared else move(self.basis),
            anchor=move(self.anchor),
            shift=move(self.shift),
        )

    def __getitem__(self, index) -> Window:
        """Windows by an index into the leading axes."""
        axes = len(self.batch_shape)
        if axes == 0:
            raise IndexError("a single window has no leading axes to index")

        def pick(value, inner):
            return value if value is None or value.ndim <= inner else value[index]

        return build(
            Window,
            center=self.center[index],
            radius=self.radius[index],
            basis=pick(self.basis, 2),
            anchor=pick(self.anchor, 1),
            shift=pick(self.shift, 1),
        )


def require_window(windows: Any) -> None:
    if not isinstance(windows, Window):
        raise ValueError(f"windows: expected a jr.Window, received {type(windows).__name__}")


def _require_rank(basis) -> None:
    if is_traced(basis):
        return
    values = np.linalg.svd(np.asarray(basis, np.float64), compute_uv=False)
    k, d = basis.shape[-1], basis.shape[-2]
    floor = d * np.finfo(np.float64).eps * values.max(axis=-1, initial=0.0)
    if k == 0 or k > d or (values.min(axis=-1) <= floor).any():
        raise ValueError(
            f"basis: expected {(d, 'k')} with k independent columns, 1 <= k <= d, received "
            f"k = {k} and smallest singular value {values.min(initial=0.0):.3g}"
        )


def _anchored(center, basis, anchor):
    """The anchor per window and the slice coordinates of the centre seen from it."""
    center, basis, anchor = (np.asarray(v, np.float64) for v in (center, basis, anchor))
    if anchor.shape not in (center.shape[-1:], center.shape):
        raise ValueError(
            f"anchor: expected shape {center.shape[-1:]} or {center.shape}, received {anchor.shape}"
        )
    require_finite(anchor, "anchor")
    difference = center - anchor
    shift = (np.linalg.pinv(basis) @ difference[..., None])[..., 0]
    miss = difference - (basis @ shift[..., None])[..., 0]
    scale = np.abs(center).max(initial=0.0) + np.abs(anchor).max(initial=0.0)
    if np.abs(miss).max(initial=0.0) > 1e6 * np.finfo(np.float64).eps * scale:
        raise ValueError(
            f"anchor: expected a point of the slice, received one {np.abs(miss).max():.3g} away"
        )
    return np.broadcast_to(anchor, center.shape), shift


def _namespace(*arrays):
    import jax
    import jax.numpy as jnp

    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def _broadcast(array, shape):
    return _namespace(array).broadcast_to(array, shape)


def _matmul(a, b):
    """a @ b, in full precision on devices whose default is less."""
    xp: Any = _namespace(a, b)
    return a @ b if xp is np else xp.matmul(a, b, precision="highest")
