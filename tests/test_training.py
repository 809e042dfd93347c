"""Training: steps against NumPy, determinism to the bit, resuming, and saved states."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxregions import training
from jaxregions.datasets import Dataset, load
from jaxregions.training import TrainState, evaluate, init_state, load_state, save_state, train
from jaxregions.zoo import MLP

KEY = jax.random.key(5, impl="rbg")  # compiles faster than the default generator


def toy(size=22, *, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 3)).astype(np.float32), rng.integers(0, 4, size)


def toy_dataset():
    return Dataset(*toy(), *toy(9, seed=1), "toy", 4, (3,))


def small(norm="batch"):
    return MLP((6,), 4, norm=norm)


@functools.cache
def initial(model, optimizer=None):
    return init_state(model, X, key=KEY, optimizer=optimizer)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def flipped_bit(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def numpy_scores(logits, y):
    """Mean cross-entropy and accuracy in float64."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean(), (logits.argmax(axis=1) == y).mean()


def test_steps_are_minibatch_gradient_descent():
    """An affine model, SGD: every step replayed in NumPy with softmax minus one-hot."""
    x, y = toy(22)
    model, rate = MLP((), 4), 0.3
    start = init_state(model, x, key=KEY, optimizer=optax.sgd(rate))
    end = train(
        model, (x, y), key=KEY, optimizer=optax.sgd(rate), batch_size=5, epochs=2, state=start
    )
    w, b = (np.asarray(start.variables["params"]["output"][k], float) for k in ("kernel", "bias"))
    for epoch in range(2):
        order = jax.random.permutation(jax.random.fold_in(jax.random.split(KEY)[1], epoch), 22)
        for rows in np.asarray(order)[:20].reshape(4, 5):
            p = np.exp(x[rows] @ w + b)
            error = p / p.sum(axis=1, keepdims=True) - np.eye(4)[y[rows]]
            w, b = w - rate * x[rows].T @ error / 5, b - rate * error.mean(axis=0)
    np.testing.assert_allclose(end.variables["params"]["output"]["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(end.variables["params"]["output"]["bias"], b, atol=1e-5)


@pytest.mark.slow
def test_last_incomplete_minibatch_is_dropped():
    """22 examples by 5: four steps an epoch, counted by Adam."""
    end = train(small(), toy(22), key=KEY, batch_size=5, epochs=3)
    assert int(end.optimizer_state[0].count) == 12


def test_running_statistics_follow_the_batches():
    """One step on the whole set: 0.1 of the batch mean, from zero, in the raw pre-activations."""
    x, y = toy()
    start = init_state(small(), x, key=KEY)
    end = train(small(), (x, y), key=KEY, batch_size=22, epochs=1)
    layer = start.variables["params"]["dense_0"]
    z = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    moved = end.variables["batch_stats"]["norm_0"]
    np.testing.assert_allclose(moved["mean"], 0.1 * z.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * z.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_same_key_gives_the_same_bits(norm):
    """And another key does not."""
    one, again, other = (
        train(small(norm), toy(), key=jax.random.key(k), batch_size=4, epochs=2) for k in (0, 0, 1)
    )
    assert_same_bits(one, again)
    kernels = [s.variables["params"]["output"]["kernel"] for s in (one, other)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resuming_from_a_file_gives_the_same_bits(tmp_path, norm, stop):
    """Stop, save, load, go on: state and later checkpoints equal the uninterrupted run's."""
    options = {"key": KEY, "batch_size": 4, "checkpoints": range(6)}
    whole, first, second = [], [], []
    end = train(small(norm), toy_dataset(), epochs=5, recorder=whole.append, **options)
    options["checkpoints"] = range(stop)
    recorder = first.append if stop else None
    partial = train(small(norm), toy_dataset(), epochs=stop, recorder=recorder, **options)
    save_state(tmp_path / "state", partial)
    like = init_state(small(norm), toy()[0], key=jax.random.key(99))
    options["checkpoints"] = range(6)
    resumed = train(
        small(norm),
        toy_dataset(),
        epochs=5,
        recorder=second.append,
        state=load_state(tmp_path / "state", like),
        **options,
    )
    assert_same_bits(resumed, end)
    assert [c.epoch for c in second] == list(range(stop, 6))
    assert_same_bits([*first, *second], whole)


def test_checkpoints_come_in_order_and_hold_the_scores():
    """Both parts of the data, with running statistics; the last one is the returned state."""
    data, seen = toy_dataset(), []
    end = train(
        small(), data, key=KEY, batch_size=4, epochs=4, checkpoints=(4, 0, 2), recorder=seen.append
    )
    assert [c.epoch for c in seen] == [0, 2, 4]
    for c in seen:
        assert (c.loss, c.accuracy) == evaluate(small(), c.variables, data.x_train, data.y_train)
        assert (c.test_loss, c.test_accuracy) == evaluate(
            small(), c.variables, data.x_test, data.y_test
        )
    assert_same_bits(seen[0].state, init_state(small(), data.x_train, key=KEY))
    assert_same_bits(seen[-1].state, end)


def test_plain_arrays_have_no_test_scores():
    """(x, y) instead of a Dataset."""
    seen = []
    train(small(), toy(), key=KEY, batch_size=4, epochs=0, checkpoints=[0], recorder=seen.append)
    assert (seen[0].test_loss, seen[0].test_accuracy) == (None, None)


def test_evaluate_is_the_mean_over_all_examples():
    """NumPy, more examples than one chunk, running statistics that are not the batch's."""
    x, y = toy(training.EVALUATION_CHUNK + 77)
    variables = init_state(small(), x, key=KEY).variables
    stats = {"norm_0": {"mean": jnp.arange(6.0), "var": 1 + jnp.arange(6.0)}}
    layers = jax.tree.map(np.asarray, variables["params"])
    z = x @ layers["dense_0"]["kernel"] + layers["dense_0"]["bias"]
    h = np.maximum((z - np.arange(6)) / np.sqrt(1 + np.arange(6) + 1e-5), 0)
    expected = numpy_scores(h @ layers["output"]["kernel"] + layers["output"]["bias"], y)
    result = evaluate(small(), {**variables, "batch_stats": stats}, x, y)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_twins_start_from_the_same_weights():
    """Same key, BatchNorm or none: the study's comparison rests on it."""
    batch, none = (init_state(small(n), toy()[0], key=KEY).variables for n in ("batch", "none"))
    assert_same_bits({k: batch["params"][k] for k in none["params"]}, none["params"])


@pytest.mark.slow
def test_a_second_run_compiles_nothing():
    """Default optimizer, another key, other data of the same shape."""
    model = MLP((7,), 4)
    train(model, toy(), key=KEY, batch_size=4, epochs=2)
    before = training._epoch._cache_size()
    train(model, toy(seed=3), key=jax.random.key(8, impl="rbg"), batch_size=4, epochs=3)
    assert training._epoch._cache_size() == before


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "accuracy"), [("batch", 0.95), ("none", 0.93)])
def test_digits_are_learned(norm, accuracy):
    """The study's model, 20 epochs."""
    data = load("digits")
    end = train(MLP(norm=norm), data, key=KEY, batch_size=128, epochs=20)
    assert evaluate(MLP(norm=norm), end.variables, data.x_test, data.y_test).accuracy > accuracy


def test_any_module_that_takes_train_is_trained():
    """One from outside the zoo, without batch_stats: the loss falls."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.0, deterministic=not train)(nn.Dense(4)(x))

    x, y = toy()
    first, last = (train(Linear(), (x, y), key=KEY, batch_size=11, epochs=e) for e in (0, 50))
    losses = [evaluate(Linear(), s.variables, x, y).loss for s in (first, last)]
    assert losses[1] < losses[0]


X, Y = toy()
BAD_CALLS = [
    ({"batch_size": 23}, "batch_size: expected 1..22 for 22 examples, received 23"),
    ({"batch_size": 0}, "batch_size: expected 1..22"),
    ({"batch_size": 2.0}, "batch_size: expected an integer"),
    ({"batch_size": 1}, "at least 2 for a model with BatchNorm"),
    ({"epochs": -1}, "epochs: expected >= 0"),
    ({"epochs": 1.5}, "epochs: expected an integer"),
    ({"checkpoints": [3], "recorder": print}, r"0..2, received \[3\]"),
    ({"checkpoints": [-1], "recorder": print}, r"received \[-1\]"),
    ({"checkpoints": [1]}, "checkpoints and a recorder together"),
    ({"recorder": print}, "checkpoints and a recorder together"),
    ({"data": X}, "data: expected a Dataset"),
    ({"data": (X, Y[:-1])}, r"received \(22, 3\) and \(21,\)"),
    ({"data": (X[:0], Y[:0])}, "N >= 1"),
    ({"data": (X, Y.astype(float))}, "integer y"),
    ({"data": (X.astype(int), Y)}, "floating-point training x"),
    ({"data": (np.where(X > 1, np.nan, X), Y)}, "finite training x"),
    ({"data": (X, Y + 1)}, "labels in 0..3 for a model with 4 outputs, received 1..4"),
    ({"data": (X, Y - 1)}, "received -1..2"),
    ({"data": Dataset(X, Y, X, Y + 1, "toy", 4, (3,))}, "received 1..4"),
    (lambda: {"state": initial(MLP((5,), 4))}, "state: expected the variables"),
    (lambda: {"state": initial(small("none"))}, "state: expected the variables"),
    (lambda: {"state": initial(small(), optimizer=optax.sgd(1.0))}, "state: expected"),
    (lambda: {"state": initial(small())._replace(epoch=3)}, "epoch in 0..2, received 3"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS)
def test_bad_arguments_are_rejected(change, message):
    """Before any work."""
    change = change() if callable(change) else change
    options = {"data": (X, Y), "batch_size": 4, "epochs": 2, **change}
    with pytest.raises(ValueError, match=message):
        train(small(), options.pop("data"), key=KEY, **options)


@pytest.mark.parametrize(
    ("x", "y"), [(X, Y + 1), (X, Y[:-1]), (X[:, 0], Y), (np.where(X > 1, np.inf, X), Y)]
)
def test_evaluate_rejects_what_does_not_fit(x, y):
    """As train does."""
    variables = initial(small()).variables
    with pytest.raises(ValueError, match="expected"):
        evaluate(small(), variables, x, y)


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    """The new bytes are written elsewhere and moved: a failure leaves no trace."""
    state = initial(small())
    save_state(tmp_path / "state", state)

    def fail(self, target):
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        save_state(tmp_path / "state", state._replace(epoch=7))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert load_state(tmp_path / "state", state).epoch == 0


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        (MLP((5,), 4), None),
        (MLP((6, 6), 4), None),
        (small("none"), None),
        (small(), optax.sgd(1.0)),
    ],
)
def test_state_of_another_model_is_rejected(tmp_path, model, optimizer):
    """Other widths, depth, norm or optimizer."""
    save_state(tmp_path / "state", initial(small()))
    with pytest.raises(ValueError, match="state: expected"):
        load_state(tmp_path / "state", initial(model, optimizer=optimizer))


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-20], lambda _: b"", lambda _: b"not msgpack", lambda b: b + b"\0", flipped_bit],
)
def test_damaged_state_is_rejected(tmp_path, damage):
    """Cut, empty, another format, with more behind it, or with one bit of a weight flipped."""
    state = initial(small())
    save_state(tmp_path / "state", state)
    (tmp_path / "state").write_bytes(damage((tmp_path / "state").read_bytes()))
    with pytest.raises(ValueError, match="expected a saved state"):
        load_state(tmp_path / "state", state)


def test_state_is_a_pytree():
    """So that jax.tree and checkpoint libraries can walk it."""
    state = initial(small())
    doubled = jax.tree.map(lambda leaf: leaf * 2, state._replace(epoch=3))
    assert isinstance(doubled, TrainState)
    assert doubled.epoch == 6
