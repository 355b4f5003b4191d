"""Fingerprints: what is one geometry is always found; what is not is never taken for it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from hpcal.core import fingerprint as fp
from hpcal.core.alignment import displacement, same_geometry
from hpcal.core.arrays import FloatArray
from hpcal.core.errors import StructureError
from hpcal.core.structure import Structure

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
TOL = fp.TOLERANCE_A
NAMES = ("CH4", "C6H6", "CO2", "C2H2", "H2O", "NH3", "CH3CH2OH", "isobutane", "H2", "O", "SiF4", "P2", "BF3")


def of(name: str, **more: object) -> Structure:
    atoms = molecule(name)
    return Structure(numbers=atoms.numbers, positions=atoms.positions, **more)  # type: ignore[arg-type]


def moved(structure: Structure, rng: np.random.Generator, delta: float = 0.0) -> Structure:
    """Turned or mirrored, shifted, renumbered, and each atom displaced by at most ``delta``."""
    steps = rng.normal(size=(len(structure), 3))
    steps *= delta * rng.uniform(size=(len(structure), 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
    turn = ortho_group.rvs(3, random_state=rng)
    order = rng.permutation(len(structure))
    positions = ((structure.positions + steps) @ turn + rng.normal(size=3) * 10)[order]
    return Structure(
        numbers=structure.numbers[order],
        positions=positions,
        charge=structure.charge,
        multiplicity=structure.multiplicity,
    )


def thermal(structure: Structure, rng: np.random.Generator, amplitude: float = 0.05) -> Structure:
    return structure.with_positions(
        structure.positions + rng.normal(size=structure.positions.shape) * amplitude
    )


def spring_frames(name: str, count: int, rng: np.random.Generator, kelvin: float = 300) -> FloatArray:
    """(count, N, 3) Boltzmann frames of a harmonic spring network with stiff bonds and soft torsions."""
    atoms = molecule(name)
    x, n = atoms.positions, len(atoms)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    hops = np.where(distances < 1.7, 1, 9)
    for k in range(n):
        hops = np.minimum(hops, hops[:, k : k + 1] + hops[k : k + 1])
    hessian = np.zeros((n, 3, n, 3))
    for p, q in itertools.combinations(range(n), 2):
        e = (x[p] - x[q]) / distances[p, q]
        block = {1: 30.0, 2: 4.0, 3: 0.3}.get(int(hops[p, q]), 0.03) * np.outer(e, e)
        for s, t, sign in ((p, p, 1), (q, q, 1), (p, q, -1), (q, p, -1)):
            hessian[s, :, t] += sign * block
    values, modes = np.linalg.eigh(hessian.reshape(3 * n, 3 * n))
    stiff = values > 1e-3
    c = rng.normal(size=(count, stiff.sum())) * np.sqrt(8.617e-5 * kelvin / values[stiff])
    frames: FloatArray = x + (c @ modes[:, stiff].T).reshape(count, n, 3)
    return frames


def crystal(rng: np.random.Generator, amplitude: float = 0.1) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.05), scale_atoms=True)
    atoms.positions += rng.normal(size=(len(atoms), 3)) * amplitude
    return Structure(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=(True,) * 3)


def moved_crystal(structure: Structure, rng: np.random.Generator, delta: float = 0.0) -> Structure:
    """Cell and atoms turned, another origin, atoms wrapped and shifted by lattice vectors, renumbered."""
    assert structure.cell is not None
    steps = rng.normal(size=(len(structure), 3))
    steps *= delta * rng.uniform(size=(len(structure), 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
    turn = ortho_group.rvs(3, random_state=rng)
    order = rng.permutation(len(structure))
    away = rng.integers(-2, 3, size=(len(structure), 3)) * np.asarray(structure.pbc) @ structure.cell
    positions = (structure.positions + steps + away) @ turn + rng.normal(size=3) * 5
    return Structure(
        numbers=structure.numbers[order],
        positions=positions[order],
        cell=structure.cell @ turn,
        pbc=structure.pbc,
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_change_the_geometry_does_not_change_what_is_found(name: str) -> None:
    rng = np.random.default_rng(1)
    for structure in (of(name), thermal(of(name), rng)):
        for _ in range(20):
            other = moved(structure, rng)
            np.testing.assert_allclose(fp.signature(other), fp.signature(structure), atol=fp.ROUNDING_A / 2)
            assert fp.fingerprint(other) in fp.matching_fingerprints(structure)
            assert same_geometry(structure, other)


@pytest.mark.slow
def test_no_near_duplicate_is_missed_in_10000_random_cases() -> None:
    """Each pair is displaced by up to 99.9 % of the tolerance, half of them by all of that each atom."""
    rng = np.random.default_rng(2)
    bases = [of(name) for name in NAMES]
    missed = 0
    for case in range(10_000):
        structure = thermal(bases[case % len(bases)], rng)
        other = moved(structure, rng, 0.999 * TOL)
        assert np.abs(fp.signature(structure) - fp.signature(other)).max(initial=0.0) <= fp.half_window()
        missed += fp.fingerprint(other) not in fp.matching_fingerprints(structure)
    assert missed == 0


def test_the_bound_on_a_signature_is_reached_and_never_passed() -> None:
    """Two atoms pulled apart by δ each: their distance grows by 2 δ, which is the bound."""
    structure = of("H2")
    apart = structure.with_positions(structure.positions * (1 + 2 * TOL / np.ptp(structure.positions)))
    change = np.abs(fp.signature(apart) - fp.signature(structure)).max()
    assert change == pytest.approx(2 * TOL, rel=1e-6)
    assert change <= fp.half_window()
    assert fp.fingerprint(apart) in fp.matching_fingerprints(structure)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9), tolerance=st.sampled_from([1e-4, 1e-3, 1e-2]))
def test_displacement_below_the_tolerance_is_the_same_and_well_above_is_not(
    seed: int, n: int, tolerance: float
) -> None:
    """Any structure, with several elements or one: moves of 0.9 τ are found; breathing by 2 τ is not.

    Breathing moves all distances from the centre by the same factor; no motion undoes it, and the
    structure is random, so that no permutation does either.
    """
    rng = np.random.default_rng(seed)
    numbers = rng.choice([1, 6, 8][: rng.integers(1, 4)], size=n)
    positions = np.zeros((n, 3))
    for k in range(1, n):
        while np.linalg.norm(positions[k] - positions[:k], axis=1).min() < 0.7:
            positions[k] = rng.uniform(-2.5, 2.5, size=3)
    structure = Structure(numbers=numbers, positions=positions)
    found = displacement(structure, moved(structure, rng, 0.9 * tolerance), tolerance)
    assert found is not None
    assert found <= tolerance
    if n > 1:
        centred = positions - positions.mean(axis=0)
        far = np.linalg.norm(centred, axis=1).max()
        longest = np.linalg.norm(positions[:, None] - positions[None], axis=-1).max()
        breathed = structure.with_positions(centred * (1 + 2.5 * tolerance * max(1 / far, 1 / longest)))
        assert not same_geometry(structure, moved(breathed, rng), tolerance)


def test_one_atom_moved_to_either_side_of_the_tolerance() -> None:
    """The least largest displacement of a diatomic stretched by 2 d is d."""
    structure = of("H2")
    length = np.ptp(structure.positions)
    for d, expected in ((0.999 * TOL, True), (1.001 * TOL, False)):
        stretched = structure.with_positions(structure.positions * (1 + 2 * d / length))
        assert same_geometry(structure, stretched) is expected


def test_the_least_largest_displacement_is_found_where_least_squares_miss_it() -> None:
    """Two groups far from each other, one atom off: Lawson's weights share what is left."""
    rng = np.random.default_rng(8)
    for _ in range(200):
        structure = thermal(of("isobutane"), rng)
        other = moved(structure, rng, 0.97 * TOL)
        assert same_geometry(structure, other)


