import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

import jaxregions.plotting
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.partitions import level_set, partition
from jaxregions.plotting import plot_arrangement, plot_partition, plot_series
from jaxregions.windows import Window


def axes():
    return Figure().subplots()


def lines(ax):
    (collection,) = (c for c in ax.collections if isinstance(c, LineCollection))
    return np.array(collection.get_segments())


def test_lines_lie_on_their_hyperplanes_and_end_on_the_window():
    rng = np.random.default_rng(0)
    planes = Hyperplanes(rng.normal(size=(30, 5)), rng.normal(size=5), rng.normal(size=(30, 2)))
    window = Window.through(*rng.normal(size=(3, 5)))
    segments = lines(plot_arrangement(planes, window, axes()))
    points = window.points(segments.reshape(-1, 2))
    values = (points - planes.point) @ planes.normal.T
    gaps = abs(values[..., None] - planes.offset).min((1, 2))
    np.testing.assert_allclose(gaps, 0, atol=1e-9)
    np.testing.assert_allclose(abs(segments).max(-1), window.radius, rtol=1e-9)
    assert len(segments) == planes.refines(window).sum()


def test_axis_parallel_lines_are_drawn_where_they_are():
    planes = Hyperplanes(np.eye(2), np.zeros(2), [[0.5], [3.0]])
    ax = plot_arrangement(planes, Window([0.0, 0.0], [1.0, 2.0]), axes())
    (segment,) = lines(ax)
    np.testing.assert_allclose(segment[:, 0], 0.5)
    np.testing.assert_allclose(np.sort(segment[:, 1]), [-2, 2])
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (-2, 2)


def test_hyperplanes_at_infinity_are_left_out():
    planes = Hyperplanes([[1.0, 0.0], [0.0, 0.0]], np.zeros(2), [[np.inf], [0.0]])
    assert len(lines(plot_arrangement(planes, Window([0.0, 0.0], 1.0), axes()))) == 0


def test_points_are_marked_at_their_orthogonal_projection():
    window = Window([0.0, 0.0, 0.0], 2.0, [[1.0, 0], [0, 1.0], [0, 0]])
    planes = Hyperplanes([[1.0, 0, 0]], np.zeros(3), [[0.0]])
    ax = plot_arrangement(
        planes, window, axes(), [[0.5, -1.0, 7.0]], labels=["a"], centroid=[1.0, 0.25, -3.0]
    )
    marked = {line.get_label(): line.get_xydata()[0] for line in ax.lines}
    np.testing.assert_allclose(marked["a"], [0.5, -1.0])
    np.testing.assert_allclose(marked["batch centroid, projected"], [1.0, 0.25])


@pytest.mark.parametrize(
    "window", [Window(np.zeros(3), 1.0), Window(np.zeros((4, 2)), 1.0), Window(np.zeros(1), 1.0)]
)
def test_windows_that_are_not_one_picture_are_rejected(window):
    planes = Hyperplanes(
        np.ones((1, window.input_dimension)), np.zeros(window.input_dimension), [[0.0]]
    )
    with pytest.raises(ValueError, match="expected one of dimension 2"):
        plot_arrangement(planes, window, axes())


def test_planes_of_another_space_are_rejected():
    planes = Hyperplanes(np.ones((1, 3)), np.zeros(3), [[0.0]])
    with pytest.raises(ValueError, match=r"expected normals \(n, 2\), received \(1, 3\)"):
        plot_arrangement(planes, Window(np.zeros(2), 1.0), axes())


def test_points_of_another_space_are_rejected():
    planes = Hyperplanes(np.ones((1, 2)), np.zeros(2), [[0.0]])
    with pytest.raises(ValueError, match=r"points: expected shape \(m, 2\), received \(1, 3\)"):
        plot_arrangement(planes, Window(np.zeros(2), 1.0), axes(), np.zeros((1, 3)))


def test_series_draw_the_mean_and_the_band():
    ax = axes()
    assert plot_series([0, 1, 2], [1, 2, 4], [0, 1, 3], [2, 3, 5], ax=ax, label="a") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), [1, 2, 4])
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [1, 2, 3]), r"one shape \(n,\)"),
        (([0, 1], [1, 2], [0, 1]), "low and high together"),
    ],
)
def test_series_that_do_not_fit_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_series(*arguments, ax=axes())


