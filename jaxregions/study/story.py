"""What the numbers say, in one sentence a figure, and no more than they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxregions.arrangements import count_arrangement
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.partitions import Partition
from jaxregions.regions import Status
from jaxregions.study.config import StudyConfig, activation_named
from jaxregions.study.full import MOST, full_epochs, full_windows, has_full
from jaxregions.study.measure import KINDS, Scene
from jaxregions.study.statistics import Summary
from jaxregions.study.table import (
    BATCH,
    DIFFERENCE,
    MODELS,
    NONE,
    OFFSET,
    PLACES,
    Results,
    Table,
)

__all__ = [
    "WHERE",
    "certificate",
    "compare",
    "deep_radius",
    "epochs",
    "full_radius",
    "main_radius",
    "number",
    "picture_counts",
    "picture_planes",
    "plus_minus",
    "sentences",
    "verdict",
]

FEWEST = 8  # windows that a comparison needs: t-intervals of fewer counts are unreliable
NAMES = {BATCH: "BN", NONE: "its twin without BN"}
WHERE = dict(zip(PLACES, ("near data", "off data", "through the centroid"), strict=True))
Pictures = Mapping[tuple[str, int], Partition]


def number(value: float) -> str:
    """Four significant digits, for reading."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def plus_minus(value: Summary) -> str:
    """The mean and the half-width of its 95% interval, to two digits of the latter."""
    half = (value.high95 - value.low95) / 2
    if not math.isfinite(half):
        return number(value.mean)
    if half == 0:
        return f"{number(value.mean)} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    mean = f"{value.mean:.{decimals}f}".replace("-", "−")
    return f"{mean} ± {half:.{decimals}f}"


def verdict(difference: Summary) -> str:
    """'more', 'fewer', 'equal', 'unresolved' (at 95%), or 'unknown' (too few windows to say)."""
    if difference.count < FEWEST or not math.isfinite(difference.low95 + difference.high95):
        return "unknown"
    if difference.low95 > 0:
        return "more"
    if difference.high95 < 0:
        return "fewer"
    return "equal" if difference.low95 == difference.high95 == 0 else "unresolved"


def compare(
    subject: str,
    other: str,
    noun: str,
    difference: Summary,
    words: tuple[str, str] = ("more", "fewer"),
) -> str:
    """'BN has more hits than its twin (difference 12.3 ± 1.1)', as far as 95% intervals resolve it.

    Args:
      difference: of subject minus other.
      words: for a positive and a negative difference.
    """
    found = verdict(difference)
    numbers = f"difference {plus_minus(difference)}"
    if found == "unknown":
        return f"too few windows to compare the {noun} of {subject} and {other}"
    if found == "equal":
        return f"{subject} and {other} have equally many {noun} in every window"
    if found == "unresolved":
        return (
            f"no difference in {noun} between {subject} and {other} is resolved at 95% ({numbers})"
        )
    word = words[0] if found == "more" else words[1]
    return f"{subject} has {word} {noun} than {other} ({numbers})"


def main_radius(config: StudyConfig, table: Table, dimension: int) -> float:
    """The radius at which, at initialisation, layer 1 has hits closest to half its hyperplanes.

    The mean over both models and both kinds of windows decides, so neither is favoured.
    """
    breakpoints = len(activation_named(config.activation).breakpoints)
    half = config.widths[0] * breakpoints / 2

    def gap(radius: float) -> float:
        means = [
            table("hits", model=m, epoch=0, kind=k, radius=radius, dimension=dimension).mean
            for m in MODELS
            for k in ("data", "control")
        ]
        return abs(float(np.mean(means)) - half)

    return min(config.radii, key=gap)