def test_conformers_are_different_and_mirror_images_the_same() -> None:
    rng = np.random.default_rng(3)
    twisted = of("CH3CH2OH")
    assert same_geometry(twisted, moved(twisted.with_positions(twisted.positions * [1, 1, -1]), rng))
    peroxide = of("H2O2")
    o = [k for k, z in enumerate(peroxide.numbers) if z == 8]
    h = next(k for k, z in enumerate(peroxide.numbers) if z == 1)
    near = min(o, key=lambda k: float(np.linalg.norm(peroxide.positions[h] - peroxide.positions[k])))
    axis = peroxide.positions[o[1]] - peroxide.positions[o[0]]
    axis /= np.linalg.norm(axis)
    arm, angle = peroxide.positions[h] - peroxide.positions[near], np.radians(1.0)
    turned = arm * np.cos(angle) + np.cross(axis, arm) * np.sin(angle)
    positions = peroxide.positions.copy()
    positions[h] = peroxide.positions[near] + turned + axis * (axis @ arm) * (1 - np.cos(angle))
    assert not same_geometry(peroxide, peroxide.with_positions(positions))


def chiral(substituents: tuple[int, int, int, int]) -> Structure:
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    lengths = np.array([{1: 1.09, 9: 1.36, 17: 1.76, 35: 1.94}[z] for z in substituents])
    return Structure(
        numbers=np.array([6, *substituents]), positions=np.vstack([np.zeros(3), corners * lengths[:, None]])
    )