def test_without_axes_a_new_figure_is_made():
    import matplotlib

    matplotlib.use("Agg")
    first, second = plot_series([0], [1]), plot_series([0], [1])
    assert first.figure is not second.figure


RNG = np.random.default_rng(7)
W1, B1 = RNG.normal(size=(9, 3)), RNG.normal(size=9) * 0.3
W2, B2 = RNG.normal(size=(6, 9)) / 3, RNG.normal(size=6) * 0.3
W3 = RNG.normal(size=(2, 6))
SKEWED = np.array([[1.0, 0.5], [0.0, 2.0], [0.25, 0.0]])  # neither orthogonal nor of length 1


def network(x):
    return W3 @ jax.nn.relu(W2 @ jax.nn.relu(W1 @ x + B1) + B2)


def maximum(x):
    return jnp.max(W1[:5] @ x + B1[:5])


@pytest.fixture(scope="module")
def part():
    return partition(network, Window(np.array([0.1, 0.0, -0.1]), 1.0, SKEWED))


@pytest.fixture(scope="module")
def segment():
    return partition(network, Window(np.zeros(3), 1.5, SKEWED[:, :1]))


def faces(ax):
    (collection,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    return collection


def by_label(ax):
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def test_cells_are_drawn_where_they_are(part):
    ax = plot_partition(part, axes())
    drawn = [path.vertices[:-1] for path in faces(ax).get_paths()]
    assert len(drawn) == part.activation_regions
    for cell, corners in enumerate(drawn):
        here = part.corner[part.start[cell] : part.start[cell + 1]]
        np.testing.assert_array_equal(corners, part.vertices[here])


def test_neighbouring_regions_have_different_colours_of_at_most_six(part):
    colors = faces(plot_partition(part, axes())).get_facecolor()
    assert len(np.unique(colors, axis=0)) <= 6
    assert (colors[part.left] != colors[part.right]).any(axis=1).all()


@pytest.mark.slow
def test_cells_of_one_region_have_one_colour_and_no_line_between():
    part = partition(maximum, Window(np.zeros(3), 2.0, SKEWED))
    assert part.activation_regions < len(part.region)
    ax = plot_partition(part, axes())
    colors = faces(ax).get_facecolor()
    for region in np.unique(part.region):
        assert len(np.unique(colors[part.region == region], axis=0)) == 1
    border = part.region[part.left] != part.region[part.right]
    assert (colors[part.left] != colors[part.right]).any(axis=1).tolist() == border.tolist()
    assert len(lines(ax)) == border.sum()


@pytest.mark.parametrize("output", [None, 1])
def test_slopes_are_norms_of_the_gradients_part_in_the_slice(part, output):
    ax = plot_partition(part, axes(), color="slope", output=output)
    onto = SKEWED @ np.linalg.inv(SKEWED.T @ SKEWED) @ SKEWED.T  # orthogonal projection
    with jax.enable_x64(True):
        x = np.array([part.window.points(u) for u in part.witness])
        jacobian = np.asarray(jax.jit(jax.vmap(jax.jacfwd(network)))(x))
    rows = slice(None) if output is None else [output]
    expected = np.linalg.norm(jacobian[:, rows] @ onto, axis=(1, 2))
    np.testing.assert_allclose(faces(ax).get_array(), expected, rtol=1e-9, atol=1e-12)


def test_the_slopes_scale_has_a_label_and_the_limits_asked_for(part):
    ax = plot_partition(part, axes(), color="slope", limits=(0.0, 3.0))
    assert faces(ax).get_clim() == (0, 3)
    (scale,) = (a for a in ax.figure.axes if a is not ax)
    assert "output per input unit" in scale.get_ylabel()


def test_stages_colour_the_facets_on_which_their_units_switch(part):
    ax = plot_partition(part, axes(), color="stage")
    found = by_label(ax)
    assert list(found) == ["cut by stage 1", "cut by stage 2"]
    values = []
    for stage, handle in enumerate(found.values()):
        middle = np.array(handle.get_segments()).mean(axis=1)
        assert len(middle) == (part.facet_stage == stage).sum()
        x = np.asarray(part.window.center) + middle @ SKEWED.T
        first = x @ W1.T + B1
        values = first if stage == 0 else np.maximum(first, 0) @ W2.T + B2
        np.testing.assert_allclose(abs(values).min(axis=1), 0, atol=1e-9)
    colors = {tuple(handle.get_color()[0]) for handle in found.values()}
    assert len(colors) == 2
    assert not [c for c in ax.collections if isinstance(c, PolyCollection)]


def test_partition_points_are_projected_and_hollow_off_the_slice(part):
    center = np.asarray(part.window.center)
    normal = np.linalg.svd(SKEWED.T)[2][2]
    near, off, outside = SKEWED @ [0.5, -0.5], SKEWED @ [-0.25, 0.75], SKEWED @ [1.5, 0.0]
    points = center + np.stack([near, off + 3 * normal, outside])
    ax = plot_partition(part, axes(), points=points, centroid=center + normal)
    found = by_label(ax)
    filled, hollow = found["point in the slice"], found["point off the slice, projected"]
    np.testing.assert_allclose(filled.get_xydata(), [[0.5, -0.5]])
    np.testing.assert_allclose(hollow.get_xydata(), [[-0.25, 0.75]])
    assert hollow.get_markerfacecolor() == "none" != filled.get_markerfacecolor()
    cross = found["batch centroid off the slice, projected"]
    np.testing.assert_allclose(cross.get_xydata(), [[0, 0]], atol=1e-12)


def test_the_decision_boundary_is_drawn_where_the_outputs_are_equal(part):
    level = float((part.intercept[:, 0] - part.intercept[:, 1]).mean())  # the set is not empty
    pieces, _ = level_set(part, 0, minus=1, level=level)
    assert len(pieces)
    handle = by_label(plot_partition(part, axes(), boundary=pieces))["decision boundary"]
    u = np.array(handle.get_segments()).reshape(-1, 2)
    with jax.enable_x64(True):
        f = np.asarray(jax.vmap(network)(np.asarray(part.window.center) + u @ SKEWED.T))
    np.testing.assert_allclose(f[:, 0], f[:, 1] + level, atol=1e-9)


def test_axes_name_the_units_along_the_basis(part):
    ax = plot_partition(part, axes())
    length = np.linalg.norm(SKEWED[:, 0])
    assert ax.get_xlabel() == f"$u_1$ ({length:.3g} input units along basis vector 1)"
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) == ((-1, 1), (-1, 1), 1)


