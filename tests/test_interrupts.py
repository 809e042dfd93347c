"""Ctrl-C and limits in the middle of a call: what was proven is returned, and it is right."""

import signal
import threading

import jax
import numpy as np
import pytest
from processes import in_a_process, with_peak
from small_networks import recipe, traced

import jaxregions as jr
from jaxregions import exact
from jaxregions._interrupts import interruptible
from jaxregions.engines import affine, cells, leaves, signs, signtree, unions, vertices
from jaxregions.engines.enclosures import exact_rows
from jaxregions.engines.farkas import decide
from jaxregions.engines.search import Search, Stopped
from jaxregions.partitions import assembly, trees

CUBE = jr.Window(np.zeros(3), 1.0)
COUNTS = {"vertices": (vertices, "edges_of"), "cells": (cells, "cut")}


@pytest.fixture(scope="module")
def net():
    return traced(recipe((3, 8, 8), 3))


def interrupting(monkeypatch, module, name, *, call=1, times=1):
    """Ctrl-C just before that call of a function."""
    real, calls = getattr(module, name), []

    def function(*args, **options):
        calls.append(name)
        if call <= len(calls) < call + times:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(module, name, function)


def test_the_first_ctrl_c_raises_a_flag_and_the_second_an_exception():
    with interruptible() as halt:
        assert not halt.is_set()
        signal.raise_signal(signal.SIGINT)
        assert halt.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_signal_is_left_to_whoever_handles_it(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        with interruptible() as halt:
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (seen, halt.is_set()) == ([True], False)


def test_other_threads_change_nothing():
    found = []

    def run():
        with interruptible():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


@pytest.mark.parametrize("engine", COUNTS)
def test_a_count_survives(net, monkeypatch, engine):
    full = jr.count_regions(net, CUBE, engine=engine)
    interrupting(monkeypatch, *COUNTS[engine], call=2)
    some = jr.count_regions(net, CUBE, engine=engine)
    assert some.status == jr.Status.INTERRUPTED
    assert 1 < some.activation_regions < full.activation_regions
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_a_search_at_once(net, monkeypatch):
    interrupting(monkeypatch, cells, "cut", call=1, times=2)
    monkeypatch.setattr(Search, "out_of_time", lambda _: False)  # the flag is not looked at
    some = jr.count_regions(net, CUBE, engine="cells")
    assert some.status == jr.Status.INTERRUPTED


def test_degenerate_windows_are_not_begun_after_it(net, monkeypatch):
    layers = [(np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0]]), np.zeros(3), "relu")]
    degenerate = traced(layers)
    assert jr.count_regions(degenerate, CUBE).activation_regions == 4
    interrupting(monkeypatch, vertices, "flats", call=1)
    some = jr.count_regions(degenerate, CUBE)
    assert (some.status, some.activation_regions) == (jr.Status.INTERRUPTED, 1)


def test_a_partition_keeps_its_cells(net, monkeypatch):
    full = jr.partition(net, CUBE)
    interrupting(monkeypatch, trees, "facets")
    some = jr.partition(net, CUBE)
    assert (some.status, some.activation_regions) == (
        jr.Status.INTERRUPTED,
        full.activation_regions,
    )
    assert len(some.tables) == 2
    np.testing.assert_array_equal(some.patterns[1], full.patterns[1])
    assert (len(some.left), len(some.vertices), some.affine_regions) == (0, 0, -1)
    assert np.isnan(some.volume).all()
    assert np.isnan(some.slope).all()


@pytest.mark.parametrize("k", [1, 2])
def test_a_partition_ends_while_maps_are_made_in_rationals(monkeypatch, k):
    def slivers(x):  # 1 + 2^-60 and 1 + 2^-59 are no floats
        steps = [jax.nn.relu(2.0**60 * (x[0] - 1) - i) for i in range(3)]
        return sum(steps) / 2.0**60 + x[1]

    window = jr.Window(np.array([1.0, 0.0]), 0.5, basis=np.eye(2)[:, :k])
    full = jr.partition(slivers, window)
    assert full.slope[:, 0, 0].tolist() == [0, 1, 2, 3]
    interrupting(monkeypatch, affine, "outputs_at")
    some = jr.partition(slivers, window, affine=False)
    assert (some.status, some.activation_regions) == (jr.Status.INTERRUPTED, 4)
    assert (len(some.tables), some.affine_regions) == (1, -1)
    assert np.isnan(some.slope).all()
    np.testing.assert_array_equal(some.patterns[0], full.patterns[0])


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_partition_ends_in_the_middle_of_a_stage(monkeypatch, k):
    net = traced(recipe((2, 8, 8, 8), 0))
    window = jr.Window(np.zeros(2), 2.0, basis=np.eye(2)[:, :k])
    full = jr.partition(net, window)
    interrupting(monkeypatch, signs, "_settled", call=2)
    some = jr.partition(net, window)
    assert (some.status, len(some.tables)) == (jr.Status.INTERRUPTED, 1)
    assert some.activation_regions == full.tables[0].regions == len(some.witness)
    assert np.isnan(some.slope).all()