def test_an_enantiomer_is_the_same_geometry_but_a_diastereomer_is_not() -> None:
    rng = np.random.default_rng(4)
    one, other = chiral((1, 9, 17, 35)), chiral((9, 1, 17, 35))
    assert same_geometry(one, moved(other, rng))

    def pair(first: Structure, second: Structure) -> Structure:
        """Two centres far apart, oriented alike: distances within each are the same in both cases."""
        return Structure(
            numbers=np.concatenate([first.numbers, second.numbers]),
            positions=np.concatenate([first.positions, second.positions + np.array([6.0, 0.3, 0.1])]),
        )

    mirrored = other.with_positions(other.positions)
    assert not same_geometry(pair(one, one), pair(one, mirrored))
    both = pair(one, mirrored)
    assert same_geometry(both, both.with_positions(both.positions * [-1, 1, 1]))


def test_equal_distances_are_not_yet_an_equal_geometry() -> None:
    """Homometric sets: the same distances, sorted, of two shapes on a line and in the plane."""
    one = Structure(numbers=[1] * 6, positions=[[x, 0, 0] for x in (0, 1, 2, 6, 8, 11)])
    two = Structure(numbers=[1] * 6, positions=[[x, 0, 0] for x in (0, 1, 6, 7, 9, 11)])
    np.testing.assert_allclose(fp.signature(one), fp.signature(two))
    assert fp.fingerprint(one) == fp.fingerprint(two)
    assert not same_geometry(one, two)
    kite = Structure(numbers=[1] * 4, positions=[[0, 0, 0], [2, 0, 0], [1, 1, 0], [1, 3, 0]])
    trapezium = Structure(numbers=[1] * 4, positions=[[0, 0, 0], [4, 0, 0], [3, 1, 0], [1, 1, 0]])
    np.testing.assert_allclose(np.sort(fp.signature(kite)), [2**0.5, 2**0.5, 2, 2, 10**0.5, 10**0.5])
    np.testing.assert_allclose(np.sort(fp.signature(trapezium)), [2**0.5, 2**0.5, 2, 10**0.5, 10**0.5, 4])
    assert not same_geometry(kite, trapezium)