@pytest.mark.parametrize("color", ["region", "slope", "stage"])
def test_a_segment_shows_f_and_its_breakpoints(segment, color):
    ax = plot_partition(segment, axes(), color=color, output=1)
    ends = lines(ax)
    u = ends.mean(axis=1)[:, 0]  # inside the drawn pieces, where f is affine
    with jax.enable_x64(True):
        f = np.asarray(jax.vmap(network)(u[:, None] * SKEWED[:, 0]))[:, 1]
    np.testing.assert_allclose(ends.mean(axis=1)[:, 1], f, atol=1e-12)
    breaks = np.sort(np.concatenate([line.get_xdata() for line in ax.lines]))
    np.testing.assert_allclose(breaks, np.sort(ends[:, 0, 0])[1:])


def test_many_cells_are_drawn_as_pixels(part, monkeypatch):
    assert not faces(plot_partition(part, axes())).get_rasterized()
    monkeypatch.setattr(jaxregions.plotting, "MANY_CELLS", 3)
    assert faces(plot_partition(part, axes())).get_rasterized()
    assert not faces(plot_partition(part, axes(), rasterized=False)).get_rasterized()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color": "depth"}, "color: expected 'region', 'slope' or 'stage', received 'depth'"),
        ({"output": 2}, "output: expected 0 to 1 or None, received 2"),
        ({"boundary": np.zeros((3, 2))}, r"boundary: expected pieces \(M, 2, 2\)"),
        ({"points": np.zeros((4, 2))}, r"points: expected shape \(m, 3\), received \(4, 2\)"),
        ({"centroid": np.zeros(2)}, r"centroid: expected shape \(m, 3\)"),
    ],
)
def test_bad_options_of_partition_plots_are_rejected(part, options, message):
    ax = axes()
    with pytest.raises(ValueError, match=message):
        plot_partition(part, ax, **options)
    assert not ax.collections


def test_slopes_of_an_incomplete_partition_are_rejected():
    part = partition(network, Window(np.zeros(3), 1.0, SKEWED), max_regions=2)
    with pytest.raises(ValueError, match="expected a complete partition, received MAX_REGIONS"):
        plot_partition(part, axes(), color="slope")
    assert len(faces(plot_partition(part, axes())).get_paths()) == len(part.region)
