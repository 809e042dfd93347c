"""Data for the study: bundled with a dependency, read from local files, or seeded synthetic."""

from __future__ import annotations

import gzip
import math
import os
import random
import struct
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Dataset", "load", "names", "read_idx"]

DATA_VARIABLE = "JAXREGIONS_DATA"
NUM_SYNTHETIC = 2000


class Dataset(NamedTuple):
    """Examples as flat float32 rows, labels as int32 in 0..num_classes-1.

    Fields:
      x_train, x_test: (N, d); d = the product of input_shape, in row-major order.
      y_train, y_test: (N,).
      input_shape: what one row stands for, channels last: (8, 8, 1) for digits, (d,) without axes.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str
    num_classes: int
    input_shape: tuple[int, ...]

    def shaped(self) -> Dataset:
        """The same examples as (N, *input_shape), for convolutional models."""
        shape = (-1, *self.input_shape)
        return self._replace(x_train=self.x_train.reshape(shape), x_test=self.x_test.reshape(shape))


def names() -> tuple[str, ...]:
    """The data sets that ``load`` knows."""
    return tuple(sorted((*_GENERATED, *_FROM_FILES)))


def load(
    name: str, *, seed: int = 0, path: str | Path | None = None, test_fraction: float = 0.2
) -> Dataset:
    """One data set, split into training and test parts.

    ===============  ==========  ================================================================
    name             d, classes  values
    ===============  ==========  ================================================================
    digits           64, 10      1797 images of scikit-learn, divided by 16: [0, 1]
    breast_cancer    30, 2       569 examples of scikit-learn, each feature minus the training
                                 mean, divided by the training standard deviation
    moons            2, 2        two interleaved half circles of radius 1, centred; noise 0.1
    circles          2, 2        two concentric circles, radii 1 and 0.5; noise 0.1
    spirals          2, 3        three spiral arms in the unit disc; noise 0.02
    mnist1d          40, 10      5000 signals made by the package mnist1d, which standardises all of
                                 them together
    mnist            784, 10     images from local files, divided by 255: [0, 1]
    fashion_mnist    784, 10     the same
    ===============  ==========  ================================================================

    All but the last two are split here: stratified (each class gives round(test_fraction * its
    size) test examples, at least one) and shuffled, both by ``seed``, which also seeds the
    synthetic data. The last two keep the split of their files, so seed and test_fraction do not
    matter. They are looked for in ``path``, else in the folder that the environment variable
    JAXREGIONS_DATA names: ``<name>.npz`` (x_train, y_train, x_test, y_test), a sub-folder
    ``<name>`` with that file or with the four IDX files (train-images-idx3-ubyte,
    train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each raw or .gz), or
    the IDX files directly in ``path``. Nothing is ever downloaded.

    Args:
      name: one of ``names()``.
      seed: a non-negative integer.
      path: folder of the files; only mnist and fashion_mnist read it.
      test_fraction: in (0, 1).

    Raises:
      ValueError: an unknown name, a bad seed or fraction, files that are missing or malformed.
      ImportError: scikit-learn or mnist1d is needed and not installed.
    """
    if name not in names():
        raise ValueError(f"name: expected one of {', '.join(names())}, received {name!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an integer in 0..2**32 - 1, received {seed!r}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number in (0, 1), received {test_fraction}")
    if name in _FROM_FILES:
        return _load_images(name, path)
    make, input_shape = _GENERATED[name]
    x, y = make(int(seed))
    train, test = _stratified_split(y, test_fraction, int(seed))
    parts = x[train], x[test]
    if name == "breast_cancer":
        parts = _standardise(*parts)
    x_train, x_test = (np.ascontiguousarray(part, np.float32) for part in parts)
    y = y.astype(np.int32)
    return Dataset(x_train, y[train], x_test, y[test], name, int(y.max()) + 1, input_shape)


def read_idx(path: str | Path) -> np.ndarray:
    """The unsigned-byte array in an IDX file, raw or gzip-compressed (told by its content).

    Layout: bytes 0, 0, 8 (unsigned byte), n; n big-endian 32-bit sizes; the values, row-major.

    Raises:
      ValueError: another magic number or element type, a length that does not fit the sizes,
        damaged compression.
    """
    path = Path(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: expected intact gzip data, received {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] == 0:
        raise ValueError(
            f"{path}: expected the IDX magic number 00 00 08 nn (unsigned bytes, nn axes), "
            f"received {data[:4].hex(' ') or 'an empty file'}"
        )
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path}: expected {data[3]} IDX sizes, received {len(data)} bytes in all")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape)} values for the IDX sizes {shape}, "
            f"received {len(data) - start}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _stratified_split(y: np.ndarray, test_fraction: float, seed: int):
    """Shuffled indices of the training and test examples, every class in both."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        size = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test.append(members[:size])
        train.append(members[size:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def _standardise(train: np.ndarray, test: np.ndarray):
    mean, std = train.mean(axis=0), train.std(axis=0)
    return (train - mean) / std, (test - mean) / std


def _sklearn_datasets() -> ModuleType:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "this data set comes with scikit-learn: pip install scikit-learn"
        ) from error
    return datasets


def _digits(_seed: int):
    x, y = _sklearn_datasets().load_digits(return_X_y=True)
    return x / 16, y


def _breast_cancer(_seed: int):
    return _sklearn_datasets().load_breast_cancer(return_X_y=True)


def _moons(seed: int):
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], NUM_SYNTHETIC // 2)
    angle, flip = rng.uniform(0, np.pi, len(y)), 1 - 2 * y
    x = np.stack([flip * (np.cos(angle) - 0.5), flip * (np.sin(angle) - 0.25)], axis=1)
    return x + rng.normal(0, 0.1, x.shape), y