def test_labels_of_atoms_and_of_the_state_count() -> None:
    co = Structure(numbers=[6, 8], positions=[[0, 0, 0], [0, 0, 1.13]])
    assert not same_geometry(co, Structure(numbers=[7, 7], positions=co.positions))
    assert not same_geometry(co, Structure(numbers=[6, 8], positions=co.positions, charge=1, multiplicity=2))
    assert not same_geometry(co, Structure(numbers=[6, 8], positions=co.positions, multiplicity=3))
    up = Structure(numbers=[26, 26], positions=[[0, 0, 0], [0, 0, 2]], magnetic_moments=[2.0, 2.0])
    mixed = Structure(numbers=[26, 26], positions=[[0, 0, 0], [0, 0, 2]], magnetic_moments=[2.0, -2.0])
    swapped = Structure(numbers=[26, 26], positions=[[0, 0, 0], [0, 0, 2]], magnetic_moments=[-2.0, 2.0])
    assert not same_geometry(up, mixed)
    assert same_geometry(mixed, swapped)


def test_symmetric_clusters_with_one_atom_off_are_told_apart() -> None:
    """An icosahedron and one whose corner is pushed in by 5 τ; every rotation of it is found."""
    golden = (1 + 5**0.5) / 2
    corners = [np.roll([0, s, t * golden], k) for s in (1, -1) for t in (1, -1) for k in range(3)]
    ball = Structure(numbers=[18] * 13, positions=np.vstack([np.zeros(3), *corners]) * 2)
    dented = ball.positions.copy()
    dented[1] *= 1 - 5 * TOL / np.linalg.norm(dented[1])
    other = ball.with_positions(dented)
    rng = np.random.default_rng(5)
    assert not same_geometry(ball, moved(other, rng))
    for _ in range(5):
        assert same_geometry(ball, moved(ball, rng, 0.9 * TOL))
        assert same_geometry(other, moved(other, rng, 0.9 * TOL))


def test_molecules_that_are_not_the_same_are_never_said_to_be() -> None:
    """Independent thermal frames; a claim of sameness would come with a displacement below τ."""
    rng = np.random.default_rng(6)
    for name in NAMES:
        if name == "O":
            continue
        base = of(name)
        for _ in range(30):
            one, two = thermal(base, rng), thermal(base, rng)
            gap = np.abs(np.sort(_pairs(one)) - np.sort(_pairs(two))).max()
            if gap > 2.1 * TOL:  # no motion and no permutation can undo this
                assert not same_geometry(one, two)


def _pairs(structure: Structure) -> FloatArray:
    i, j = np.triu_indices(len(structure), 1)
    return np.asarray(np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1))


def test_a_crystal_is_the_same_after_wrapping_turning_and_another_origin() -> None:
    rng = np.random.default_rng(7)
    for amplitude in (0.0, 0.1):
        structure = crystal(rng, amplitude)
        for _ in range(10):
            other = moved_crystal(structure, rng, 0.99 * TOL)
            assert np.abs(fp.signature(structure) - fp.signature(other)).max() <= fp.half_window(
                periodic=True
            )
            assert fp.fingerprint(other) in fp.matching_fingerprints(structure)
            assert same_geometry(structure, other)
    assert not same_geometry(crystal(rng), crystal(rng))
    one = crystal(rng)
    nudged = one.positions.copy()
    nudged[0] += [3 * TOL, 0, 0]
    assert not same_geometry(one, one.with_positions(nudged))


def test_lattices_count_to_within_the_tolerance() -> None:
    one = bulk("Cu", a=3.6)
    structure = Structure(numbers=one.numbers, positions=one.positions, cell=one.cell[:], pbc=(True,) * 3)
    for strain, expected in ((1e-4, True), (1e-3, False)):
        other = Structure(
            numbers=one.numbers, positions=one.positions, cell=one.cell[:] * (1 + strain), pbc=(True,) * 3
        )
        assert same_geometry(structure, other) is expected
        if expected:
            assert fp.fingerprint(other) in fp.matching_fingerprints(structure)


