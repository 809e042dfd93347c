import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxregions.hyperplanes import Hyperplanes
from jaxregions.plotting import plot_arrangement, plot_series
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
