"""The study's figures, each a PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxregions.batchnorm import centroid
from jaxregions.partitions import Partition, level_set
from jaxregions.plotting import BLUE, ORANGE, plot_arrangement, plot_partition, plot_series
from jaxregions.regions import Status
from jaxregions.study.config import StudyConfig
from jaxregions.study.deep import CENTROID, picture_epochs
from jaxregions.study.expected import Expected, regions
from jaxregions.study.full import MOST, full_epochs, has_full, quartiles
from jaxregions.study.measure import KINDS, Scene
from jaxregions.study.statistics import Summary
from jaxregions.study.story import deep_radius, epochs, main_radius, number, picture_planes
from jaxregions.study.table import BATCH, DIFFERENCE, MODELS, NONE, Results, Table

__all__ = ["draw", "draw_expected"]

COLORS = {BATCH: BLUE, NONE: ORANGE}
NAMES = {BATCH: "BN", NONE: "no BN"}
LINES = {"data": "-", "control": "--"}
MARKERS = {"data": "o", "control": "s"}
WHERE = {"data": "near data", "control": "off data"}


def draw(
    config: StudyConfig,
    place: Scene,
    table: Table,
    raw: Results,
    counts: dict[tuple[str, int], int],
    pictures: Mapping[tuple[str, int], Partition],
    found: Expected,
    folder: Path,
) -> dict[str, Path]:
    """Draw all figures that this study has; by name."""
    d = place.centers.shape[-1]
    drawn = {
        "training": _training(config, table),
        "hits": _hits(config, table, d),
        "radius": _radius(config, table, d),
    }
    dimensions = [k for k in config.slice_dimensions if k <= d]
    if dimensions:
        drawn["regions"] = _regions(config, table, dimensions)
    drawn["expected"] = draw_expected(config, found)
    if len(config.widths) > 1:
        drawn["deeper"] = _deeper(config, table, d)
    drawn["network"] = _network(config, table)
    if has_full(config, d):
        drawn["full"] = _full(config, raw, d)
    drawn["arrangement"] = _arrangement(config, place, raw, counts)
    drawn["partitions"] = _partitions(config, place, pictures, "stage")
    drawn["slopes"] = _partitions(config, place, pictures, "slope")
    paths = {}
    for name, figure in drawn.items():
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=140, facecolor="white")
    return paths


def _figure(rows: int, columns: int, width: float, height: float, **options: Any):
    figure = _empty(width, height)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.grid(color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _empty(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: the caller's backend and open figures stay as they are.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.09, h_pad=0.06, wspace=0.03)
    return figure


def _legend(figure: Figure, ax: Any, columns: int = 4) -> None:
    handles, labels = ax.get_legend_handles_labels()
    style = {"frameon": False, "handlelength": 3.2}
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, **style)


def _line(x: Iterable[float], summaries: Iterable[Summary], ax: Any, **style: Any) -> None:
    summaries = list(summaries)
    columns = ([s[i] for s in summaries] for i in (0, 2, 3))
    plot_series(list(x), *columns, ax=ax, markersize=4.5, linewidth=1.6, **style)


def _styles():
    """Model, kind and their line style."""
    for model in MODELS:
        for kind in KINDS:
            style = {
                "color": COLORS[model],
                "linestyle": LINES[kind],
                "marker": MARKERS[kind],
                "label": f"{NAMES[model]}, {WHERE[kind]}",
            }
            yield model, kind, style


def _epoch_axis(ax: Any, config: StudyConfig) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlim(-0.02 * max(config.epochs, 1), 1.02 * max(config.epochs, 1))


def _training(config: StudyConfig, table: Table) -> Figure:
    figure, axes = _figure(1, 2, 9, 3.8)
    times = range(config.epochs + 1)
    titles = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (share correct)"}
    for ax, (quantity, title) in zip(axes[0], titles.items(), strict=True):
        for model in MODELS:
            for part, line in (("train", "-"), ("test", "--")):
                values = [
                    table(quantity, model=model, epoch=e, kind=part, layer=0).mean for e in times
                ]
                label = f"{NAMES[model]}, {'training' if part == 'train' else 'held-out'} examples"
                style = {"color": COLORS[model], "linestyle": line, "label": label}
                mark = {"marker": "o" if part == "train" else "s", "markersize": 3}
                plot_series(times, values, ax=ax, **style, **mark)
        ax.set_ylabel(title)
        _epoch_axis(ax, config)
    axes[0, 0].set_yscale("log")
    axes[0, 1].set_ylim(0, 1.02)
    _legend(figure, axes[0, 0], 2)
    return figure


def _hits(config: StudyConfig, table: Table, d: int) -> Figure:
    figure, axes = _figure(1, 2, 9, 4)
    radius = main_radius(config, table, d)
    _over_training(config, table, axes[0, 0], quantity="hits", layer=1, radius=radius, dimension=d)
    axes[0, 0].set_ylabel(f"hits in a window of radius {number(radius)}")
    axes[0, 0].set_title("layer 1, mean over windows", fontsize=10)
    _differences(config, table, axes[0, 1], quantity="hits", layer=1, radius=radius, dimension=d)
    axes[0, 1].set_ylabel("BN minus no BN, hits")
    axes[0, 1].set_title("paired difference in the same windows", fontsize=10)
    _legend(figure, axes[0, 0], 4)
    return figure


def _over_training(config: StudyConfig, table: Table, ax: Any, **labels: Any) -> None:
    times = config.schedule
    for model, kind, style in _styles():
        values = [table(model=model, epoch=e, kind=kind, **labels) for e in times]
        _line(times, values, ax, **style)
    _epoch_axis(ax, config)


def _differences(config: StudyConfig, table: Table, ax: Any, **labels: Any) -> None:
    times = config.schedule
    ax.axhline(0, color="0.4", linewidth=0.8)
    for kind in KINDS:
        values = [table(model=DIFFERENCE, epoch=e, kind=kind, **labels) for e in times]
        style = {"linestyle": LINES[kind], "marker": MARKERS[kind], "label": WHERE[kind]}
        _line(times, values, ax, color="black", **style)
    ax.legend(frameon=False, fontsize=9, handlelength=3.2)
    _epoch_axis(ax, config)


def _radius(config: StudyConfig, table: Table, d: int) -> Figure:
    figure, axes = _figure(1, 2, 9, 4)
    at = {"quantity": "hits", "epoch": config.epochs, "dimension": d}
    for model, kind, style in _styles():
        values = [table(model=model, kind=kind, radius=r, **at) for r in config.radii]
        _line(config.radii, values, axes[0, 0], **style)
    axes[0, 1].axhline(0, color="0.4", linewidth=0.8)
    for kind in KINDS:
        values = [table(model=DIFFERENCE, kind=kind, radius=r, **at) for r in config.radii]
        style = {"linestyle": LINES[kind], "marker": MARKERS[kind], "label": WHERE[kind]}
        _line(config.radii, values, axes[0, 1], color="black", **style)
    axes[0, 0].set_ylabel("hits, layer 1")
    axes[0, 1].set_ylabel("BN minus no BN, hits")
    axes[0, 1].legend(frameon=False, fontsize=9, handlelength=3.2)
    for ax in axes[0]:
        ax.set_xscale("log")
        ax.set_xlabel("radius of the window (input units)")
    _legend(figure, axes[0, 0], 4)
    return figure


def _regions(config: StudyConfig, table: Table, dimensions: list[int]) -> Figure:
    radius = config.slice_radii[-1]
    first = 2 if 2 in dimensions else dimensions[0]
    small = [k for k in dimensions if k != first]
    figure = _empty(9, 4.4)
    panels: Any = [["first", *(["small0"] if small else [])]]
    if len(small) == 2:
        panels: Any = [["first", "small0"], ["first", "small1"]]
    ratios = [1.7, 1][: len(panels[0])]
    axes = figure.subplot_mosaic(panels, width_ratios=ratios)
    names = ["first", "small0", "small1"]
    for name, k in zip(names, [first, *small], strict=False):
        ax = axes[name]
        _over_training(config, table, ax, quantity="regions", layer=1, radius=radius, dimension=k)
        ax.set_ylabel(f"regions, k = {k}")
        ax.grid(color="0.9", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes["first"].set_title(f"exact regions of layer 1, radius {number(radius)}", fontsize=10)
    _legend(figure, axes["first"], 4)
    return figure


def _deeper(config: StudyConfig, table: Table, d: int) -> Figure:
    layers = range(2, len(config.widths) + 1)
    figure, axes = _figure(len(layers), 3, 10.5, 0.6 + 3.3 * len(layers))
    for row, layer in zip(axes, layers, strict=True):
        at = {"epoch": config.epochs, "dimension": d, "layer": layer}
        for ax, quantity in ((row[0], "hits_in_parent"), (row[1], "share_in_parent")):
            for model, kind, style in _styles():
                values = [
                    table(quantity, model=model, kind=kind, radius=r, **at) for r in config.radii
                ]
                _line(config.radii, values, ax, **style)
            ax.set_xscale("log")
            ax.set_xlabel("radius of the window (input units)")
        radius = deep_radius(config, table, layer, d)
        over = {"layer": layer, "radius": radius, "dimension": d}
        _over_training(config, table, row[2], quantity="hits_in_parent", **over)
        row[0].set_ylabel(f"layer {layer}: hits in one parent region")
        row[1].set_ylabel("share of windows in one parent region")
        row[1].set_ylim(-0.03, 1.03)
        row[2].set_ylabel(f"hits, radius {number(radius)}")
        row[0].set_xlim(row[1].get_xlim())
        for ax in (row[0], row[2]):
            ax.set_ylim(bottom=min(0.0, -0.03 * ax.get_ylim()[1]))
        _mark_empty(config, table, row[0], layer, d)
        row[0].set_title(f"after {epochs(config.epochs)}", fontsize=10)
        row[1].set_title(f"after {epochs(config.epochs)}", fontsize=10)
        share = min(
            table("share_in_parent", model=m, epoch=e, kind=k, **over).mean
            for m in MODELS
            for e in config.schedule
            for k in KINDS
        )
        title = f"over training, at least {100 * share:.0f}% of the windows"
        row[2].set_title(title, fontsize=10)
    _legend(figure, axes[0, 0], 4)
    return figure


def _mark_empty(config: StudyConfig, table: Table, ax: Any, layer: int, d: int) -> None:
    """Say "no window" over the radii at which no model has a window to average over."""

    def windows(radius: float) -> int:
        at = {"epoch": config.epochs, "layer": layer, "radius": radius, "dimension": d}
        return sum(
            table("hits_in_parent", model=m, kind=k, **at).count for m in MODELS for k in KINDS
        )

    empty = [radius for radius in config.radii if windows(radius) == 0]
    if empty:
        middle = float(np.exp(np.mean(np.log([empty[0], empty[-1]]))))
        box = {"ha": "center", "va": "center", "color": "0.35", "fontsize": 9}
        ax.text(middle, 0.5, "no window", transform=ax.get_xaxis_transform(), **box)


def draw_expected(config: StudyConfig, found: Expected) -> Figure:
    """Initialisation: closed form as lines, estimates as points with bars; the networks' counts."""
    figure, axes = _figure(1, 2, 9.6, 4.1, sharey=True)
    start, end = axes[0]
    for model in MODELS:
        style = {"color": COLORS[model], "linewidth": 1.6}
        if found.closed is not None:
            label = f"{NAMES[model]}, closed form"
            start.plot(found.line, found.closed[model], label=label, **style)
        of = regions(found)[model]
        mean, low, high = of.mean, of.low, of.high
        bars = {"fmt": MARKERS["data" if model == BATCH else "control"], "markersize": 4.5}
        bars |= {"color": COLORS[model], "capsize": 3, "label": f"{NAMES[model]}, Monte Carlo"}
        start.errorbar(found.distance, mean, np.abs([mean - low, high - mean]), **bars)
        for epoch, line in zip(dict.fromkeys((0, config.epochs)), (":", "-"), strict=False):
            when = "at initialisation" if epoch == 0 else f"after {epochs(epoch)}"
            counts = found.counts[model, epoch]
            label = f"{NAMES[model]}, {when}"
            end.plot(
                found.line, counts, linestyle=line, drawstyle="steps-mid", label=label, **style
            )
    for ax in (start, end):
        ax.set_xlabel("distance from the batch centroid (input units)")
        ax.set_yscale("log")
        ax.legend(frameon=False, fontsize=9)
    start.set_ylabel(f"regions of layer 1, radius {number(found.radius)}")
    start.set_title("expectation at initialisation", fontsize=10)
    end.set_title("exact counts of the two networks", fontsize=10)
    return figure