def test_a_slab_and_its_copies() -> None:
    rng = np.random.default_rng(9)
    atoms = fcc111("Al", (2, 2, 3), vacuum=6.0)
    atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.05
    slab = Structure(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=(True, True, False)
    )
    for _ in range(5):
        other = moved_crystal(slab, rng, 0.99 * TOL)
        assert fp.fingerprint(other) in fp.matching_fingerprints(slab)
        assert same_geometry(slab, other)
    free = Structure(numbers=slab.numbers, positions=slab.positions)
    assert not same_geometry(slab, free)


def test_a_batch_gives_what_one_alone_gives_bit_for_bit() -> None:
    rng = np.random.default_rng(10)
    numbers = np.array([rng.permutation([1, 1, 1, 1, 6, 6, 8, 8 - k % 2]) for k in range(300)])
    positions = rng.normal(size=(300, 8, 3)) * 2
    structures = [Structure(numbers=z, positions=x) for z, x in zip(numbers, positions, strict=True)]
    assert fp.fingerprints(numbers, positions).tolist() == [fp.fingerprint(s) for s in structures]
    owners, values = fp.many_matching_fingerprints(numbers, positions)
    for k, structure in enumerate(structures):
        assert set(values[owners == k]) == set(fp.matching_fingerprints(structure))
    assert (fp.fingerprints(numbers, positions) == np.floor(fp.fingerprints(numbers, positions))).all()
    assert fp.fingerprints(np.zeros((0, 3)), np.zeros((0, 3, 3))).shape == (0,)
    with pytest.raises(StructureError, match="not \\(n, N\\)"):
        fp.fingerprints(numbers, positions[:5])
    with pytest.raises(StructureError, match="one composition"):
        fp.signatures(numbers, positions)


@pytest.mark.parametrize(("name", "most"), [("CH3CH2OH", 1), ("C6H6", 5), ("C4H4NH", 3), ("CH4", 60)])
def test_a_fingerprint_singles_out_frames_of_one_molecule(name: str, most: float) -> None:
    """Thermal harmonic frames at 300 K: candidates per question, scaled to 10⁵ frames.

    Methane has 9 degrees of freedom, each moving by some 50 τ; a few dozen is what is left of 10⁵.
    """
    rng = np.random.default_rng(11)
    frames = spring_frames(name, 20_000, rng)
    numbers = np.broadcast_to(molecule(name).numbers, frames.shape[:2])
    assert _false_candidates(numbers, frames) * 1e5 / len(frames) < most


def test_a_fingerprint_singles_out_frames_of_dynamics() -> None:
    """rMD17 ethanol at 500 K: less than one candidate for 10⁵ frames."""
    path = DATA / "rmd17" / "rmd17_ethanol_train_01.npz"
    if not path.exists():
        pytest.skip("no rMD17 data")
    with np.load(path) as archive:
        frames = archive["coords"]
        numbers = np.broadcast_to(archive["nuclear_charges"].astype(np.int64), frames.shape[:2])
    assert _false_candidates(numbers, frames) * 1e5 / len(frames) < 1


def _false_candidates(numbers: np.ndarray, frames: FloatArray) -> float:
    """Mean number of other frames whose fingerprint is among the ones that a frame asks for."""
    stored, counts = np.unique(fp.fingerprints(numbers, frames), return_counts=True)
    _, asked = fp.many_matching_fingerprints(numbers, frames)
    assert len(asked) / len(frames) < 4.5  # values to look for, on average
    place = np.minimum(np.searchsorted(stored, asked), len(stored) - 1)
    return float((counts[place] * (stored[place] == asked)).sum() / len(frames) - 1)


def test_200000_fingerprints_of_20_atoms_take_seconds() -> None:
    rng = np.random.default_rng(12)
    numbers = np.broadcast_to([1] * 10 + [6] * 7 + [8] * 3, (20_000, 20))
    positions = rng.normal(size=(20_000, 20, 3)) * 2
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        fp.fingerprints(numbers, positions)
        best = min(best, time.perf_counter() - start)
    assert best < 20_000 * 20e-6
