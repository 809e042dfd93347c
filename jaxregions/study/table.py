"""From raw numbers per window to the tidy table of means, differences and intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxregions.study.config import StudyConfig
from jaxregions.study.deep import CENTROID
from jaxregions.study.full import FULL, full_epochs, has_full
from jaxregions.study.measure import KINDS, Scene
from jaxregions.study.statistics import Row, Summary, proportion, summarize, unpaired

__all__ = ["BATCH", "DIFFERENCE", "MODELS", "NONE", "OFFSET", "PLACES", "Table", "tabulate"]

MODELS = BATCH, NONE = ("batch", "none")
DIFFERENCE = "batch - none"
OFFSET = "data - control"
PLACES = (*KINDS, CENTROID)  # of the slices in which the whole network is counted
CURVES = (("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy"))

Raw = Mapping[str, np.ndarray]
Results = Mapping[str, Mapping[int, Raw]]  # model -> epoch -> name -> array


class Table:
    """The rows, and each of them by what it is of."""

    def __init__(self, rows: list[Row]):
        self.rows = rows
        self._values = {row[:-1]: row.value for row in rows}

    def __call__(
        self,
        quantity: str,
        *,
        model: str,
        epoch: int,
        kind: str,
        layer: int = 1,
        radius: float | None = None,
        dimension: int | None = None,
    ) -> Summary:
        """The one value with these labels (KeyError without it)."""
        return self._values[(model, epoch, layer, kind, radius, dimension, quantity)]


def tabulate(config: StudyConfig, place: Scene, results: Results) -> Table:
    """All means over windows, with the paired differences between the models.

    ``batch - none`` pairs the models window by window. ``data - control`` compares two independent
    sets of windows. Deeper layers' hits are averaged over the windows that lie in one parent
    region; their difference pairs the windows where that holds for both models. Likewise, counts
    of the whole network are averaged over the windows that were counted to the end.
    """
    rows = list(_distances(place))
    for model in MODELS:
        rows += _curves(model, results[model])
    for epoch in config.schedule:
        raws = {model: results[model][epoch] for model in MODELS}
        rows += _layer_one(config, place, epoch, raws)
        rows += _deeper(config, place, epoch, raws)
        rows += _network(config, epoch, raws)
        if has_full(config, place.centers.shape[-1]) and epoch in full_epochs(config):
            rows += _full(config, place, epoch, raws)
    return Table(rows)


def _distances(place: Scene) -> Iterator[Row]:
    d = place.centers.shape[-1]
    for kind, values in zip(KINDS, place.distances, strict=True):
        yield Row("", 0, 0, kind, None, d, "centroid_distance", summarize(values))
    difference = unpaired(*place.distances)
    yield Row("", 0, 0, OFFSET, None, d, "centroid_distance", difference)


def _curves(model: str, checkpoints: Mapping[int, Raw]) -> Iterator[Row]:
    curves = checkpoints[max(checkpoints)]["curves"]
    for epoch, *values in curves.tolist():
        for (kind, quantity), value in zip(CURVES, values, strict=True):
            summary = Summary(value, np.nan, np.nan, np.nan, 1)
            yield Row(model, int(epoch), 0, kind, None, None, quantity, summary)


def _layer_one(config: StudyConfig, place: Scene, epoch: int, raws: Mapping[str, Raw]):
    d = place.centers.shape[-1]
    names = [("hits", d, config.radii, "hits")]
    names += [("at_least", d, config.radii, "regions_at_least")]
    names += [("log10_at_most", d, config.radii, "log10_regions_at_most")]
    for k in config.slice_dimensions:
        if k <= d:
            names.append((f"regions_{k}", k, config.slice_radii, "regions"))
            names.append((f"log_density_{k}", k, config.slice_radii, "log_density"))
    for name, dimension, radii, quantity in names:
        for i, radius in enumerate(radii):
            values = {model: raws[model][name][i] for model in MODELS}
            for labels, summary in _compared(values):
                yield _row(epoch, 1, labels, radius, dimension, quantity, summary)


def _compared(values: Mapping[str, np.ndarray]) -> Iterator[tuple[tuple[str, str], Summary]]:
    """Both models, both kinds, and the differences; values: (2, W) per model."""
    values = {**values, DIFFERENCE: _minus(values[BATCH], values[NONE])}
    for model, both in values.items():
        for kind, per_window in zip(KINDS, both, strict=True):
            yield (model, kind), summarize(per_window)
        yield (model, OFFSET), unpaired(*both)


def _minus(a: Any, b: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # bounds beyond float64 are infinite: no difference
        return np.asarray(a, np.float64) - np.asarray(b, np.float64)


def _deeper(config: StudyConfig, place: Scene, epoch: int, raws: Mapping[str, Raw]):
    d = place.centers.shape[-1]
    for layer in range(2, len(config.widths) + 1):
        for i, radius in enumerate(config.radii):
            hits = {m: raws[m]["deep_hits"][i, ..., layer - 2] for m in MODELS}
            inside = {m: raws[m]["deep_inside"][i, ..., layer - 2] for m in MODELS}
            for j, kind in enumerate(KINDS):
                for model in MODELS:
                    share = proportion(inside[model][j])
                    mean = summarize(hits[model][j][inside[model][j]])
                    labels = (model, kind)
                    yield _row(epoch, layer, labels, radius, d, "share_in_parent", share)
                    yield _row(epoch, layer, labels, radius, d, "hits_in_parent", mean)
                both = inside[BATCH][j] & inside[NONE][j]
                gap = summarize(_minus(hits[BATCH][j], hits[NONE][j])[both])
                labels = (DIFFERENCE, kind)
                yield _row(epoch, layer, labels, radius, d, "hits_in_parent", gap)


def _network(config: StudyConfig, epoch: int, raws: Mapping[str, Raw]):
    """Layer l: of layers 1, ..., l for regions, of layer l for switching units."""
    layers = len(config.widths)
    for i, radius in enumerate(config.slice_radii):
        for place in PLACES:
            found = {model: _counted(raws[model], place, i) for model in MODELS}
            exact = {model: found[model]["exact"] for model in MODELS}
            for model in MODELS:
                share = proportion(exact[model])
                yield _row(epoch, layers, (model, place), radius, 2, "share_exact", share)
            for quantity, layer, values in _network_values(found, layers, epoch == config.epochs):
                for model in MODELS:
                    mean = summarize(values[model][exact[model]])
                    yield _row(epoch, layer, (model, place), radius, 2, quantity, mean)
                both = exact[BATCH] & exact[NONE]
                gap = summarize(_minus(values[BATCH], values[NONE])[both])
                yield _row(epoch, layer, (DIFFERENCE, place), radius, 2, quantity, gap)


def _full(config: StudyConfig, place: Scene, epoch: int, raws: Mapping[str, Raw]):
    """The same in full-dimensional windows, for all layers together."""
    d, layers = place.centers.shape[-1], len(config.widths)
    for i, radius in enumerate(config.radii):
        for j, kind in enumerate(KINDS):
            values = {model: raws[model][f"{FULL}regions"][i, j] for model in MODELS}
            exact = {model: raws[model][f"{FULL}exact"][i, j] for model in MODELS}
            where = (radius, d)
            for model in MODELS:
                labels, mean = (model, kind), summarize(values[model][exact[model]])
                share = proportion(exact[model])
                yield _row(epoch, layers, labels, *where, "share_exact", share)
                yield _row(epoch, layers, labels, *where, "regions_through_layer", mean)
            both = exact[BATCH] & exact[NONE]
            gap = summarize(_minus(values[BATCH], values[NONE])[both])
            labels = (DIFFERENCE, kind)
            yield _row(epoch, layers, labels, *where, "regions_through_layer", gap)


def _counted(raw: Raw, place: str, i: int) -> dict[str, np.ndarray]:
    names = ("regions", "hits", "affine", "log_density", "exact")
    if place == CENTROID:
        return {name: raw[f"centroid_{name}"][i] for name in names}
    return {name: raw[f"network_{name}"][i, KINDS.index(place)] for name in names}


def _network_values(found: Mapping[str, Raw], layers: int, last: bool):
    for layer in range(1, layers + 1):
        for name, quantity in (("regions", "regions_through_layer"), ("hits", "switching_units")):
            yield quantity, layer, {m: found[m][name][:, layer - 1] for m in MODELS}
    whole = {"log_density": "log_density_through_layer"}
    if last:
        whole["affine"] = "affine_regions"
    for name, quantity in whole.items():
        yield quantity, layers, {m: found[m][name] for m in MODELS}


def _row(epoch, layer, labels, radius, dimension, quantity, summary) -> Row:
    model, kind = labels
    return Row(model, epoch, layer, kind, radius, dimension, quantity, summary)