def _network(config: StudyConfig, table: Table) -> Figure:
    radius = config.slice_radii[-1]
    at = {"quantity": "regions_through_layer", "layer": len(config.widths)}
    at |= {"radius": radius, "dimension": 2}
    figure, axes = _figure(1, 3, 10.5, 3.9)
    near, center, gap = axes[0]
    _over_training(config, table, near, **at)
    for model in MODELS:
        values = [table(model=model, epoch=e, kind=CENTROID, **at) for e in config.schedule]
        style = {"color": COLORS[model], "marker": "D", "linestyle": ":"}
        _line(config.schedule, values, center, label=NAMES[model], **style)
    _epoch_axis(center, config)
    center.legend(frameon=False, fontsize=9)
    _differences(config, table, gap, **at)
    for ax in (near, center):
        ax.set_yscale("log")
    near.set_ylabel(f"regions, all layers, radius {number(radius)}")
    near.set_title("near data and off data", fontsize=10)
    center.set_title("through the batch centroid", fontsize=10)
    gap.set_ylabel("BN minus no BN, regions")
    gap.set_title("paired difference", fontsize=10)
    _legend(figure, near, 4)
    return figure


def _full(config: StudyConfig, raw: Results, d: int) -> Figure:
    times = full_epochs(config)
    shared = {"sharex": True, "sharey": True}
    figure, axes = _figure(1, len(times), 4.7 * len(times) + 0.4, 4, **shared)
    for ax, epoch in zip(axes[0], times, strict=True):
        for model, kind, style in _styles():
            of = quartiles(raw[model][epoch], kind)
            bands = of.middle, np.fmin(of.low, of.middle), np.fmin(of.high, MOST)
            plot_series(config.radii, *bands, ax=ax, markersize=4.5, linewidth=1.6, **style)
        ax.axhline(MOST, color="0.4", linewidth=0.8, linestyle="-.")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.8, 1.6 * MOST)
        ax.set_xlabel("radius of the window (input units)")
        when = "initialisation" if epoch == 0 else f"after {epochs(epoch)}"
        ax.set_title(when, fontsize=10)
    axes[0, 0].set_ylabel(f"regions, all layers, k = {d}")
    note = {"ha": "left", "va": "bottom", "color": "0.35", "fontsize": 9}
    axes[0, 0].text(config.radii[0], 1.03 * MOST, "counts end here", **note)
    _legend(figure, axes[0, 0], 4)
    return figure


