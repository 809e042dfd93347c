"""Data sets: bundled, synthetic and from local files."""

import gzip
import random
import struct
import sys

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from jaxregions import datasets
from jaxregions.datasets import load, read_idx

GENERATED = ["breast_cancer", "circles", "digits", "mnist1d", "moons", "spirals"]
IDX_NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def idx_bytes(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_arrays():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (6, 4, 5)), rng.integers(0, 256, (3, 4, 5))
    return train, np.array([3, 1, 4, 1, 5, 9]), test, np.array([2, 6, 5])


def write_idx(folder, *, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX_NAMES, mnist_arrays(), strict=True):
        data = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


def write_npz(file, **changes):
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = ("x_train", "y_train", "x_test", "y_test")
    arrays = [a.astype(np.uint8) for a in mnist_arrays()]
    np.savez(file, **{**dict(zip(keys, arrays, strict=True)), **changes})


def assert_is_mnist(data):
    x_train, y_train, x_test, y_test = mnist_arrays()
    np.testing.assert_array_equal(data.x_train * 255, x_train.reshape(6, 20))
    np.testing.assert_array_equal(data.x_test * 255, x_test.reshape(3, 20))
    np.testing.assert_array_equal(data.y_train, y_train)
    np.testing.assert_array_equal(data.y_test, y_test)


def rows(x):
    return sorted(map(tuple, x.tolist()))


def test_names_are_what_load_takes():
    """All of them, in order."""
    assert datasets.names() == tuple(sorted([*GENERATED, "mnist", "fashion_mnist"]))


def test_unknown_name_is_rejected_with_the_known_ones():
    """The message lists every name."""
    with pytest.raises(
        ValueError, match=r"expected one of breast_cancer.*spirals, received 'cifar'"
    ):
        load("cifar")


@pytest.mark.parametrize(
    ("name", "sizes", "classes", "shape"),
    [
        ("digits", (1438, 359), 10, (8, 8, 1)),
        ("breast_cancer", (456, 113), 2, (30,)),
        ("moons", (1600, 400), 2, (2,)),
        ("circles", (1600, 400), 2, (2,)),
        ("spirals", (1601, 399), 3, (2,)),
    ],
)
def test_sizes_and_types(name, sizes, classes, shape):
    """Flat float32 rows, int32 labels, 20 % for the test."""
    data = load(name)
    assert (len(data.x_train), len(data.x_test)) == sizes
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == (np.prod(shape),)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int32)
    assert (data.name, data.num_classes, data.input_shape) == (name, classes, shape)
    assert set(data.y_train) == set(data.y_test) == set(range(classes))
    assert np.isfinite(data.x_train).all()


@pytest.mark.parametrize("name", ["digits", "moons"])
def test_seed_determines_everything(name):
    """Same seed, same bits; another seed, another split."""
    one, again, other = load(name, seed=3), load(name, seed=3), load(name, seed=4)
    for a, b in zip(one[:4], again[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.x_train, other.x_train)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_split_is_stratified(fraction):
    """Each class gives its rounded share."""
    data = load("digits", test_fraction=fraction)
    counts = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(data.y_test), np.round(fraction * counts))
    np.testing.assert_array_equal(np.bincount(data.y_train) + np.bincount(data.y_test), counts)


def test_tiny_test_fraction_still_tests_every_class():
    """At least one example each."""
    np.testing.assert_array_equal(np.bincount(load("digits", test_fraction=1e-6).y_test), [1] * 10)


def test_training_order_is_shuffled():
    """Not class by class."""
    assert (np.diff(load("circles").y_train) != 0).sum() > 500


def test_digits_are_scikit_learns_divided_by_16():
    """Every example once, with its label."""
    data, source = load("digits"), load_digits()
    x = np.column_stack(
        [
            np.concatenate([data.x_train, data.x_test]) * 16,
            np.concatenate([data.y_train, data.y_test]),
        ]
    )
    assert rows(x) == rows(np.column_stack([source.data, source.target]))