def deep_radius(config: StudyConfig, table: Table, layer: int, dimension: int) -> float:
    """The largest radius with at least half of the data windows inside one parent region, in both
    models and at all checkpoints; without one, the smallest radius."""

    def least_share(radius: float) -> float:
        at = {"kind": "data", "layer": layer, "radius": radius, "dimension": dimension}
        return min(
            table("share_in_parent", model=m, epoch=e, **at).mean
            for m in MODELS
            for e in config.schedule
        )

    return max((r for r in config.radii if least_share(r) >= 0.5), default=config.radii[0])


def picture_planes(raw: Results) -> dict[tuple[str, int], Hyperplanes]:
    """Layer 1 of both models at the first and the last checkpoint."""
    planes = {}
    for model in MODELS:
        for epoch in dict.fromkeys((min(raw[model]), max(raw[model]))):
            arrays = raw[model][epoch]
            fields = (arrays[f"planes_{name}"] for name in ("normal", "point", "offset"))
            planes[model, epoch] = Hyperplanes(*fields)
    return planes


def picture_counts(place: Scene, raw: Results) -> dict[tuple[str, int], int]:
    """Exact regions of layer 1 in the picture's window."""
    return {
        label: int(count_arrangement(planes, place.picture).regions)
        for label, planes in picture_planes(raw).items()
    }


def sentences(
    config: StudyConfig,
    place: Scene,
    table: Table,
    counts: dict[tuple[str, int], int],
    pictures: Pictures,
) -> dict[str, str]:
    """One sentence for each figure, by the figure's name."""
    d = place.centers.shape[-1]
    told = {
        "training": _training(config, table),
        "hits": _hits(config, table, d),
        "radius": _radius(config, table, d),
        "arrangement": _arrangement(config, place, counts),
        "network": _network(config, table),
        "partitions": _partitions(place, pictures),
        "slopes": _slopes(pictures),
    }
    if any(k <= d for k in config.slice_dimensions):
        told["regions"] = _regions(config, table, d)
    if has_full(config, d):
        told["full"] = _full(config, table, d)
    if len(config.widths) > 1:
        told["deeper"] = _deeper(config, table, d)
    return {name: text[0].upper() + text[1:] + "." for name, text in told.items()}


def _training(config: StudyConfig, table: Table) -> str:
    parts = []
    for model in MODELS:
        accuracy, loss = (
            table(q, model=model, epoch=config.epochs, kind="test", layer=0).mean
            for q in ("accuracy", "loss")
        )
        parts.append(
            f"{NAMES[model]} classifies {100 * accuracy:.1f}% of the held-out examples correctly "
            f"(cross-entropy {number(loss)} nats)"
        )
    return (
        f"after {epochs(config.epochs)} {' and '.join(parts)}; one run of each from the same "
        "initial weights, which says nothing about other seeds"
    )


def _hits(config: StudyConfig, table: Table, d: int) -> str:
    radius = main_radius(config, table, d)
    at = {"radius": radius, "dimension": d}
    start, end = (
        _bn_or_not(table("hits", model=DIFFERENCE, epoch=e, kind="data", **at), "hits")
        for e in (0, config.epochs)
    )
    off = table("hits", model=DIFFERENCE, epoch=config.epochs, kind="control", **at)
    near = table("hits", model=BATCH, epoch=config.epochs, kind=OFFSET, **at)
    first = f"at initialisation {start}; " if config.epochs else ""
    return (
        f"in the windows of radius {number(radius)} on data points, {first}after "
        f"{epochs(config.epochs)} {end}; off the data {_bn_or_not(off, 'hits')}; with BN, "
        f"{compare('a data window', 'a control', 'hits', near)}"
    )


def _radius(config: StudyConfig, table: Table, d: int) -> str:
    found = {
        radius: verdict(
            table(
                "hits",
                model=DIFFERENCE,
                epoch=config.epochs,
                kind="data",
                radius=radius,
                dimension=d,
            )
        )
        for radius in config.radii
    }
    texts = {
        "more": "BN has more hits than its twin at",
        "fewer": "BN has fewer hits than its twin at",
        "equal": "the two have equally many hits in every window at",
        "unresolved": "no difference is resolved at 95% at",
        "unknown": "there are too few windows to compare at",
    }
    parts = [
        f"{text} radius {_listed([number(r) for r in config.radii if found[r] == word])}"
        for word, text in texts.items()
        if word in found.values()
    ]
    return f"after {epochs(config.epochs)}, on data points, {'; '.join(parts)}"


