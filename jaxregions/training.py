"""A deterministic optax training loop that hands checkpoints to a recorder."""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from jaxregions.datasets import Dataset

__all__ = [
    "Checkpoint",
    "Evaluation",
    "TrainState",
    "evaluate",
    "init_state",
    "load_state",
    "save_state",
    "train",
]

EVALUATION_CHUNK = 4096


class TrainState(NamedTuple):
    """All that training needs to go on: it and the key determine every later bit.

    Fields:
      variables: of the model: params, and batch_stats where it has BatchNorm.
      optimizer_state: of the optax optimizer, for params.
      epoch: epochs done.
    """

    variables: Any
    optimizer_state: Any
    epoch: int


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats) and accuracy in [0, 1]."""

    loss: float
    accuracy: float


class Checkpoint(NamedTuple):
    """What a recorder sees after ``epoch`` epochs (0: initialisation).

    loss and accuracy are over the whole training set, test_loss and test_accuracy over the test set
    (None without one), all with running statistics, as in ``evaluate``.
    """

    epoch: int
    variables: Any
    optimizer_state: Any
    loss: float
    accuracy: float
    test_loss: float | None = None
    test_accuracy: float | None = None

    @property
    def state(self) -> TrainState:
        """The state to resume from."""
        return TrainState(self.variables, self.optimizer_state, self.epoch)


def train(
    model: nn.Module,
    data: Dataset | tuple[Any, Any],
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 128,
    epochs: int = 20,
    checkpoints: Iterable[int] = (),
    recorder: Callable[[Checkpoint], None] | None = None,
    state: TrainState | None = None,
) -> TrainState:
    """Minimise the mean softmax cross-entropy with integer labels.

    Each epoch visits the examples in a random order, by minibatches of ``batch_size``; the last
    incomplete one is dropped, so an epoch has floor(N / batch_size) steps. The order of an epoch
    depends on the key and the number of the epoch only. So a run that is resumed from the state
    after any epoch, with the same other arguments, gives the bits of the uninterrupted one (on one
    CPU, with one version of jax; a GPU also needs XLA_FLAGS=--xla_gpu_deterministic_ops=true).

    BatchNorm uses batch statistics here, and its running statistics move with the momentum of the
    model. Models without BatchNorm take the same path.

    Args:
      model: a linen module, hashable, called as model(x, train=bool).
      data: a Dataset, or (x, y): x (N, ...) floating-point, y (N,) integers in 0..num_outputs-1.
      key: a jax random key.
      optimizer: optax transformation; None is optax.adam(1e-3).
      batch_size: examples in a step.
      epochs: epochs in all, those done in ``state`` included.
      checkpoints: epochs to record, 0..epochs. Those before state.epoch are passed over;
        state.epoch itself is recorded.
      recorder: called with each Checkpoint, in order. An exception in it ends the training.
      state: where to start; None starts at ``init_state(model, x, key=key, optimizer=optimizer)``.

    Returns:
      the state after ``epochs`` epochs.

    Raises:
      ValueError: shapes or types that do not fit, NaN or infinite x, labels out of range, a batch
        larger than the data or of one example with BatchNorm, an epoch out of range, checkpoints
        without a recorder or the reverse, a state of another model or optimizer.
    """
    optimizer = _adam() if optimizer is None else optimizer
    x, y, test = _arrays(data)
    fresh = jax.eval_shape(
        functools.partial(init_state, model, optimizer=optimizer), x[:1], key=key
    )
    _require_labels(model, fresh.variables, x, y)
    if test is not None:
        _require_labels(model, fresh.variables, *test)
    checkpoints = set(checkpoints)
    _require_schedule(len(x), batch_size, epochs, checkpoints, recorder)
    if batch_size == 1 and "batch_stats" in fresh.variables:
        raise ValueError("batch_size: expected at least 2 for a model with BatchNorm, received 1")
    if state is None:
        state = init_state(model, x[:1], key=key, optimizer=optimizer)
    else:
        _require_like(state, fresh, "state")
        if not 0 <= state.epoch <= epochs:
            raise ValueError(f"state: expected an epoch in 0..{epochs}, received {state.epoch}")

    order_key = _keys(key)[1]
    while True:
        if recorder is not None and state.epoch in checkpoints:
            recorder(_checkpoint(model, state, (x, y), test))
        if state.epoch == epochs:
            return state
        variables, optimizer_state = _epoch(
            model,
            optimizer,
            batch_size,
            state.variables,
            state.optimizer_state,
            x,
            y,
            jax.random.fold_in(order_key, state.epoch),
        )
        state = TrainState(variables, optimizer_state, state.epoch + 1)


def init_state(
    model: nn.Module,
    x: jax.Array,
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """The state before the first epoch.

    Args:
      model, key, optimizer: as in ``train``.
      x: (N, ...) any examples of the right shape.
    """
    optimizer = _adam() if optimizer is None else optimizer
    variables = model.init(_keys(key)[0], x, train=False)
    return TrainState(dict(variables), optimizer.init(variables["params"]), 0)


def evaluate(model: nn.Module, variables: Any, x: Any, y: Any) -> Evaluation:
    """Mean cross-entropy and accuracy of the model with its running statistics (train=False).

    Args:
      model: a linen module, hashable, called as model(x, train=bool).
      variables: of the model.
      x: (N, ...) floating-point.
      y: (N,) integers in 0..num_outputs-1.

    Raises:
      ValueError: shapes or types that do not fit, NaN or infinite x, labels out of range.
    """
    x, y = _pair(x, y, "")
    _require_labels(model, variables, x, y)
    return _evaluate(model, variables, x, y)


def save_state(path: str | Path, state: TrainState) -> None:
    """Write the state: a SHA-256 digest, then Flax's msgpack.

    The file is moved into place, so readers see the old one or the new one, never a part.
    """
    path = Path(path)
    payload = serialization.to_bytes(state)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: str | Path, like: TrainState) -> TrainState:
    """Read what ``save_state`` wrote.

    Args:
      path: the file.
      like: a state of the same model and optimizer, as from ``init_state``: it gives the structure.

    Raises:
      ValueError: the file is damaged or holds the state of another model or optimizer.
      FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    size = hashlib.sha256().digest_size
    digest, payload = data[:size], data[size:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(f"{path}: expected a saved state, received damaged or other data")
    saved = serialization.msgpack_restore(payload)
    # Flax drops what is saved and not in like, so the structures are compared first.
    expected = jax.tree.structure(serialization.to_state_dict(like))
    if jax.tree.structure(saved) != expected:
        raise ValueError(
            f"{path}: expected the state of this model and optimizer, {expected}, "
            f"received {jax.tree.structure(saved)}"
        )
    state: Any = serialization.from_state_dict(like, cast(dict, saved))
    _require_like(state, like, str(path))
    return state


@functools.cache
def _adam() -> optax.GradientTransformation:
    # One object: the compiled epoch is looked up by the optimizer's identity.
    return optax.adam(1e-3)


def _keys(key: jax.Array) -> jax.Array:
    """The keys of initialisation and of the minibatch order."""
    return jax.random.split(key)


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "batch_size"))
def _epoch(model, optimizer, batch_size, variables, optimizer_state, x, y, key):
    steps = len(x) // batch_size
    order = jax.random.permutation(key, len(x))[: steps * batch_size]

    def step(carry, rows):
        variables, optimizer_state = carry

        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params}, x[rows], train=True, mutable=["batch_stats"]
            )
            return _cross_entropy(logits, y[rows]).mean(), updates

        gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
        change, optimizer_state = optimizer.update(gradient, optimizer_state, variables["params"])
        params = optax.apply_updates(variables["params"], change)
        return ({**variables, **updates, "params": params}, optimizer_state), None

    carry, _ = jax.lax.scan(step, (variables, optimizer_state), order.reshape(steps, batch_size))
    return carry


