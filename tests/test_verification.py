"""Certificates are accepted as they are made, and refused when anything in them is wrong."""

from itertools import pairwise

import numpy as np
import pytest
from batchnorm_slices import at_centroid
from small_networks import integer_layers, integer_windows, recipe, traced

import jaxregions as jr
from jaxregions.engines import certificates
from jaxregions.engines.cells import count_cells
from jaxregions.engines.certificates import ABOVE, LEAF, SPLIT, load_certificate
from jaxregions.engines.frontier import UNLIMITED, Limits
from jaxregions.verification import proven_regions, verify


def certified(net, windows, limits=UNLIMITED):
    return count_cells(net, windows, limits=limits, certificate=True)


def proven(net, certificate, windows):
    """The number of regions that a certificate proves of each window."""
    found = proven_regions(net, windows, certificate)
    assert found.failure is None
    assert found.complete.all()
    return found.regions.tolist()


@pytest.fixture(scope="module")
def example():
    """Three small windows of a 3-8-8 network."""
    net = traced(recipe((3, 8, 8), 3))
    windows = jr.Window(np.random.default_rng(2).normal(size=(3, 3)) / 2, 0.35)
    return net, windows, certified(net, windows)


@pytest.fixture(scope="module")
def concurrent():
    """Hyperplanes through the centroid: proofs whose margin is exactly zero."""
    net, windows = at_centroid(7, 6, 3)
    return net, windows, certified(net, windows)


def test_a_certificate_proves_its_count(example):
    net, windows, counts = example
    assert verify(net, windows, counts.certificate) is True
    assert proven(net, counts.certificate, windows) == counts.regions.tolist()
    assert counts.regions.max() > 20


def test_concurrent_hyperplanes_have_proofs_in_whole_numbers(concurrent):
    net, windows, counts = concurrent
    assert verify(net, windows, counts.certificate) is True
    assert len(counts.certificate.exact_proof) > 0


@pytest.fixture(scope="module")
def thin():
    """A cell between a float and the next, split by a second stage."""
    first = np.array([[1.0], [3.0]]), np.array([-1 / 3, -1.0]), "relu"
    layers = [first, (np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([2.0**-56, -1.0]), "relu")]
    net, windows = traced(layers), jr.Window(np.zeros((1, 1)), 1.0)
    return net, windows, certified(net, windows)


def test_points_that_are_no_floats_are_checked(thin, tmp_path):
    net, windows, counts = thin
    assert verify(net, windows, counts.certificate) is True
    assert proven(net, counts.certificate, windows) == [5]
    assert jr.count_regions(net, windows).activation_regions == 5  # by segments
    number = len(counts.certificate.exact_cell)
    assert number > 0
    jr.save_certificate(tmp_path / "thin", counts.certificate)
    assert verify(net, windows, tmp_path / "thin") is True
    for text in ("1/3 0/1", "1/3", "1/2 1/8", "2/1 1/8", "1/0 1/1", "x/1 1/1", ""):
        wrong = counts.certificate._replace(exact_point=np.array(number * [text]))
        assert verify(net, windows, wrong) is not True
    none = counts.certificate._replace(exact_cell=np.zeros(0, int), exact_point=np.zeros(0, str))
    assert verify(net, windows, none) is not True


@pytest.mark.parametrize("radius", [1e-310, 5e-324])
def test_windows_smaller_than_the_smallest_normal_float(radius):
    weights, bias = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]), np.array([-3.0, -2.0, -1.0])
    net = traced([(np.eye(2), np.ones(2), "relu"), (weights, bias, "relu")])
    windows = jr.Window(np.zeros((1, 2)), radius)
    counts = certified(net, windows)
    assert verify(net, windows, counts.certificate) is True
    assert proven(net, counts.certificate, windows) == [6]


def test_degenerate_slices_with_dead_units():
    for seed in range(6):
        net = traced(integer_layers(seed, (3, 4, 3, 1), ("relu", "relu", None)))
        windows = integer_windows(seed, 4, 3, 2)
        counts = certified(net, windows)
        assert verify(net, windows, counts.certificate) is True
        assert proven(net, counts.certificate, windows) == counts.regions.tolist()


