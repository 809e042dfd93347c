"""Run a study: train both models, measure at the checkpoints, write the report."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxregions import datasets, training
from jaxregions.datasets import Dataset
from jaxregions.exact import rational_backend
from jaxregions.partitions import Partition
from jaxregions.study import deep, expected, figures, full, measure, report, store, story
from jaxregions.study.config import StudyConfig, activation_named
from jaxregions.study.measure import Scene
from jaxregions.study.table import BATCH, MODELS, Table, tabulate
from jaxregions.zoo import MLP

__all__ = ["Progress", "Study", "StudyResult", "prepare", "run"]

Progress = Callable[[str, int], None]  # (what is being done, steps done since the last call)


class Study(NamedTuple):
    """A study that is ready to run: all that can be wrong with its input has been checked."""

    config: StudyConfig
    data: Dataset
    scene: Scene
    models: dict[str, MLP]
    steps: int


class StudyResult(NamedTuple):
    """The tidy table, the raw numbers (model -> epoch -> name -> array) and the page."""

    table: Table
    raw: dict[str, dict[int, dict[str, np.ndarray]]]
    page: Path


def prepare(config: StudyConfig) -> Study:
    """Load the data and check everything; no training, nothing written.

    Raises:
      ValueError: data that cannot be loaded or is too small, an output folder that is not the
        study's to write to, a resumed study of another configuration.
    """
    store.prepare_folder(config)
    data = datasets.load(config.dataset, seed=config.seed, path=config.data_path)
    place = measure.scene(config, data)
    models = {
        norm: MLP(
            widths=config.widths,
            num_outputs=data.num_classes,
            activation=activation_named(config.activation),
            norm=norm,
            bias_std=config.bias_std,
        )
        for norm in MODELS
    }
    measured = len(config.schedule) * measure.pieces(config, data.x_train.shape[1])
    each = config.epochs + 1 + measured + len(deep.picture_epochs(config))
    each += sum(_full_steps(config, data.x_train.shape[1], e) for e in config.schedule)
    return Study(config, data, place, models, len(MODELS) * each + 2)


def run(study: Study, progress: Progress | None = None) -> StudyResult:
    """Train, measure and write ``config.output``; ``progress`` gets ``study.steps`` steps in all.

    The numbers depend on the configuration only (on one machine with one set of versions); an
    interrupted run that is resumed gives the same ones.
    """
    config = study.config
    store.claim(config)
    progress = progress or _silent
    raw = {norm: _measured(study, norm, progress) for norm in MODELS}
    pictures = _pictures(study, raw, progress)
    progress("Expected regions", 0)
    planes = story.picture_planes(raw)
    ray = expected.expected(config, study.scene, study.models[BATCH], planes)
    progress("Writing the report", 1)
    table = tabulate(config, study.scene, raw)
    page = _write(study, table, raw, pictures, ray)
    progress("Done", 1)
    return StudyResult(table, raw, page)


def _pictures(study: Study, raw: dict, progress: Progress) -> dict[tuple[str, int], Partition]:
    """The picture's partition by both models, at a few checkpoints."""
    drawn = {}
    for norm, checkpoints in raw.items():
        for epoch in deep.picture_epochs(study.config):
            progress(f"Partition at epoch {epoch}", 0)
            drawn[norm, epoch] = deep.picture(study.scene, study.models[norm], checkpoints[epoch])
            progress(f"Partition at epoch {epoch}", 1)
    return drawn