def _cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


@functools.partial(jax.jit, static_argnames="model")
def _scores(model, variables, x, y):
    """Sums of the cross-entropy and of the right answers."""
    logits = model.apply(variables, x, train=False)
    return _cross_entropy(logits, y).sum(), (logits.argmax(axis=-1) == y).sum()


def _evaluate(model, variables, x, y) -> Evaluation:
    starts = range(0, len(x), EVALUATION_CHUNK)
    parts = [
        _scores(model, variables, x[i : i + EVALUATION_CHUNK], y[i : i + EVALUATION_CHUNK])
        for i in starts
    ]
    loss, right = np.asarray(parts, np.float64).sum(axis=0) / len(x)
    return Evaluation(float(loss), float(right))


def _checkpoint(model, state, train_arrays, test_arrays) -> Checkpoint:
    test = (None, None) if test_arrays is None else _evaluate(model, state.variables, *test_arrays)
    return Checkpoint(
        state.epoch,
        state.variables,
        state.optimizer_state,
        *_evaluate(model, state.variables, *train_arrays),
        *test,
    )


def _arrays(data):
    """x, y and None or (x_test, y_test), as jax arrays."""
    if isinstance(data, Dataset):
        return (
            *_pair(data.x_train, data.y_train, "training "),
            _pair(data.x_test, data.y_test, "test "),
        )
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"data: expected a Dataset or (x, y), received {type(data).__name__}")
    x, y = data
    return *_pair(x, y, "training "), None


def _pair(x, y, what: str):
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or y.shape != x.shape[:1] or not x.size:
        raise ValueError(
            f"expected {what}x (N, ...) and y (N,), N >= 1, received {x.shape} and {y.shape}"
        )
    if not np.issubdtype(x.dtype, np.floating) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"expected floating-point {what}x and integer y, received {x.dtype} and {y.dtype}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"expected finite {what}x, received infinity or NaN")
    return jnp.asarray(x), jnp.asarray(y)


def _require_labels(model, variables, x, y) -> None:
    apply = functools.partial(model.apply, train=False)
    logits = jax.eval_shape(apply, variables, x)
    if logits.ndim != 2:
        raise ValueError(f"model: expected logits of shape (N, classes), received {logits.shape}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"y: expected labels in 0..{logits.shape[1] - 1} for a model with {logits.shape[1]} "
            f"outputs, received {low}..{high}"
        )


def _require_schedule(size, batch_size, epochs, checkpoints, recorder) -> None:
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name}: expected an integer, received {value!r}")
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size: expected 1..{size} for {size} examples, received {batch_size}"
        )
    if epochs < 0:
        raise ValueError(f"epochs: expected >= 0, received {epochs}")
    outside = sorted(checkpoints - set(range(epochs + 1)))
    if outside:
        raise ValueError(f"checkpoints: expected epochs in 0..{epochs}, received {outside}")
    if bool(checkpoints) != (recorder is not None):
        raise ValueError("expected checkpoints and a recorder together, received one of them")


def _require_like(state, like, name: str) -> None:
    """ValueError unless structure, shapes and types of the arrays agree."""

    def described(tree):
        arrays = jax.eval_shape(lambda *trees: trees, tree.variables, tree.optimizer_state)
        return jax.tree.structure(arrays), [(a.shape, a.dtype) for a in jax.tree.leaves(arrays)]

    if described(state) != described(like):
        raise ValueError(
            f"{name}: expected the variables and optimizer state of this model and optimizer, "
            f"received {jax.tree.map(np.shape, state.variables)}"
        )