def test_a_window_without_leading_axes(example):
    net, windows, _ = example
    assert verify(net, windows[1], certified(net, windows[1:2]).certificate) is True


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "seed", "radius"), [((3, 16, 16), 3, 1), ((4, 16, 16), 4, 0.5)])
def test_recipes(sizes, seed, radius):
    net, window = traced(recipe(sizes, seed)), jr.Window(np.zeros((1, sizes[0])), radius)
    counts = certified(net, window)
    assert verify(net, window, counts.certificate) is True
    assert proven(net, counts.certificate, window) == [{3: 4896, 4: 17007}[sizes[0]]]


def test_certificates_come_back_from_disk(example, tmp_path):
    net, windows, counts = example
    certificates.save_certificate(tmp_path / "c.npz", counts.certificate)
    loaded = load_certificate(tmp_path / "c.npz")
    for name, column in counts.certificate._asdict().items():
        np.testing.assert_array_equal(getattr(loaded, name), column)
    assert verify(net, windows, loaded) is True


def test_another_file_is_no_certificate(example, tmp_path):
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(ValueError, match="expected a certificate"):
        load_certificate(tmp_path / "x.npz")
    assert "not a certificate" in verify(*example[:2], tmp_path / "x.npz")


# Files in pieces ---------------------------------------------------------------------------------


@pytest.fixture
def written(example, concurrent, tmp_path, monkeypatch):
    """Certificates of the examples in pieces of a kilobyte: (net, windows, counts, path) each."""
    monkeypatch.setattr(certificates.Recorder.piece_done, "__defaults__", (1000,))
    out = []
    for i, (net, windows, counts) in enumerate((example, concurrent)):
        path = tmp_path / f"{i}.proof"
        found = count_cells(net, windows, limits=UNLIMITED, certificate=path)
        assert found.certificate == path
        assert found.regions.tolist() == counts.regions.tolist()
        out.append((net, windows, counts, path))
    return out


def ends_of_pieces(path):
    """Offsets at which the pieces of a file begin, and its end."""
    data, at = path.read_bytes(), [len(certificates._MAGIC)]
    while at[-1] < len(data):
        at.append(at[-1] + 8 + int.from_bytes(data[at[-1] : at[-1] + 8], "little"))
    return data, at


def test_pieces_prove_what_the_whole_proves(written):
    for net, windows, counts, path in written:
        assert len(ends_of_pieces(path)[1]) > 4
        assert verify(net, windows, str(path)) is True
        assert proven(net, path, windows) == counts.regions.tolist()
        whole = load_certificate(path)
        assert verify(net, windows, whole) is True
        last = whole.stage == len(net.stages)
        assert sorted(map(tuple, whole.witness[last])) == sorted(
            map(tuple, counts.certificate.witness[counts.certificate.stage == len(net.stages)])
        )


def test_a_file_that_ends_early_proves_a_lower_bound(written, tmp_path):
    most = 0
    for net, windows, counts, path in written:
        data, at = ends_of_pieces(path)
        before = np.zeros(len(windows.center), int)
        for end in (at[0], at[1] - 1, at[1], at[2], at[-2] + 20, at[-1] - 1):
            cut = tmp_path / "cut"
            cut.write_bytes(data[:end])
            found = proven_regions(net, windows, cut)
            assert found.failure is None
            assert (found.regions <= counts.regions).all()
            assert (found.regions == counts.regions)[found.complete].all()
            assert (found.regions >= before).all()
            assert not found.complete.all()
            assert verify(net, windows, cut).startswith("incomplete: ")
            before = found.regions
        most = max(most, before.sum())
    assert most > 10


def test_a_search_that_stopped_wrote_a_lower_bound(example, tmp_path):
    net, windows, counts = example
    limit = int(counts.regions.max()) - 1
    limits = Limits(limit, np.inf)
    some = count_cells(net, windows, limits=limits, certificate=tmp_path / "some")
    found = proven_regions(net, windows, tmp_path / "some")
    assert found.failure is None
    np.testing.assert_array_equal(found.complete, some.status == 0)
    assert found.complete.any()
    assert not found.complete.all()
    assert (found.regions <= some.regions).all()
    assert (found.regions == counts.regions)[found.complete].all()