def test_shaped_restores_the_images():
    """Row-major, channels last."""
    data = load("digits")
    assert data.shaped().x_test.shape == (359, 8, 8, 1)
    np.testing.assert_array_equal(data.shaped().x_train[5, 2, 3, 0], data.x_train[5, 2 * 8 + 3])


def test_breast_cancer_is_standardised_by_training_statistics():
    """Mean 0 and deviation 1 on the training part; the test part undoes to the source."""
    data, source = load("breast_cancer"), load_breast_cancer().data
    np.testing.assert_allclose(data.x_train.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(data.x_train.std(axis=0, dtype=np.float64), 1, atol=1e-6)
    both = np.concatenate([data.x_train, data.x_test]).astype(np.float64)
    slope = source.std(axis=0) / both.std(axis=0)
    restored = (both - both.mean(axis=0)) * slope + source.mean(axis=0)
    order = np.lexsort(np.round(restored, 2).T[:2])
    expected = source[np.lexsort(np.round(source, 2).T[:2])]
    np.testing.assert_allclose(restored[order][:, :2], expected[:, :2], rtol=1e-4)


def test_circles_have_radii_one_and_a_half():
    """Mean radius by class; noise 0.1 adds about sigma^2 / 2r."""
    data = load("circles")
    radius = np.linalg.norm(data.x_train, axis=1)
    means = [radius[data.y_train == c].mean() for c in range(2)]
    np.testing.assert_allclose(means, [1 + 0.005, 0.5 + 0.01], atol=0.01)


def test_moons_are_point_reflections_of_each_other():
    """The mean of a half circle is at height 2 / pi over its diameter."""
    data = load("moons")
    means = np.stack([data.x_train[data.y_train == c].mean(axis=0) for c in range(2)])
    height = 2 / np.pi - 0.25
    np.testing.assert_allclose(means, [[-0.5, height], [0.5, -height]], atol=0.08)


def test_spirals_turn_once():
    """Angle = 2 pi (radius + class / 3), up to the noise."""
    data = load("spirals")
    radius = np.linalg.norm(data.x_train, axis=1)
    angle = np.arctan2(data.x_train[:, 1], data.x_train[:, 0])
    turn = np.exp(1j * (angle - 2 * np.pi * (radius + data.y_train / 3)))
    np.testing.assert_array_less(np.abs(np.angle(turn[radius > 0.5])), 0.9)
    assert np.abs(np.angle(turn[radius > 0.5])).mean() < 0.2


@pytest.mark.slow
def test_mnist1d_is_the_packages_own_generator():
    """Seed 42 is its published default: the same signals."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    data = load("mnist1d", seed=42)
    expected = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    assert (data.x_train.shape, data.x_test.shape) == ((4000, 40), (1000, 40))
    assert data.input_shape == (40, 1)
    assert rows(np.concatenate([data.x_train, data.x_test])) == rows(expected)


def test_mnist1d_leaves_the_global_generators_alone():
    """The package reseeds them; the caller's draws go on."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    load("mnist1d")
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


def test_missing_mnist1d_names_the_extra(monkeypatch):
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(ImportError, match=r"jaxregions\[mnist1d\]"):
        load("mnist1d")


def test_missing_scikit_learn_is_named(monkeypatch):
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        load("digits")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, None, True])
def test_bad_seed_is_rejected(seed):
    """Also where a generator would only fail later."""
    with pytest.raises(ValueError, match="seed: expected"):
        load("moons", seed=seed)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_bad_test_fraction_is_rejected(fraction):
    """Both parts need examples."""
    with pytest.raises(ValueError, match="test_fraction: expected"):
        load("moons", test_fraction=fraction)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("sub_folder", ["", "mnist"])
def test_idx_files_in_path_or_its_sub_folder(tmp_path, compressed, sub_folder):
    """Raw or gzip-compressed."""
    write_idx(tmp_path / sub_folder, compressed=compressed)
    data = load("mnist", path=tmp_path)
    assert_is_mnist(data)
    assert (data.num_classes, data.input_shape) == (10, (4, 5, 1))


