"""What a study does: one frozen, validated record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["StudyConfig", "activation_named", "activation_names"]

QUICK_EPOCHS, QUICK_WINDOWS = 2, 16
NOT_RESULTS = ("output", "resume")  # fields that leave every number as it is


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The options of a study. Its numbers depend on all fields but ``output`` and ``resume``.

    Args:
      dataset: a name that ``datasets.load`` knows.
      data_path: folder of the files of mnist and fashion_mnist; None elsewhere.
      widths: hidden widths of both models.
      activation: one of ``activation_names()``.
      bias_std: standard deviation of the initial raw biases, >= 0.
      batch_size: examples of a training step, and of the mini-batch that BatchNorm is conditioned
        on; >= 2.
      epochs: >= 0.
      learning_rate: of Adam, > 0.
      checkpoints: epochs to measure at; 0 and ``epochs`` are always added (``schedule``). None: 0,
        1, 2, 5, 10, 20, 50, 100, ... up to ``epochs``.
      windows: data windows, and as many off-data controls; >= 2.
      radii: of the full-dimensional l_inf windows, in input units.
      slice_radii: of the windows in slices, in input units (their bases are orthonormal).
      slice_dimensions: dimensions of the slices in which layer 1 is counted, of 1, 2, 3; the whole
        network always is in 2.
      seed: of the data split, the initialisation, the minibatch order and all sampling; >= 0.
      output: folder of the report.
      quick: at most 2 epochs, 16 windows and one slice radius (the smallest).
      resume: continue from the last finished checkpoint in ``output``.

    Raises:
      ValueError: a value out of its range, naming what was received and what was expected.
    """

    dataset: str = "digits"
    data_path: str | None = None
    widths: tuple[int, ...] = (128, 128)
    activation: str = "relu"
    bias_std: float = 0.1
    batch_size: int = 128
    epochs: int = 20
    learning_rate: float = 1e-3
    checkpoints: tuple[int, ...] | None = None
    windows: int = 64
    radii: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)
    slice_radii: tuple[float, ...] = (0.1, 0.2)
    slice_dimensions: tuple[int, ...] = (1, 2, 3)
    seed: int = 0
    output: str = "report"
    quick: bool = False
    resume: bool = False

    def __post_init__(self):
        from jaxregions import datasets

        _require(
            "dataset", self.dataset in datasets.names(), _one_of(datasets.names()), self.dataset
        )
        _require(
            "activation",
            self.activation in activation_names(),
            _one_of(activation_names()),
            self.activation,
        )
        self._integers("widths", lambda n: n >= 1, "positive integers, at least one")
        self._integers("slice_dimensions", lambda n: 1 <= n <= 3, "dimensions of 1, 2, 3")
        for name, least in (("batch_size", 2), ("epochs", 0), ("windows", 2), ("seed", 0)):
            value = getattr(self, name)
            _require(name, _is_integer(value) and value >= least, f"an integer >= {least}", value)
        _require("seed", self.seed < 2**32, "an integer below 2**32", self.seed)
        _require(
            "bias_std", _is_number(self.bias_std) and self.bias_std >= 0, ">= 0", self.bias_std
        )
        rate = self.learning_rate
        _require("learning_rate", _is_number(rate) and rate > 0, "a number > 0", rate)
        for name in ("radii", "slice_radii"):
            self._numbers(name)
        _require("output", bool(str(self.output).strip()), "a folder", self.output)
        if self.quick:
            self._set("epochs", min(self.epochs, QUICK_EPOCHS))
            self._set("windows", min(self.windows, QUICK_WINDOWS))
            self._set("slice_radii", self.slice_radii[:1])
        if self.checkpoints is not None:
            self._integers("checkpoints", lambda n: n >= 0, "epochs >= 0")
            right = self.quick or max(self.checkpoints) <= self.epochs
            _require("checkpoints", right, f"epochs in 0..{self.epochs}", self.checkpoints)

    def results_fields(self) -> dict[str, Any]:
        """The fields that the numbers depend on, as JSON holds them."""
        fields = dataclasses.asdict(self) | {"checkpoints": self.schedule}
        plain = {name: value for name, value in fields.items() if name not in NOT_RESULTS}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in plain.items()}

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _integers(self, name: str, valid: Callable[[int], bool], expected: str) -> None:
        values, right = _as_tuple(getattr(self, name))
        right = right and len(values) > 0 and all(_is_integer(v) and valid(v) for v in values)
        _require(name, right, expected, values)
        unique = tuple(sorted({int(v) for v in values}))
        self._set(name, tuple(map(int, values)) if name == "widths" else unique)

    def _numbers(self, name: str) -> None:
        values, right = _as_tuple(getattr(self, name))
        right = right and len(values) > 0 and all(_is_number(v) and v > 0 for v in values)
        _require(name, right, "numbers > 0, at least one", values)
        self._set(name, tuple(sorted({float(v) for v in values})))

    @property
    def schedule(self) -> tuple[int, ...]:
        """The epochs that are measured, 0 and the last included."""
        if self.checkpoints is None:
            chosen = {m * 10**e for e in range(9) for m in (1, 2, 5)}
        else:
            chosen = set(self.checkpoints)
        return tuple(sorted({epoch for epoch in chosen if epoch < self.epochs} | {0, self.epochs}))


def activation_names() -> tuple[str, ...]:
    """The activations that a study knows; leaky_relu has slope 0.01."""
    return ("relu", "leaky_relu", "abs", "relu6", "hard_tanh", "hard_sigmoid")


def activation_named(name: str) -> Any:
    """The PiecewiseLinear of that name."""
    from jaxregions import activations

    if name == "leaky_relu":
        return activations.leaky_relu()
    return getattr(activations, "abs_" if name == "abs" else name)


def _as_tuple(value: Any) -> tuple[tuple[Any, ...], bool]:
    """The values, and whether there was an iterable of them."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return (tuple(value) if several else (value,)), several


def _require(name: str, right: bool, expected: str, received: Any) -> None:
    if not right:
        raise ValueError(f"{name}: expected {expected}, received {received!r}")


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