@pytest.mark.parametrize("damage", ["order", "twice", "left out", "changed"])
def test_damaged_files_are_refused(written, tmp_path, damage):
    net, windows, _, path = written[0]
    data, at = ends_of_pieces(path)
    parts = [data[a:b] for a, b in pairwise(at)]
    if damage == "order":
        parts[1], parts[2] = parts[2], parts[1]
    elif damage == "twice":
        parts.insert(1, parts[1])
    elif damage == "left out":
        del parts[1]
    else:
        middle = len(parts[1]) // 2
        parts[1] = parts[1][:middle] + b"abcd" + parts[1][middle + 4 :]
    (tmp_path / "bad").write_bytes(data[: at[0]] + b"".join(parts))
    found = proven_regions(net, windows, tmp_path / "bad")
    assert found.failure
    assert found.regions.tolist() == [0, 0, 0]


def with_directory_entry(content, offset, value):
    """The .npz with two bytes changed in the first entry of its directory."""
    at = content.index(b"PK\x01\x02") + offset
    return content[:at] + value + content[at + 2 :]


@pytest.mark.parametrize(
    ("offset", "value"), [(6, b"\xff\x00"), (8, b"\x01\x00"), (8, b"\x60\x00"), (10, b"\x07\x00")]
)
def test_pieces_of_an_unknown_kind_are_refused(thin, tmp_path, offset, value):
    net, windows, counts = thin
    jr.save_certificate(tmp_path / "c", counts.certificate)
    data, at = ends_of_pieces(tmp_path / "c")
    content = with_directory_entry(data[at[0] + 8 :], offset, value)
    (tmp_path / "bad").write_bytes(data[: at[0] + 8] + content)
    assert "a piece that cannot be read" in verify(net, windows, tmp_path / "bad")
    with pytest.raises(ValueError, match="is damaged"):
        load_certificate(tmp_path / "bad")


@pytest.mark.parametrize("length", [2**40, 2**62, 2**64 - 1])
def test_a_piece_longer_than_its_file_was_not_written(thin, tmp_path, length):
    net, windows, counts = thin
    jr.save_certificate(tmp_path / "c", counts.certificate)
    data, at = ends_of_pieces(tmp_path / "c")
    cut = data[: at[0]] + length.to_bytes(8, "little") + data[at[0] + 8 :]
    (tmp_path / "bad").write_bytes(cut)
    assert verify(net, windows, tmp_path / "bad").startswith("incomplete: ")
    with pytest.raises(ValueError, match="received an empty one"):
        load_certificate(tmp_path / "bad")


@pytest.mark.slow
def test_many_regions_are_proven_within_bounded_memory(tmp_path):
    resource = pytest.importorskip("resource")
    net, window = traced(recipe((6, 16, 16), 5)), jr.Window(np.zeros(6), 0.2)
    found = jr.count_regions(net, window, certificate=tmp_path / "proof")
    assert verify(net, window, found.certificate) is True
    proof = proven_regions(net, window, found.certificate)
    assert proof.regions[0] == jr.count_regions(net, window, engine="vertices").activation_regions
    assert found.activation_regions > 50_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 << 20  # kB


def test_a_search_that_stopped_proves_nothing(example):
    net, windows, _ = example
    counts = certified(net, windows, Limits(10, np.inf))
    assert verify(net, windows, counts.certificate).startswith("incomplete: ")


# Tampering ---------------------------------------------------------------------------------------


def changed(certificate, **edits):
    """A copy; each edit receives a copy of its column and changes it, or returns another."""
    columns = {}
    for name, edit in edits.items():
        column = getattr(certificate, name).copy()
        answer = edit(column)
        columns[name] = column if answer is None else answer
    return certificate._replace(**columns)


def put(index, value):
    def edit(column):
        column[index] = value

    return edit


def first(mask):
    return int(np.flatnonzero(mask)[0])


STEPS = ("kind", "entry", "proof", "before", "branch")