@pytest.mark.parametrize("name", ["facets", "affine_maps", "polytopes"])
def test_max_seconds_of_a_partition_bounds_what_follows_the_search(net, monkeypatch, name):
    full = jr.partition(net, CUBE)
    room = assembly if name == "affine_maps" else trees
    searches, real = [], getattr(room, name)

    def late(*args):
        searches[-1].limits = searches[-1].limits._replace(deadline=-np.inf)
        return real(*args)

    def kept(*args, **limits):
        answer = leaves.leaves(*args, **limits)
        searches.append(answer.search)
        return answer

    monkeypatch.setattr(trees, "leaves", kept)
    monkeypatch.setattr(room, name, late)
    some = jr.partition(net, CUBE)
    assert some.status == jr.Status.MAX_SECONDS
    assert some.activation_regions == full.activation_regions == len(some.witness)
    assert len(some.left) == (0 if name == "facets" else len(full.left))
    assert np.isnan(some.slope).all()
    assert (len(some.vertices), some.affine_regions) == (0, -1)


def test_affine_regions_are_not_claimed_when_time_ends_before_them(net, monkeypatch):
    real = unions.facets

    def late(found, signs):
        found.search.limits = found.search.limits._replace(deadline=-np.inf)
        return real(found, signs)

    full = jr.count_regions(net, CUBE)
    monkeypatch.setattr(unions, "facets", late)
    some = jr.count_regions(net, CUBE, affine=True)
    assert (some.status, some.affine_regions) == (jr.Status.MAX_SECONDS, -1)
    assert some.activation_regions == full.activation_regions


def test_the_more_nodes_wait_the_fewer_are_taken():
    class Waiting:
        def __init__(self, count):
            self.parent = np.zeros(count)

    assert signtree._at_most([], 1000) == 1000
    assert signtree._at_most([Waiting(999)], 1000) == 1000
    assert signtree._at_most([Waiting(1000), Waiting(500)], 1000) == 500
    assert signtree._at_most([Waiting(500)] * 100, 1000) == signtree._FEW
    assert signtree._at_most([Waiting(500)] * 100, 20) == 20


# With a real clock -------------------------------------------------------------------------------


SIGNALS = """
import os, signal, sys, threading, time
import numpy as np
from small_networks import recipe, traced
import jaxregions as jr
net = traced(recipe(%s))
windows = jr.Window(%s, %s)
call = lambda: %s
call()  # compiles
rng = np.random.default_rng(int(sys.argv[1]))
for wait in rng.uniform(0, %s, 5):
    timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    found = call()
    while timer.is_alive():
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            pass
    status, regions = (np.atleast_1d(v) for v in (found.status, found.activation_regions))
    print(*status, "|", *regions)
"""
COUNT = "jr.count_regions(net, windows, engine='cells', progress=False, max_seconds=20)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "center", "radius", "call", "span", "regions"),
    [
        ("(4, 16, 16), 4", "np.zeros(4)", 0.5, "jr.partition(net, windows)", 2, [17007]),
        ("(4, 16, 16), 4", "np.zeros(4)", 0.5, "jr.count_regions(net, windows)", 0.1, [17007]),
        ("(10, 32, 32), 6", "np.zeros((30, 10))", 0.015, COUNT, 6, [1971] * 30),
        ("(64, 64, 64), 7", "np.zeros(64)", 0.005, COUNT, 10, [33214]),
    ],
)
def test_signals_at_any_moment(sizes, center, radius, call, span, regions):
    lines = in_a_process(SIGNALS % (sizes, center, radius, call, span)).splitlines()
    assert len(lines) == 5
    ended = 0
    for line in lines:
        status, bound = (np.array(part.split(), int) for part in line.split("|"))
        assert set(status) <= {jr.Status.COMPLETE, jr.Status.INTERRUPTED, jr.Status.MAX_SECONDS}
        assert (bound >= 1).all()
        assert (bound <= regions).all()
        assert (bound == regions)[status == jr.Status.COMPLETE].all()
        ended += (status == jr.Status.INTERRUPTED).any()
    assert ended > 0


TOO_MANY = """
import numpy as np
import jaxregions as jr
from small_networks import recipe, traced
net, window = traced(recipe(%r, %r)), jr.Window(np.zeros(%r), %r)
jr.count_regions(net, window, max_regions=2)  # compiles
found = jr.count_regions(net, window, max_seconds=20)
print(found.status, found.activation_regions)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "seed", "radius"), [((10, 32, 32), 6, 0.1), ((64, 64, 64), 7, 0.02)]
)
def test_what_has_too_many_regions_ends_within_bounded_memory(sizes, seed, radius):
    status, regions, kilobytes = with_peak(TOO_MANY % (sizes, seed, sizes[0], radius))
    assert status == jr.Status.MAX_SECONDS
    assert regions > 1000
    assert kilobytes < 3 << 20


def test_rational_work_stops_at_once():
    """Rows of 784 dimensions take 785 evaluations, programs in them many pivots."""
    net, windows = traced(recipe((3, 4, 4), 1)), jr.Window(np.zeros((1, 3)), 1.0)
    calls = []

    def pause():
        calls.append(None)
        if len(calls) == 2:
            raise Stopped

    start, step = exact.rationals(np.zeros(3)), exact.rationals(np.ones(3))
    with pytest.raises(Stopped):
        exact_rows(net, windows, 0, start, step, 1, pause)
    calls.clear()
    slope, value = exact.rationals(np.eye(3)), exact.rationals(-np.ones(3) / 2)
    with pytest.raises(Stopped):
        decide(slope, value, step, pause)