def _partitions(
    config: StudyConfig, place: Scene, pictures: Mapping[tuple[str, int], Partition], color: str
) -> Figure:
    """Small multiples: a row per network, a column per checkpoint, one colour scale."""
    times = picture_epochs(config)
    figure, axes = _figure(len(MODELS), len(times), 3.6 * len(times) + 1.2, 8.2)
    points = np.concatenate([place.batch, place.points[:2]])
    a, b = place.labels[:2].tolist()
    scales = []
    for row, model in zip(axes, MODELS, strict=True):
        for ax, epoch in zip(row, times, strict=True):
            part = pictures[model, epoch]
            ended = part.status == Status.COMPLETE
            when = "initialisation" if epoch == 0 else f"epoch {epoch}"
            count = f"{'' if ended else 'at least '}{part.activation_regions} regions"
            ax.set_title(f"{NAMES[model]}, {when}: {count}", fontsize=10)
            ax.grid(visible=False)
            if not ended and color == "slope":
                continue
            pieces = level_set(part, a, minus=b)[0] if ended and a != b else None
            marks = {"points": points, "centroid": centroid(place.batch), "boundary": pieces}
            plot_partition(part, ax, color=color, legend=False, rasterized=False, **marks)
            if color == "slope":
                scales.append(ax.collections[0])
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    if scales:
        _one_scale(figure, axes, scales)
    _picture_legend(figure, axes)
    return figure