def _circles(seed: int):
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], NUM_SYNTHETIC // 2)
    angle, radius = rng.uniform(0, 2 * np.pi, len(y)), 1 - 0.5 * y
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return x + rng.normal(0, 0.1, x.shape), y


def _spirals(seed: int):
    rng = np.random.default_rng(seed)
    y = np.arange(NUM_SYNTHETIC) % 3
    radius = rng.uniform(0.05, 1, len(y))
    angle = 2 * np.pi * (radius + y / 3)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return x + rng.normal(0, 0.02, x.shape), y


def _mnist1d(seed: int):
    try:
        from mnist1d import data
    except ImportError as error:
        raise ImportError(
            "the data set mnist1d needs the package mnist1d: pip install 'jaxregions[mnist1d]'"
        ) from error
    args: Any = data.get_dataset_args()
    args.seed = seed
    # make_dataset reseeds the global generators: hand them back as they were.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = data.make_dataset(args)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    x = np.concatenate([made["x"], made["x_test"]])
    return x, np.concatenate([made["y"], made["y_test"]])


_GENERATED = {
    "digits": (_digits, (8, 8, 1)),
    "breast_cancer": (_breast_cancer, (30,)),
    "moons": (_moons, (2,)),
    "circles": (_circles, (2,)),
    "spirals": (_spirals, (2,)),
    "mnist1d": (_mnist1d, (40, 1)),
}
_FROM_FILES = ("fashion_mnist", "mnist")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _load_images(name: str, path: str | Path | None) -> Dataset:
    arrays = _read_arrays(name, path)
    x_train, y_train, x_test, y_test = arrays
    for x, y in ((x_train, y_train), (x_test, y_test)):
        fits = x.ndim == 3 and y.shape == x.shape[:1] and x.shape[1:] == x_train.shape[1:]
        if not fits or x.dtype != np.uint8 or not np.issubdtype(y.dtype, np.integer) or not x.size:
            raise ValueError(
                f"{name}: expected uint8 images (N, H, W) and integer labels (N,), received "
                f"{[f'{a.dtype}{a.shape}' for a in arrays]}"
            )
        if y.min() < 0 or y.max() > 9:
            raise ValueError(f"{name}: expected labels in 0..9, received {y.min()}..{y.max()}")
    flat = [x.reshape(len(x), -1).astype(np.float32) / 255 for x in (x_train, x_test)]
    labels = [y.astype(np.int32) for y in (y_train, y_test)]
    return Dataset(
        flat[0], labels[0], flat[1], labels[1], name, 10, (*map(int, x_train.shape[1:]), 1)
    )


def _read_arrays(name: str, path: str | Path | None) -> tuple[np.ndarray, ...]:
    root = os.environ.get(DATA_VARIABLE) if path is None else path
    if not root:
        raise ValueError(
            f"{name}: expected a folder with its files as path, or in the environment variable "
            f"{DATA_VARIABLE}, received neither"
        )
    root = Path(root)
    for archive in (root / f"{name}.npz", root / name / f"{name}.npz"):
        if archive.is_file():
            return _read_npz(archive)
    # mnist and fashion_mnist use the same file names: a shared folder cannot tell them apart.
    folders = [root / name] if path is None else [root / name, root]
    for folder in folders:
        files = [_existing(folder / file) for file in _IDX_FILES]
        if None not in files:
            return tuple(read_idx(file) for file in files if file is not None)
    raise ValueError(
        f"{name}: expected {name}.npz in {root} or {root / name}, or the files "
        f"{', '.join(_IDX_FILES)} (raw or .gz) in {' or '.join(map(str, folders))}; received "
        f"{_listing(root)}"
    )


def _existing(file: Path) -> Path | None:
    """file or file.gz, whichever is there."""
    candidates = (file, file.with_name(file.name + ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder {folder}"
    found = sorted(entry.name for entry in folder.iterdir())
    return f"a folder that holds {', '.join(found[:10]) or 'nothing'}"


def _read_npz(archive: Path) -> tuple[np.ndarray, ...]:
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            missing = [key for key in _ARRAYS if key not in arrays]
            if not missing:
                return tuple(arrays[key] for key in _ARRAYS)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{archive}: expected a NumPy archive, received {error}") from error
    raise ValueError(f"{archive}: expected the arrays {_ARRAYS}, missing {missing}")