def _regions(config: StudyConfig, table: Table, d: int) -> str:
    radius = config.slice_radii[-1]
    parts = []
    for k in (k for k in config.slice_dimensions if k <= d):
        at = {"kind": "data", "radius": radius, "dimension": k}
        gap = table("regions", model=DIFFERENCE, epoch=config.epochs, **at)
        parts.append(f"for k = {k} {_bn_or_not(gap, 'regions')}")
    return (
        f"exact counts in {'windows' if d <= 3 else 'slices'} of radius {number(radius)} through "
        f"data points after {epochs(config.epochs)}: {'; '.join(parts)}; this is about regions, "
        "and does not follow from the hits"
    )


def _deeper(config: StudyConfig, table: Table, d: int) -> str:
    parts = []
    for layer in range(2, len(config.widths) + 1):
        radius = deep_radius(config, table, layer, d)
        at = {
            "epoch": config.epochs,
            "kind": "data",
            "layer": layer,
            "radius": radius,
            "dimension": d,
        }
        gap = table("hits_in_parent", model=DIFFERENCE, **at)
        shares = [
            f"{100 * table('share_in_parent', model=m, **at).mean:.0f}% {name}"
            for m, name in ((BATCH, "with BN"), (NONE, "without"))
        ]
        text = (
            _bn_or_not(gap, "hits")
            if gap.count
            else "no window lies in one parent region of both networks, so nothing is compared"
        )
        parts.append(
            f"layer {layer}, radius {number(radius)}, in the {gap.count} data windows that lie in "
            f"one parent region of both networks ({' and '.join(shares)}): {text}"
        )
    return f"after {epochs(config.epochs)}, {'; '.join(parts)}"


def _arrangement(config: StudyConfig, place: Scene, counts: dict[tuple[str, int], int]) -> str:
    away = _distance_from_picture(place)
    where = f"is {number(away)} away from" if place.batch.shape[1] > 2 else "lies in"
    classes = _listed([str(label) for label in place.labels.tolist()])
    last = config.epochs
    found = "; ".join(
        f"{NAMES[m]} {counts[m, 0]}" + (f", then {counts[m, last]}" if last else "") for m in MODELS
    )
    when = f"at initialisation{f' and after {epochs(last)}' if last else ''}"
    return (
        f"layer 1 on the slice through three held-out points (classes {classes}) {when}; exact "
        f"regions in this window: {found}; the batch centroid, on which BN centres its "
        f"hyperplanes, {where} the slice; one slice, so "
        "no statistic"
    )


def _network(config: StudyConfig, table: Table) -> str:
    radius, layers = config.slice_radii[-1], len(config.widths)
    at = {"model": DIFFERENCE, "radius": radius, "dimension": 2, "layer": layers}
    parts = []
    for kind in PLACES:
        end = table("regions_through_layer", epoch=config.epochs, kind=kind, **at)
        parts.append(f"{WHERE[kind]} {_bn_or_not(end, 'regions')}")
    start = table("regions_through_layer", epoch=0, kind="data", **at)
    first = (
        f"at initialisation, near data, {_bn_or_not(start, 'regions')}; " if config.epochs else ""
    )
    return (
        f"exact regions of the whole network in 2-d windows of radius {number(radius)}: {first}"
        f"after {epochs(config.epochs)}, {'; '.join(parts)}; {certificate(config, table)}"
    )