@pytest.mark.parametrize("place", ["fashion_mnist.npz", "fashion_mnist/fashion_mnist.npz"])
def test_npz_archive(tmp_path, place):
    """Under the name of the data set."""
    write_npz(tmp_path / place)
    assert_is_mnist(load("fashion_mnist", path=str(tmp_path)))


def test_environment_variable_names_the_folder(tmp_path, monkeypatch):
    """Where no path is given."""
    write_idx(tmp_path / "mnist")
    monkeypatch.setenv("JAXREGIONS_DATA", str(tmp_path))
    assert_is_mnist(load("mnist"))


def test_shared_folder_is_not_taken_for_either_data_set(tmp_path, monkeypatch):
    """IDX files straight in JAXREGIONS_DATA could be MNIST or Fashion-MNIST."""
    write_idx(tmp_path)
    monkeypatch.setenv("JAXREGIONS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="fashion_mnist: expected"):
        load("fashion_mnist")


def test_missing_files_are_named_with_the_folder(tmp_path):
    """Every name that would have done, where it was looked for, and what is there."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"mnist\.npz") as caught:
        load("mnist", path=tmp_path)
    for part in (*IDX_NAMES, str(tmp_path), "notes.txt"):
        assert part in str(caught.value)


def test_missing_folder_is_said(tmp_path):
    """Rather than an empty listing."""
    with pytest.raises(ValueError, match="no folder"):
        load("mnist", path=tmp_path / "nowhere")


def test_no_folder_at_all_is_rejected(monkeypatch):
    """Neither path nor variable."""
    monkeypatch.delenv("JAXREGIONS_DATA", raising=False)
    with pytest.raises(ValueError, match="JAXREGIONS_DATA"):
        load("mnist")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"\1" + data[1:], "magic number"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "magic number"),
        (lambda data: data[:3] + b"\0" + data[4:], "magic number"),
        (lambda _: b"", "empty file"),
        (lambda data: data[:9], "IDX sizes"),
        (lambda data: data[:-1], "expected 24 values"),
        (lambda data: data + b"\0", "received 25"),
        (lambda data: gzip.compress(data)[:-9], "intact gzip"),
        (lambda data: gzip.compress(data)[:12] + b"\xff" * 30, "intact gzip"),
    ],
)
def test_damaged_idx_file_is_rejected(tmp_path, damage, message):
    """Magic number, type, axes, sizes, length, compression."""
    file = tmp_path / "images"
    file.write_bytes(damage(idx_bytes(np.arange(24).reshape(2, 3, 4))))
    with pytest.raises(ValueError, match=message):
        read_idx(file)


def test_idx_file_is_read_as_it_was_written(tmp_path):
    """Three axes, big-endian sizes."""
    array = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "images").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "images"), array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": np.array([2, 6], np.uint8)}, "labels"),
        ({"y_train": np.array([0, 1, 2, 3, 4, 10], np.uint8)}, "0..9, received 0..10"),
        ({"y_test": np.array([2.0, 6.0, 5.0])}, "integer labels"),
        ({"x_train": np.zeros((6, 4, 5))}, "uint8 images"),
        ({"x_train": np.zeros((6, 20), np.uint8)}, "uint8 images"),
        ({"x_test": np.zeros((3, 4, 6), np.uint8)}, "uint8 images"),
        ({"x_test": np.array([None] * 3)}, "NumPy archive"),
    ],
)
def test_bad_arrays_are_rejected(tmp_path, changes, message):
    """Counts, ranges, types and shapes that do not fit."""
    write_npz(tmp_path / "mnist.npz", **changes)
    with pytest.raises(ValueError, match=message):
        load("mnist", path=tmp_path)


def test_archive_without_an_array_is_rejected(tmp_path):
    """The missing keys are named."""
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros(1), y_train=np.zeros(1))
    with pytest.raises(ValueError, match=r"missing \['x_test', 'y_test'\]"):
        load("mnist", path=tmp_path)


def test_damaged_archive_is_rejected(tmp_path):
    """Not a zip file."""
    (tmp_path / "mnist.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="NumPy archive"):
        load("mnist", path=tmp_path)
