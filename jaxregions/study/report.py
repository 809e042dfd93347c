"""The page: one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from jaxregions.study.config import StudyConfig
from jaxregions.study.deep import CENTROID_WINDOWS
from jaxregions.study.full import MOST, has_full
from jaxregions.study.measure import KINDS, Scene
from jaxregions.study.statistics import Summary
from jaxregions.study.story import (
    WHERE,
    certificate,
    deep_radius,
    epochs,
    full_radius,
    main_radius,
    number,
    plus_minus,
)
from jaxregions.study.table import BATCH, DIFFERENCE, NONE, PLACES, Table

__all__ = ["overview", "page"]

TITLES = {
    "training": "Training",
    "hits": "Layer 1: hits near data and off data",
    "radius": "Layer 1: hits against the radius",
    "regions": "Layer 1: exact region counts",
    "expected": "Layer 1: expected regions against the distance from the centroid",
    "network": "All layers: exact region counts",
    "full": "All layers: exact region counts in full-dimensional windows",
    "partitions": "All layers on one slice: regions over training",
    "slopes": "All layers on one slice: slopes over training",
    "deeper": "Deeper layers inside parent regions",
    "arrangement": "Layer 1 on one slice",
}
_STYLE = """
:root{color-scheme:light}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1a1a1a;background:#fff;
max-width:60rem;margin:0 auto;padding:1rem 1.1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:1rem 0 .4rem}
h2{font-size:1.2rem;margin:2.4rem 0 .5rem}
figure{margin:.6rem 0}img{width:100%;min-width:40rem;height:auto;display:block}
figcaption{margin-top:.4rem;padding-left:.8rem;border-left:3px solid #0072B2}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;min-width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}
td:first-child{min-width:9rem}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
dt{font-weight:600;margin-top:.6rem}dd{margin:0 0 0 1rem}
code{overflow-wrap:anywhere;font-size:.85em}summary{cursor:pointer;font-weight:600}
.alarm{color:#a00;font-weight:700}
p.note,.note{color:#555;font-size:.9rem}
"""


def page(
    config: StudyConfig,
    place: Scene,
    table: Table,
    figures: dict[str, Path],
    sentences: dict[str, str],
    about: dict[str, Any],
) -> str:
    """The report as HTML that opens from disk and loads nothing."""
    text = html.escape
    order = [name for name in TITLES if name in figures]
    shown = "".join(
        f"<h2>{text(TITLES[name])}</h2><figure>{_image(figures[name], TITLES[name])}"
        f"<figcaption>{text(sentences[name])}</figcaption></figure>"
        f"{_stages(config, table) if name == 'network' else ''}"
        for name in order
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>jaxregions study: {text(config.dataset)}</title>"
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>BatchNorm and the local regions of an MLP on {text(config.dataset)}</h1>"
        f"{_introduction(config, about)}<h2>In short</h2>{_overview_table(config, place, table)}"
        f"{shown}{_definitions(config, place, table, about)}{_settings(about)}</body></html>\n"
    )


def overview(
    config: StudyConfig, place: Scene, table: Table
) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The last checkpoint in one screen, in sections: near data, off data, all layers together.

    Every section has a title and rows: a label, then BN, no BN and their paired difference. Hits of
    deeper layers come with the share of windows they are averaged over.
    """
    d = place.centers.shape[-1]
    radius, slice_radius = main_radius(config, table, d), config.slice_radii[-1]
    wanted: list[tuple[str, str, int, float, int]] = [
        (f"hits, layer 1, radius {number(radius)}", "hits", 1, radius, d)
    ]
    for k in (k for k in config.slice_dimensions if k <= d):
        label = f"regions, layer 1, k = {k}, radius {number(slice_radius)}"
        wanted.append((label, "regions", 1, slice_radius, k))
    for layer in range(2, len(config.widths) + 1):
        deep = deep_radius(config, table, layer, d)
        label = f"hits in parent (share), layer {layer}, radius {number(deep)}"
        wanted.append((label, "hits_in_parent", layer, deep, d))

    def cells(quantity: str, layer: int, radius: float, k: int, kind: str) -> list[str]:
        values = _three(config, table, quantity, kind, layer, radius, k)
        if quantity != "hits_in_parent":
            return [cell(value) for value in values]
        return [f"{cell(v)} ({100 * v.count / config.windows:.0f}%)" for v in values]

    sections = [
        (WHERE[kind], [(label, cells(name, n, r, k, kind)) for label, name, n, r, k in wanted])
        for kind in KINDS
    ]
    layers = len(config.widths)
    whole = [
        (
            f"regions {WHERE[kind]}, k = 2, radius {number(slice_radius)}",
            cells("regions_through_layer", layers, slice_radius, 2, kind),
        )
        for kind in PLACES
    ]
    if has_full(config, d):
        radius = full_radius(config, table, d)
        whole += [
            (
                f"regions {WHERE[kind]}, k = {d}, radius {number(radius)}",
                cells("regions_through_layer", layers, radius, d, kind),
            )
            for kind in KINDS
        ]
    return [*sections, ("all layers", whole)]


def _three(
    config: StudyConfig,
    table: Table,
    quantity: str,
    kind: str,
    layer: int,
    radius: float,
    dimension: int,
    epoch: int | None = None,
) -> list[Summary]:
    """BN, no BN, and their difference; by default at the last checkpoint."""
    at = {"epoch": config.epochs if epoch is None else epoch, "kind": kind, "layer": layer}
    at |= {"radius": radius, "dimension": dimension}
    return [table(quantity, model=model, **at) for model in (BATCH, NONE, DIFFERENCE)]


COLUMNS = ("BN", "no BN", "difference")


def cell(value: Summary) -> str:
    """A mean and the half-width of its 95% interval."""
    if value.count == 0:
        return "no window"
    return plus_minus(value)


def _overview_table(config: StudyConfig, place: Scene, table: Table) -> str:
    body, said = "", certificate(config, table)
    for title, rows in overview(config, place, table):
        head = "".join(f'<th class="n">{name}</th>' for name in COLUMNS)
        body += f"<tr><th>{html.escape(title)}</th>{head}</tr>" + _rows(rows)
    return (
        f'<div class="scroll"><table>{body}</table></div><p class="note">Means per window after '
        f"{epochs(config.epochs)}; ± is the half-width of a 95% interval over windows. The "
        "difference is BN minus no BN, paired: the same windows in both networks. Hits in parent: "
        "deeper layers, over the share of windows that lie in one parent region.</p>"
        f'<p class="{_loudness(said)}">All layers: {html.escape(said)}.</p>'
    )


def _loudness(said: str) -> str:
    return "alarm" if said.startswith("WARNING") else "note"


def _rows(rows: list[tuple[str, list[str]]]) -> str:
    return "".join(
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f'<td class="n">{value}</td>' for value in values)
        + "</tr>"
        for label, values in rows
    )


def _stages(config: StudyConfig, table: Table) -> str:
    """Layer by layer, at the first and the last checkpoint, for the largest slice radius."""
    layers, radius = len(config.widths), config.slice_radii[-1]
    times = list(dict.fromkeys((0, config.epochs)))
    names = ["initialisation" if e == 0 else f"after {epochs(e)}" for e in times]
    body = "<tr><th></th>" + "".join(f'<th class="n" colspan="3">{n}</th>' for n in names) + "</tr>"
    head = "".join(f'<th class="n">{name}</th>' for _ in times for name in COLUMNS)
    wanted = [
        (f"regions of layer{' 1' if n == 1 else f's 1 to {n}'}", "regions_through_layer", n)
        for n in range(1, layers + 1)
    ]
    wanted += [
        (f"units of layer {n} that switch", "switching_units", n) for n in range(1, layers + 1)
    ]
    for kind in PLACES:
        rows = []
        for label, quantity, layer in wanted:
            at = (quantity, kind, layer, radius, 2)
            rows.append((label, [cell(v) for e in times for v in _three(config, table, *at, e)]))
        last = _three(config, table, "affine_regions", kind, layers, radius, 2)
        blank = ["–"] * (3 * (len(times) - 1))
        rows.append(("affine regions, all layers", blank + [cell(v) for v in last]))
        body += f"<tr><th>{WHERE[kind]}</th>{head}</tr>" + _rows(rows)
    return (
        f'<div class="scroll"><table>{body}</table></div><p class="note">Means per 2-d window of '
        f"radius {number(radius)}, ± half a 95% interval over windows; difference: BN minus no BN, "
        "paired. Regions of layers 1 to l: maximal pieces of the window on which no unit of these "
        "layers switches. Affine regions: neighbouring pieces with the same affine map are one; "
        "counted at the last checkpoint only.</p>"
    )


def _image(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    return f'<div class="scroll">{image}</div>'


def _introduction(config: StudyConfig, about: dict[str, Any]) -> str:
    data = about["data"]
    widths = " and ".join(map(str, config.widths))
    return (
        f"<p>Two MLPs with hidden widths {widths} and {html.escape(config.activation)} were "
        f"trained on {html.escape(config.dataset)} ({data['training_examples']} examples, "
        f"{data['input_dimension']} inputs, {data['classes']} classes) for {epochs(config.epochs)} "
        f"with Adam (learning rate {config.learning_rate:g}, mini-batches of {config.batch_size}). "
        "They start from the same kernels and raw biases (He-normal kernels, biases of standard "
        f"deviation {config.bias_std:g}); one has BatchNorm before each activation, its twin has "
        "none. At each checkpoint the BatchNorm network is conditioned on one fixed mini-batch of "
        f"{config.batch_size} training examples: its batch statistics are held, and what is left "
        "is a piecewise-affine function of one input.</p>"
    )


def _definitions(config: StudyConfig, place: Scene, table: Table, about: dict[str, Any]) -> str:
    d, last = place.centers.shape[-1], config.epochs
    radius = main_radius(config, table, d)
    at = {"model": BATCH, "epoch": last, "kind": "data", "radius": radius, "dimension": d}
    low = table("regions_at_least", **at)
    high = table("log10_regions_at_most", **at)
    near, far = (
        table("centroid_distance", model="", epoch=0, layer=0, kind=kind, dimension=d)
        for kind in ("data", "control")
    )
    middle = min(CENTROID_WINDOWS, config.windows)
    boxes = ""
    if has_full(config, d):
        boxes = (
            f" And those in boxes of all {d} dimensions, of which windows with more than {MOST} "
            "regions are left out of means (so that these are means of a selection) and counted "
            "as larger than all others in quartiles."
        )
    whole = f" For k = {d} the window itself is counted, not a slice." if d <= 3 else ""
    items = {
        "Windows": f"{config.windows} open boxes {{x : |x_j − c_j| < r}} in all {d} input "
        f"dimensions, centred at held-out examples (near data). Radii: "
        f"{', '.join(number(r) for r in config.radii)}, in input units.",
        "Controls (off data)": f"{config.windows} boxes around points whose coordinates are drawn "
        "independently, each from the training values of that coordinate: the same marginals as "
        "the data, none of its correlations.",
        "Slices": "k-dimensional windows {c + Bu : |u_j| < r} through the same centres; B has "
        "random orthonormal columns, one B per centre, the same for both networks and all "
        f"checkpoints. Radii: {', '.join(number(r) for r in config.slice_radii)}.{whole}",
        "Hit": "a switching hyperplane (where a pre-activation equals a breakpoint of the "
        "activation) that cuts the open window into two parts with interior.",
        "Regions": "pieces that the layer-1 hyperplanes cut the window into. More hits need not "
        "mean more regions: with BatchNorm at initialisation all layer-1 hyperplanes meet in the "
        "batch centroid and share that crossing. So the two are reported separately.",
        "All layers": "the window is cut by the units of every layer, deeper ones along broken "
        "lines; the regions of the whole network are counted in 2-d windows: the slices (k = 2) "
        f"near data and off data, and slices through the batch centroid in {middle} of these "
        "directions. The last are all about one point: their interval is over directions.",
        "Region bracket": f"in {d} dimensions the hits alone prove 1 + m ≤ regions ≤ the sum of "
        "C(m, j), j = 0 … min(d, m), with m distinct hits; for BN near data at radius "
        f"{number(radius)} after {epochs(last)} the bounds average {cell(low)} and "
        f"10^({cell(high)}).",
        "Hits in one parent region": "a deeper layer's units are affine in the input only inside "
        "one region of the layers before it. A unit's hit is counted in the windows that lie "
        "wholly in one such region; the share of windows where that holds is given beside it. "
        "These windows are a selection (smaller regions are left out), and not the same one in the "
        "two networks; the paired difference uses the windows that count in both.",
        "Expected regions": "averages over random initial weights and biases, at beta = 0; lines: "
        "closed form for Gaussian weights (spherical Crofton formula); points: Monte Carlo over "
        "draws of the model's own initialisers, BN and no BN on the same draws, with 95% bars.",
        "Distance of the centres from the batch centroid": f"{cell(near)} near data, {cell(far)} "
        "off data (Euclidean, input units).",
        "What is exact": "each hit, region count and bracket of layer 1, for the stored "
        "parameters, batch and windows: what floating point leaves open is settled in rational "
        f"arithmetic ({about['rational_arithmetic']}). So are the counts of all layers in 2-d "
        f"windows: {certificate(config, table)}.{boxes} Deeper layers' hits in full-dimensional "
        "windows come from float64 linearisations, without that certificate.",
        "What is statistical": "means over windows, with t-intervals (for shares: Wilson "
        "intervals). They describe where windows may fall, for this one pair of networks from one "
        "seed and one mini-batch; they do not describe other seeds. Intervals are at 95% each and "
        "not adjusted for how many are shown.",
    }
    listed = "".join(
        f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in items.items()
    )
    return f"<h2>How to read this</h2><dl>{listed}</dl>"


def _settings(about: dict[str, Any]) -> str:
    rows = [("device", about["device"]), ("rational arithmetic", about["rational_arithmetic"])]
    rows += [(k, v) for part in ("config", "versions") for k, v in about[part].items()]
    body = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td><code>{html.escape(str(v))}</code></td></tr>"
        for k, v in rows
    )
    return (
        "<h2>Settings</h2><details><summary>Configuration and versions</summary>"
        f'<div class="scroll"><table>{body}</table></div></details><p class="note">All numbers: '
        "<code>results.csv</code> and <code>results.json</code> (means and intervals), "
        "<code>expected.csv</code> (expected regions), <code>windows.npz</code> "
        "(per window), beside this page.</p>"
    )