def full_radius(config: StudyConfig, table: Table, dimension: int) -> float:
    """The largest radius at which all full-dimensional windows were counted to the end, in both
    networks, first and last; without one, the smallest radius."""

    def least(radius: float) -> float:
        at = {"layer": len(config.widths), "radius": radius, "dimension": dimension}
        return min(
            table("share_exact", model=m, epoch=e, kind=k, **at).mean
            for m in MODELS
            for e in full_epochs(config)
            for k in KINDS
        )

    return max((r for r in config.radii if least(r) == 1), default=config.radii[0])


def _full(config: StudyConfig, table: Table, d: int) -> str:
    radius = full_radius(config, table, d)
    at = {"model": DIFFERENCE, "layer": len(config.widths), "radius": radius, "dimension": d}
    parts = []
    for epoch in full_epochs(config):
        gaps = [
            f"{WHERE[kind]} "
            + _bn_or_not(table("regions_through_layer", epoch=epoch, kind=kind, **at), "regions")
            for kind in KINDS
        ]
        when = "at initialisation" if epoch == 0 else f"after {epochs(epoch)}"
        parts.append(f"{when}, {' and '.join(gaps)}")
    return (
        f"exact regions of the whole network in boxes of all {d} dimensions around "
        f"{full_windows(config)} points of each kind (every number certified); lines: medians, "
        f"bands: quartiles; a count ends above {MOST} regions, and quartiles are drawn as far as "
        f"they are known all the same; at radius {number(radius)}: {'; '.join(parts)}"
    )


def certificate(config: StudyConfig, table: Table) -> str:
    """What share of the whole-network counts is certified: all of them, or it is said loudly."""
    shares = [
        table(
            "share_exact",
            model=m,
            epoch=e,
            kind=k,
            layer=len(config.widths),
            radius=r,
            dimension=2,
        )
        for m in MODELS
        for e in config.schedule
        for k in PLACES
        for r in config.slice_radii
    ]
    every = sum(s.count for s in shares)
    exact = sum(round(s.mean * s.count) for s in shares)
    if exact == every:
        return f"100% of the {every} counts (all checkpoints, radii and networks) are certified"
    return (
        f"WARNING: only {100 * exact / every:.1f}% of the {every} counts are certified; the other "
        f"{every - exact} had too many regions, are left out of all means, and so the means are "
        "too low"
    )


def _partitions(place: Scene, pictures: Pictures) -> str:
    found = []
    for model in MODELS:
        each = [p for (m, _), p in pictures.items() if m == model]
        texts = [
            f"{'' if p.status == Status.COMPLETE else 'at least '}{p.activation_regions}"
            for p in each
        ]
        found.append(f"{NAMES[model]} {_listed(texts)}")
    return (
        f"{_slice(place)}; exact regions of the whole network in this window, in the order of the "
        f"pictures: {'; '.join(found)}; one slice, so no statistic"
    )


def _slopes(pictures: Pictures) -> str:
    ended = all(p.status == Status.COMPLETE for p in pictures.values())
    return (
        "the same slice, each region by the size of the network's slope within the slice "
        "(Frobenius norm of the logits' derivative), one colour scale for all"
        f"{'' if ended else '; WARNING: pictures with too many regions are left empty'}"
    )


def _slice(place: Scene) -> str:
    a, b = place.labels[:2].tolist()
    if a == b:
        return f"the slice through the batch centroid and two held-out points, both of class {a}"
    return (
        f"the slice through the batch centroid and two held-out points (classes {a} and {b}); "
        f"thick: where, if anywhere in it, the logits of {a} and {b} are equal"
    )


def _distance_from_picture(place: Scene) -> float:
    from jaxregions.batchnorm import centroid

    window = place.picture
    moved = centroid(place.batch) - np.asarray(window.center)
    basis = np.asarray(window.basis)
    return float(np.linalg.norm(moved - basis @ (basis.T @ moved)))


def _bn_or_not(difference: Summary, noun: str) -> str:
    return compare("BN", "its twin", noun, difference)


def epochs(count: int) -> str:
    """'1 epoch', '20 epochs'."""
    return f"{count} epoch{'' if count == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