def _one_scale(figure: Figure, axes: Any, scales: list[Any]) -> None:
    values = np.concatenate([scale.get_array() for scale in scales])
    for scale in scales:
        scale.set_clim(values.min(), values.max())
    label = "slope of the logits in the slice (norm, per input unit)"
    figure.colorbar(scales[0], ax=axes, label=label, shrink=0.6)


def _picture_legend(figure: Figure, axes: Any) -> None:
    """One entry per label of any picture; stages are layers here."""
    found = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label.replace("cut by stage", "switches in layer"), handle)
    if found:
        style = {"frameon": False, "handlelength": 2.2, "ncols": 3, "fontsize": 9}
        legend = figure.legend(found.values(), found.keys(), loc="outside upper center", **style)
        for line in legend.get_lines():
            line.set_linewidth(2)  # in the pictures they are hair lines
        for patch in legend.legend_handles:
            if isinstance(patch, LineCollection):
                patch.set_linewidth(2)


def _arrangement(config: StudyConfig, place: Scene, raw: Results, counts: dict) -> Figure:
    planes = picture_planes(raw)
    times = list(dict.fromkeys((0, config.epochs)))
    figure, axes = _figure(2, len(times), 4.3 * len(times) + 0.4, 9)
    names = [f"held-out example of class {label}" for label in place.labels.tolist()]
    middle = np.asarray(centroid(place.batch))
    for row, model in zip(axes, MODELS, strict=True):
        for ax, epoch in zip(row, times, strict=True):
            plot_arrangement(
                planes[model, epoch],
                place.picture,
                ax,
                place.points,
                labels=names,
                centroid=middle,
                color=COLORS[model],
            )
            when = "initialisation" if epoch == 0 else f"epoch {epoch}"
            ax.grid(visible=False)
            ax.set_title(f"{NAMES[model]}, {when}: {counts[model, epoch]} regions", fontsize=10)
    _legend(figure, axes[0, 0], len(times))
    return figure