def _measured(study: Study, norm: str, progress: Progress) -> dict[int, dict[str, np.ndarray]]:
    """Train one model and measure it at the checkpoints, those already stored excepted."""
    config, model = study.config, study.models[norm]
    name = "with BatchNorm" if norm == "batch" else "without BatchNorm"
    d = study.data.x_train.shape[1]
    optimizer = _adam(config.learning_rate)
    key = jax.random.key(config.seed)
    example = jnp.asarray(study.data.x_train[:1])
    done = store.finished(config, norm)
    raw = {epoch: store.read_checkpoint(config, norm, epoch) for epoch in done}
    curves = raw[done[-1]]["curves"].tolist() if done else []
    state, start = None, -1
    if done:
        start = done[-1]
        before = len(done) * measure.pieces(config, d)
        before += sum(_full_steps(config, d, e) for e in done)
        progress(f"{name}: resumed", start + 1 + before)
        if start == config.epochs:
            return raw
        like = training.init_state(model, example, key=key, optimizer=optimizer)
        state = store.read_state(config, norm, start, like)

    def record(checkpoint: training.Checkpoint) -> None:
        epoch = checkpoint.epoch
        if epoch <= start:
            return
        progress(f"{name}: epoch {epoch}", 1)
        scores = (
            checkpoint.loss,
            checkpoint.accuracy,
            checkpoint.test_loss,
            checkpoint.test_accuracy,
        )
        curves.append([epoch, *scores])
        if epoch in config.schedule:
            what = f"{name}: measuring at epoch {epoch}"
            progress(what, 0)
            planes = measure.first_layer(
                model, checkpoint.variables, study.scene.batch, model.activation
            )
            found = measure.measure(
                config,
                study.scene,
                model,
                checkpoint.variables,
                planes,
                lambda: progress(what, 1),
            )
            net = deep.traced(study.scene, model, checkpoint.variables)
            found |= deep.count(config, study.scene, net, affine=epoch == config.epochs)
            progress(what, 1)
            if full.has_full(config, d) and epoch in full.full_epochs(config):
                found |= full.count(config, study.scene, net, lambda: progress(what, 1))
            found |= deep.stored_parameters(checkpoint.variables)
            found["curves"] = np.array(curves, np.float64)
            found |= {f"planes_{f}": getattr(planes, f) for f in ("normal", "point", "offset")}
            training.save_state(store.state_path(config, norm, epoch), checkpoint.state)
            store.write_checkpoint(config, norm, epoch, found)
            raw[epoch] = found

    progress(f"{name}: compiling", 0)
    training.train(
        model,
        study.data,
        key=key,
        optimizer=optimizer,
        batch_size=config.batch_size,
        epochs=config.epochs,
        checkpoints=range(config.epochs + 1),
        recorder=record,
        state=state,
    )
    return raw


def _full_steps(config: StudyConfig, d: int, epoch: int) -> int:
    counted = full.has_full(config, d) and epoch in full.full_epochs(config)
    return len(config.radii) if counted else 0


def _write(study: Study, table: Table, raw: dict, pictures: dict, ray: expected.Expected) -> Path:
    config, root = study.config, Path(study.config.output)
    about = {
        "config": config.results_fields(),
        "versions": store.versions(),
        "device": _device(),
        "rational_arithmetic": rational_backend(),
        "data": {
            "training_examples": len(study.data.x_train),
            "held_out_examples": len(study.data.x_test),
            "input_dimension": study.data.x_train.shape[1],
            "classes": study.data.num_classes,
        },
    }
    store.write_text(root / "results.csv", store.rows_as_csv(table.rows))
    along = expected.rows(ray)
    store.write_text(root / "expected.csv", store.as_csv(along))
    described: dict[str, Any] = {
        **about,
        "rows": store.rows_as_json(table.rows),
        "expected": along,
    }
    store.write_text(root / "results.json", json.dumps(described, indent=1, allow_nan=False) + "\n")
    _write_windows(root / "windows.npz", study, raw)
    counts = story.picture_counts(study.scene, raw)
    drawn = figures.draw(config, study.scene, table, raw, counts, pictures, ray, root / "figures")
    told = story.sentences(config, study.scene, table, counts, pictures)
    told["expected"] = expected.sentence(config, ray)
    page = root / "index.html"
    store.write_text(page, report.page(config, study.scene, table, drawn, told, about))
    return page


@functools.cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    # One object: compiled epochs are looked up by the optimizer's identity.
    return optax.adam(learning_rate)


def _silent(_what: str, _steps: int) -> None:
    pass


def _write_windows(path: Path, study: Study, raw: dict) -> None:
    """The raw numbers, (checkpoints, radii, 2, W, ...) for each model, and where they are from.

    Those through the centroid are (checkpoints, slice radii, C, ...), in the slices spanned by the
    first two columns of bases[0, :C]. Counts of all layers in full-dimensional windows are those of
    the first and the last checkpoint, (2, radii, 2, F), around the first F centres.
    """
    config, place = study.config, study.scene
    arrays = {
        "checkpoints": np.array(config.schedule),
        "radii": np.array(config.radii),
        "slice_radii": np.array(config.slice_radii),
        "batch": place.batch,
        "centers": place.centers,
        "bases": place.bases,
        "distances": place.distances,
    }
    for norm, checkpoints in raw.items():
        skip = ("curves", "planes_", deep.PARAMETERS, full.FULL)
        names = [n for n in checkpoints[0] if not n.startswith(skip)]
        for name in names:
            stacked = [checkpoints[epoch][name] for epoch in config.schedule]
            arrays[f"{norm}_{name}"] = np.stack(stacked)
        for name in (n for n in checkpoints[0] if n.startswith(full.FULL)):
            stacked = [checkpoints[epoch][name] for epoch in full.full_epochs(config)]
            arrays[f"{norm}_{name}"] = np.stack(stacked)
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}"