def both_sides(c):
    """The steps that follow the first split."""
    return np.flatnonzero(c.before == first(c.kind == SPLIT))


def long_proof(c):
    """A proof of at least two rows that a step refers to."""
    used = np.unique(c.proof[c.proof >= 0])
    return int(used[np.diff(c.clause)[used] >= 2][0])


def without_row(c):
    proof, at = long_proof(c), c.clause[long_proof(c)]
    names = ("clause_stage", "clause_entry", "clause_sign", "weight")
    edits = {n: (lambda column: np.delete(column, at)) for n in names}

    def starts(column):
        column[proof + 1 :] -= 1

    return changed(c, clause=starts, **edits)


def with_another_proof(c):
    """One that does not speak of the switching value."""
    step = first(c.proof >= 0)
    rows = np.repeat(np.arange(len(c.clause) - 1), np.diff(c.clause))
    other = np.setdiff1d(rows, rows[c.clause_entry == c.entry[step]])[0]
    return changed(c, proof=put(step, other))


def swapped_leaves(c):
    a, b = np.flatnonzero((c.kind == LEAF) & (c.entry == c.entry.max()))[0], first(c.kind == LEAF)
    return changed(c, entry=lambda e: put([a, b], e[[b, a]])(e))


TAMPERED = {
    "witness of another cell": lambda c: changed(c, witness=lambda w: put(-1, w[-2])(w)),
    "witness outside the window": lambda c: changed(c, witness=put((-1, 0), 1.0)),
    "witness is no number": lambda c: changed(c, witness=put((-1, 0), np.nan)),
    "step out of the cell": lambda c: changed(c, step=lambda s: put(3, 30 * s[3])(s)),
    "no step": lambda c: changed(c, step=put((3, 1), 0.0)),
    "no step of a window": lambda c: changed(c, step=put((0, 1), np.nan)),
    "multiplier negative": lambda c: changed(c, weight=put(c.clause[long_proof(c)], -1.0)),
    "multiplier infinite": lambda c: changed(c, weight=put(c.clause[long_proof(c)], np.inf)),
    "multipliers all zero": lambda c: changed(c, weight=lambda w: np.zeros(len(w))),
    "multiplier too large": lambda c: changed(
        c, weight=lambda w: put(c.clause[long_proof(c)], 1e6 * w[c.clause[long_proof(c)]])(w)
    ),
    "row left out of a proof": without_row,
    "row with the other sign": lambda c: changed(
        c, clause_sign=lambda s: put(c.clause[long_proof(c)], -s[c.clause[long_proof(c)]])(s)
    ),
    "row of another unit": lambda c: changed(c, clause_entry=lambda e: (e + 1) % 8),
    "row out of range": lambda c: changed(c, clause_entry=put(0, 8)),
    "stage out of range": lambda c: changed(c, clause_stage=put(0, 2)),
    "another proof": with_another_proof,
    "proof that does not exist": lambda c: changed(c, proof=put(0, len(c.clause))),
    "refuted by itself": lambda c: changed(c, proof=lambda p: put(first(p >= 0), -1)(p)),
    "split not made": lambda c: changed(c, kind=put(first(c.kind == SPLIT), ABOVE)),
    "side unknown": lambda c: changed(c, kind=put(first(c.proof >= 0), 9)),
    "zero that is none": lambda c: changed(c, kind=lambda k: put(first((k == 1) | (k == 2)), 3)(k)),
    "sides of a split exchanged": lambda c: changed(
        c, branch=lambda b: put(both_sides(c), 1 - b[both_sides(c)])(b)
    ),
    "split with one side twice": lambda c: changed(c, branch=put(both_sides(c), 1)),
    "a side that is none": lambda c: changed(c, branch=put(both_sides(c)[0], 2)),
    "tree that follows itself": lambda c: changed(c, before=lambda b: put(3, 3)(b)),
    "tree that follows what comes later": lambda c: changed(c, before=lambda b: put(3, 5)(b)),
    "tree cut off": lambda c: c._replace(**{n: getattr(c, n)[:-1] for n in STEPS}),
    "decided twice": lambda c: changed(c, entry=put(1, c.entry[0])),
    "leaf too early": lambda c: changed(c, kind=put(0, LEAF)),
    "leaves exchanged": swapped_leaves,
    "leaf counted twice": lambda c: changed(
        c, entry=put(np.flatnonzero(c.kind == LEAF)[-1], c.entry[c.kind == LEAF][-2])
    ),
    "region of another window": lambda c: changed(c, window=put(-1, 0)),
    "region of another parent": lambda c: changed(c, parent=put(-1, c.parent[-1] - 1)),
    "region of another stage": lambda c: changed(c, stage=put(-1, 1)),
    "region invented": lambda c: c._replace(
        **{
            n: np.concatenate([getattr(c, n), getattr(c, n)[-1:]])
            for n in ("window", "parent", "stage", "witness", "step")
        }
    ),
    "window without a root": lambda c: changed(c, window=put(0, 1)),
    "column too short": lambda c: changed(c, entry=lambda e: e[:-1]),
    "proofs out of order": lambda c: changed(c, clause=put(1, len(c.weight) + 1)),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_certificates_are_refused(example, kind):
    net, windows, counts = example
    answer = verify(net, windows, TAMPERED[kind](counts.certificate))
    assert isinstance(answer, str)
    assert answer


WHOLE = [
    "0 0 0",
    "-1 2 3",
    "1",
    "1 1 1 1 1 1 1 1 1",
    "x",
    "",
    "\u00b2",
    "\u0663 1",
    "1_0",
    "0x1",
    "A",
]


@pytest.mark.parametrize("edit", WHOLE)
def test_tampered_whole_multipliers_are_refused(concurrent, edit):
    net, windows, counts = concurrent
    c = counts.certificate
    weights = np.array([edit, *c.exact_weight[1:]])
    assert isinstance(verify(net, windows, c._replace(exact_weight=weights)), str)


@pytest.mark.parametrize("name", certificates.Certificate._fields)
def test_columns_of_another_kind_are_refused(concurrent, thin, name):
    net, windows, counts = thin if name in ("exact_cell", "exact_point") else concurrent
    column = getattr(counts.certificate, name)
    for other in (column[:-1], column[0], column[None], column.astype(object), column.tolist()):
        edited = counts.certificate._replace(**{name: other})
        assert isinstance(verify(net, windows, edited), str)
    kind = column.dtype.kind
    for dtype in {"i": "fcU", "f": "iceU", "U": "ib"}[kind]:
        edited = counts.certificate._replace(**{name: np.zeros(column.shape, dtype)})
        assert verify(net, windows, edited).startswith(f"{name}: not an array")


def test_arguments_of_another_kind_are_named(example):
    net, windows, counts = example
    with pytest.raises(ValueError, match=r"net: expected the result of jr\.trace, received func"):
        verify(lambda x: x, windows, counts.certificate)
    with pytest.raises(ValueError, match=r"window: expected a jr\.Window, received ndarray"):
        verify(net, windows.center, counts.certificate)
    with pytest.raises(ValueError, match=r"certificate: expected .*certificate=.*NoneType"):
        verify(net, windows, None)
    with pytest.raises(ValueError, match=r"window: expected input dimension 3, .* received 2"):
        verify(net, jr.Window(np.zeros((3, 2)), 1.0), counts.certificate)


def test_a_perturbed_multiplier_of_a_tie_is_refused(concurrent):
    net, windows, counts = concurrent
    c = counts.certificate
    weights = [" ".join([f"{int(w.split()[0], 16) + 1:x}", *w.split()[1:]]) for w in c.exact_weight]
    assert isinstance(verify(net, windows, c._replace(exact_weight=np.array(weights))), str)


def test_a_certificate_holds_for_its_own_window_only(example):
    net, windows, counts = example
    other = jr.Window(windows.center, windows.radius * 1.5)
    assert isinstance(verify(net, other, counts.certificate), str)
    assert isinstance(verify(net, windows[:2], counts.certificate), str)


def test_a_certificate_holds_for_its_own_network_only(example):
    _, windows, counts = example
    assert isinstance(verify(traced(recipe((3, 8, 8), 4)), windows, counts.certificate), str)
