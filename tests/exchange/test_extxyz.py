"""Extended XYZ: what is written comes back to the last bit, and no fault of a file is silent."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.exchange.extxyz import (
    LabelledFrame,
    read_labelled,
    read_labelled_frames,
    read_structures,
    write_labelled,
    write_structures,
)

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
LEVEL = LevelOfTheory(
    code="pyscf", version="2.14", method="wb97x", settings={"basis": "6-31g*", "note": 'a "b" \\ c'}
)
WATER = "O 0.0 0.0 0.117\nH 0.0 0.757 -0.469\nH 0.0 -0.757 -0.469\n"
PROPERTIES = "Properties=species:S:1:pos:R:3"
FORCES = "O 0.0 0.0 0.1 0.0 0.0 1.5\nH 0.0 0.7 -0.4 0.0 0.1 0.2\nH 0.0 -0.7 -0.4 0.0 -0.1 0.2\n"

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
coordinates = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


def put(folder: Path, text: str, name: str = "in.xyz") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def frame(comment: str, atoms: str = WATER) -> str:
    return f"{len(atoms.splitlines())}\n{comment}\n{atoms}"


# ── What is written comes back ───────────────────────────────────────────────────────────────


@st.composite
def frames(draw: st.DrawFn) -> LabelledFrame:
    n = draw(st.integers(1, 5))
    row = st.lists(coordinates, min_size=3, max_size=3)
    positions = np.array(draw(st.lists(row, min_size=n, max_size=n)))
    three = st.lists(numbers, min_size=3, max_size=3)
    periodic = draw(st.booleans())
    structure = Structure(
        numbers=np.full(n, 2),  # helium: any count of atoms has paired electrons
        positions=positions,
        cell=np.diag(draw(st.lists(st.floats(1.0, 50.0), min_size=3, max_size=3))) if periodic else None,
        pbc=(True, False, True) if periodic else (False, False, False),
        charge=draw(st.sampled_from([0, 0, 2])) if n > 1 else 0,
        multiplicity=draw(st.sampled_from([1, 3])) if n > 2 else 1,
        magnetic_moments=np.array(draw(st.lists(numbers, min_size=n, max_size=n)))
        if draw(st.booleans())
        else None,
    )
    label = Label(
        energy=draw(numbers),
        forces=np.array(draw(st.lists(three, min_size=n, max_size=n))) if draw(st.booleans()) else None,
        stress=np.array(draw(st.lists(three, min_size=3, max_size=3))) if periodic else None,
        dipole=np.array(draw(three)),
        dipole_origin=np.array(draw(three)),
        charges=np.array(draw(st.lists(numbers, min_size=n, max_size=n))),
        charge_scheme="mulliken",
        level=LEVEL,
    )
    text = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=12)
    return LabelledFrame(structure=structure, label=label, info={"split": "train", "note": draw(text)})


@settings(max_examples=60, deadline=None)
@given(items=st.lists(frames(), min_size=1, max_size=3))
def test_labelled_structures_come_back_to_the_last_bit(tmp_path_factory, items: list[LabelledFrame]) -> None:
    path = tmp_path_factory.mktemp("xyz") / "data.extxyz"
    assert write_labelled(path, items) == len(items)
    for written, back in zip(items, read_labelled_frames(path), strict=True):
        assert back.structure.content_hash == written.structure.content_hash
        assert back.structure.positions.tobytes() == written.structure.positions.tobytes()
        assert back.label.level == LEVEL
        assert back.label.charge_scheme == "mulliken"
        assert back.info == written.info
        for name in ("energy", "forces", "stress", "dipole", "dipole_origin", "charges"):
            expected, found = getattr(written.label, name), getattr(back.label, name)
            if expected is None:
                assert found is None
            else:
                assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def test_ase_reads_what_is_written(tmp_path: Path) -> None:
    structure = Structure(
        numbers=np.array([8, 1, 1]),
        positions=np.array([[0, 0, 0.1], [0, 0.7, 1 / 3], [0, -0.7, 0.4]]),
        cell=np.array([[9.0, 1, 0], [0, 8, 2], [3, 0, 7]]),
        pbc=(True, True, False),
    )
    label = Label(
        energy=-2078.5, forces=np.arange(9.0).reshape(3, 3) / 7, stress=np.diag([1e-3, 2e-3, 0]), level=LEVEL
    )
    path = tmp_path / "a.extxyz"
    write_labelled(
        path, [LabelledFrame(structure=structure, label=label, info={"split": "test", "generation": 3})]
    )
    atoms = ase.io.read(path)
    assert atoms.symbols.get_chemical_formula() == "H2O"
    np.testing.assert_array_equal(atoms.positions, structure.positions)
    np.testing.assert_array_equal(atoms.cell[:], structure.cell)
    np.testing.assert_array_equal(atoms.pbc, structure.pbc)
    np.testing.assert_array_equal(atoms.arrays["REF_forces"], label.forces)
    np.testing.assert_array_equal(np.reshape(atoms.info["REF_stress"], (3, 3)), label.stress)
    assert atoms.info["REF_energy"] == label.energy
    assert (atoms.info["charge"], atoms.info["multiplicity"]) == (0, 1)
    assert (atoms.info["split"], atoms.info["generation"]) == ("test", 3)


def test_files_by_ase_are_read_with_its_results(tmp_path: Path) -> None:
    atoms = Atoms(
        "OH2", positions=[[0, 0, 0.125], [0, 0.75, -0.5], [0, -0.75, -0.5]], cell=[8, 9, 10], pbc=True
    )
    stress = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) / 64
    forces = np.arange(9.0).reshape(3, 3) / 8
    atoms.calc = SinglePointCalculator(atoms, energy=-3.25, forces=forces, stress=stress, dipole=[0, 0, 0.5])
    path = tmp_path / "ase.extxyz"
    ase.io.write(path, [atoms, atoms])
    labelled = read_labelled(path)
    assert len(labelled) == 2
    structure, label = labelled[1]
    np.testing.assert_array_equal(structure.cell, atoms.cell[:])
    assert structure.pbc == (True, True, True)
    assert label.energy == -3.25
    np.testing.assert_array_equal(label.forces, forces)
    np.testing.assert_array_equal(label.stress, atoms.get_stress(voigt=False))
    np.testing.assert_array_equal(label.dipole, [0, 0, 0.5])


def test_a_stress_of_six_numbers_is_in_voigt_order(tmp_path: Path) -> None:
    path = put(
        tmp_path, frame(f'{PROPERTIES} Lattice="9 0 0 0 9 0 0 0 9" REF_energy=1 REF_stress="1 2 3 4 5 6"')
    )
    np.testing.assert_array_equal(read_labelled(path)[0][1].stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])


def test_charge_and_multiplicity_are_read_or_0_and_1(tmp_path: Path) -> None:
    text = frame("") + frame("charge=-1 multiplicity=2") + frame(f'{PROPERTIES} multiplicity="3" charge=+2.0')
    assert [(s.charge, s.multiplicity) for s in read_structures(put(tmp_path, text))] == [
        (0, 1),
        (-1, 2),
        (2, 3),
    ]


@pytest.mark.parametrize(
    "comment",
    [
        "water, it's E = -76.4 [a.u.] {x",
        "don't 'quote",
        'a="b',
        "=",
        "= =",
        '""',
        "\\",
        "a = ",
        "é ☃",
        "E = 1 E = 2",
    ],
)
def test_a_plain_comment_may_say_anything(tmp_path: Path, comment: str) -> None:
    assert len(read_structures(put(tmp_path, frame(comment) * 2))) == 2


def test_spellings_that_occur(tmp_path: Path) -> None:
    text = frame('pbc=[T, T, F] Lattice="9 0 0 0 9 0 0 0 9" ' + PROPERTIES, "cl 0 0 0\nCL 0 0 5\n")
    text += "\n  \n" + frame("", "6 0 0 0 7 7\n6 0 0 1.2 7 7\n") + "\n\n"
    first, second = read_structures(put(tmp_path, text.replace("\n", "\r\n")))
    assert (first.formula, first.pbc) == ("Cl2", (True, True, False))
    assert second.formula == "C2"


def test_a_lattice_without_pbc_is_periodic(tmp_path: Path) -> None:
    path = put(tmp_path, frame('Lattice="9 0 1 0 9 0 2 0 9" ' + PROPERTIES))
    assert read_structures(path)[0].pbc == (True, True, True)
    np.testing.assert_array_equal(read_structures(path)[0].cell, ase.io.read(path, format="extxyz").cell[:])


# ── Faults ───────────────────────────────────────────────────────────────────────────────────

LATTICE = 'Lattice="9 0 0 0 9 0 0 0 9"'
GOOD = frame("energy=1")
FAULTS = {
    "nan": (GOOD + frame("", "O 0 0 nan\n"), 2, "not finite"),
    "infinite": (frame("", "O 0 0 inf\n"), 1, "not finite"),
    "cut in the atoms": (GOOD + "3\n\nO 0 0 0\n", 2, "3 atoms announced, 1 there"),
    "cut in a line": (GOOD + "3\n\nO 0.0 0.0 0.117\nH 0.0 0.7", 2, "columns"),
    "cut in a number": (GOOD + "2\n\nHe 0.00 0.00 0.00\nHe 0.00 0.00 3.1", 2, "cut short"),
    "cut after the count": (GOOD + "3\n", 2, "cut short"),
    "unknown element": (GOOD * 2 + frame("", "Xx 0 0 0\n"), 3, "unknown element 'Xx'"),
    "dummy atom": (frame("", "X 0 0 0\n"), 1, "unknown element"),
    "number of no element": (frame("", "119 0 0 0\n"), 1, "unknown element '119'"),
    "more atoms than announced": (
        "1\nenergy=1\nO 0 0 0\nO 0 0 3\n" + GOOD,
        2,
        "number of atoms of the frame before",
    ),
    "fewer atoms than announced": ("4\n\n" + WATER + GOOD, 1, "is the number of atoms (4) right"),
    "a billion atoms": (GOOD + "1000000000\n\n" + WATER, 2, "1000000000 atoms announced"),
    "a count of many digits": ("9" * 6000 + "\n\n" + WATER, 1, "atoms announced"),
    "no atoms": ("0\n\n", 1, "at least one atom"),
    "negative count": ("-3\n\n" + WATER, 1, "not an XYZ file"),
    "not xyz": ("data_glycine\n_cell_length_a 5.1\n", 1, "not an XYZ file"),
    "charge in words": (frame("charge=neutral"), 1, "charge must be a whole number, not 'neutral'"),
    "broken charge": (frame("charge=0.5"), 1, "charge must be a whole number, not '0.5'"),
    "nan charge": (frame("charge=nan"), 1, "charge must be a whole number"),
    "two charges": (frame("charge=1 charge=0"), 1, "`charge` is given twice"),
    "charge in capitals": (frame("Charge=2"), 1, "must be written `charge`"),
    "multiplicity zero": (frame("multiplicity=0"), 1, "multiplicity 0"),
    "odd electrons": (GOOD + frame("", "O 0 0 0\nH 0 0 1\n"), 2, "9 electrons"),
    "parity of a stated state": (frame("charge=1"), 1, "9 electrons"),
    "more electrons gone than there": (frame("charge=11"), 1, "electrons"),
    "short cell": (frame(f'{PROPERTIES} Lattice="9 0 0 0 9 0 0 0"'), 1, "wrong cell"),
    "cell in words": (frame(f'{PROPERTIES} Lattice="a 0 0 0 9 0 0 0 9"'), 1, "must hold numbers"),
    "flat cell": (frame(f'{PROPERTIES} Lattice="9 0 0 0 9 0 9 9 0"'), 1, "without volume"),
    "nan cell": (frame(f'{PROPERTIES} Lattice="9 0 0 0 9 0 0 0 nan"'), 1, "finite"),
    "periodic without cell": (frame(f'{PROPERTIES} pbc="T T T"'), 1, "without a cell"),
    "pbc of two": (frame(f'{PROPERTIES} {LATTICE} pbc="T T"'), 1, "pbc must be three"),
    "pbc in words": (frame(f'{PROPERTIES} {LATTICE} pbc="x y z"'), 1, "pbc must be three"),
    "no positions": (frame("Properties=species:S:1:forces:R:3"), 1, "no column `pos`"),
    "no species": (frame("Properties=pos:R:3", "0 0 0\n"), 1, "no column `species`"),
    "species against Z": (
        frame("Properties=species:S:1:pos:R:3:Z:I:1", "C 0 0 0 8\n"),
        1,
        "different elements",
    ),
    "broken Properties": (frame("Properties=species:S:pos:R:3"), 1, "name:kind:count"),
    "Properties of a billion": (frame("Properties=species:S:1:pos:R:1000000000"), 1, "name:kind:count"),
    "column given twice": (frame(f"{PROPERTIES}:pos:R:3", "O 0 0 0 1 1 1\n"), 1, "'pos' twice"),
    "too many columns": (frame(PROPERTIES, "He 0 0 0 7\n"), 1, "5 columns where 4 belong"),
    "too few columns": (frame("", "He 0 0\n"), 1, "3 columns where 4 belong"),
    "coordinate in words": (frame("", "He 0 zero 0\n"), 1, "must be a number, not 'zero'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_with_file_and_frame(tmp_path: Path, fault: str) -> None:
    text, number, words = FAULTS[fault]
    path = put(tmp_path, text)
    for read in (read_structures, read_labelled):
        with pytest.raises(FormatError, match=re.escape(f"{path}, frame {number}: ")) as caught:
            read(path)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.xyz"
    path.write_bytes(content)
    for read in (read_structures, read_labelled):
        with pytest.raises(FormatError, match=r"in\.xyz holds no .*structure"):
            read(path)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_structures(tmp_path / "none.xyz")
    with pytest.raises(FormatError, match="cannot be read"):
        read_structures(tmp_path)
    path = tmp_path / "in.xyz"
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(FormatError, match="not an XYZ file"):
        read_structures(path)


def test_a_claim_of_a_billion_atoms_allocates_nothing(tmp_path: Path) -> None:
    path = put(tmp_path, "1000000000\n\n" + WATER)
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_structures(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_cut_anywhere_is_refused_or_holds_fewer_frames(tmp_path: Path) -> None:
    """Never a structure that was not written: the last one is whole or it is refused."""
    rng = np.random.default_rng(1)
    path = tmp_path / "whole.xyz"
    written = [Structure(numbers=np.array([8, 1, 1]), positions=rng.normal(size=(3, 3))) for _ in range(3)]
    write_structures(path, written)
    data = path.read_bytes()
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        try:
            found = read_structures(path)
        except FormatError:
            continue
        assert found[:-1] == written[: len(found) - 1]
        # Gone may be only digits that are too few to be told from a short number.
        np.testing.assert_allclose(found[-1].positions, written[len(found) - 1].positions, rtol=0, atol=1e-13)


def test_overlapping_atoms_are_refused_when_asked_for(tmp_path: Path) -> None:
    near = "He 0 0 0\nHe 0 0 0.3\n"
    path = put(tmp_path, frame("") + frame("", near))
    assert len(read_structures(path)) == 2
    with pytest.raises(FormatError, match=r"frame 2: atoms 0 \(He\) and 1 \(He\) overlap: 0\.300 Å"):
        read_structures(path, min_distance_factor=0.6)
    assert len(read_structures(path, min_distance_factor=0.5)) == 2
    across = frame(f'{PROPERTIES} Lattice="9 0 0 0 9 0 0 0 9"', "He 0 0 0.1\nHe 0 0 8.9\n")
    path = put(tmp_path, across)
    with pytest.raises(FormatError, match=r"frame 1: .* overlap: 0\.200 Å"):
        read_structures(path, min_distance_factor=0.6)
    own_image = frame(f'{PROPERTIES} Lattice="9 0 0 0 9 0 0 0 0.3"', "He 0 0 0\n")
    with pytest.raises(FormatError, match=r"atoms 0 \(He\) and 0 \(He\) overlap"):
        read_structures(put(tmp_path, own_image), min_distance_factor=0.6)


# ── Labels ───────────────────────────────────────────────────────────────────────────────────


def test_the_level_is_the_files_or_the_one_given_or_unknown(tmp_path: Path) -> None:
    path = put(tmp_path, frame("energy=1"))
    assert read_labelled(path)[0][1].level == LevelOfTheory(
        code="file", version="unknown", method="as in in.xyz"
    )
    assert read_labelled(path, LEVEL)[0][1].level == LEVEL
    put(tmp_path, frame("energy=1 level=PBE/def2-SVP"))
    assert read_labelled(path)[0][1].level.method == "PBE/def2-SVP"
    put(
        tmp_path, frame('energy=1 level={"code": "x", "version": "1", "method": "m", "settings": {"a": [1]}}')
    )
    assert read_labelled(path)[0][1].level == LevelOfTheory(
        code="x", version="1", method="m", settings={"a": [1]}
    )
    with pytest.raises(FormatError, match=r"frame 1: the file says its level of theory is m \(x\)"):
        read_labelled(path, LEVEL)
    put(tmp_path, frame('energy=1 level="[1, 2]"'))
    with pytest.raises(FormatError, match="`level` must be a record"):
        read_labelled(path)


def test_names_of_labels(tmp_path: Path) -> None:
    for forces in ("REF_forces", "forces", "force"):
        path = put(tmp_path, frame(f"{PROPERTIES}:{forces}:R:3 energy=-7", FORCES))
        label = read_labelled(path)[0][1]
        assert label.energy == -7
        np.testing.assert_array_equal(label.forces[0], [0, 0, 1.5])
    both = frame(
        f"{PROPERTIES}:REF_forces:R:3:forces:R:3 energy=-7 REF_energy=-7.0", "He 0 0 0 1 2 3 1 2 3\n"
    )
    assert read_labelled(put(tmp_path, both))[0][1].energy == -7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (frame("energy=1") + frame("config_type=md"), r"frame 2: no label.*keys there: config_type"),
        (frame("energy=1 REF_energy=2"), "ambiguous label: `REF_energy` and `energy` differ"),
        (
            frame(f"{PROPERTIES}:REF_forces:R:3:forces:R:3 energy=1", "He 0 0 0 1 2 3 1 2 4\n"),
            "ambiguous label: `REF_forces` and `forces` differ",
        ),
        (frame("energy=1 energy=2"), "`energy` is given twice"),
        (frame("energy=nan"), "`energy` is not finite"),
        (frame("energy=low"), "`energy` must hold numbers"),
        (frame('energy="1 2"'), "one number"),
        (frame(f"{PROPERTIES}:forces:R:3 energy=1", "He 0 0 0 nan 0 0\n"), "`forces` is not finite"),
        (frame(f"{PROPERTIES}:forces:R:2 energy=1", "He 0 0 0 0 0\n"), "must have 3 numbers"),
        (frame('energy=1 dipole="1 2"'), "dipole has 3 numbers"),
        (frame('energy=1 stress="1 2"'), "stress has 6 or 9"),
    ],
)
def test_a_label_that_cannot_be_used_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read_labelled(put(tmp_path, text))


# ── Writing ──────────────────────────────────────────────────────────────────────────────────


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.extxyz"
    helium = Structure(numbers=np.array([2]), positions=np.zeros((1, 3)))
    write_structures(path, [helium])
    before = path.read_bytes()
    label = Label(energy=float("nan"), forces=None, level=LEVEL)
    good = LabelledFrame(structure=helium, label=Label(energy=1.0, forces=None, level=LEVEL))
    for items in (
        [],
        [good, LabelledFrame(structure=helium, label=label)],
        [good, LabelledFrame(structure=helium, label=good.label, info={"charge": 1})],
        [good, LabelledFrame(structure=helium, label=good.label, info={"a b": 1})],
        [good, LabelledFrame(structure=helium, label=good.label, info={"note": "two\nlines"})],
    ):
        with pytest.raises(InputError):
            write_labelled(path, items)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written"):
        write_structures(tmp_path / "none" / "out.xyz", [helium])


# ── Published files ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["ethanol_botnet/train.xyz", "zuo2020/Si_test.xyz"])
def test_published_files_read_as_ase_reads_them(tmp_path: Path, name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data")
    labelled = read_labelled(path)
    reference = ase.io.read(path, index=":")
    assert len(labelled) == len(reference)
    for (structure, label), atoms in zip(labelled, reference, strict=True):
        np.testing.assert_array_equal(structure.numbers, atoms.numbers)
        np.testing.assert_array_equal(structure.positions, atoms.positions)
        np.testing.assert_array_equal(structure.pbc, atoms.pbc)
        np.testing.assert_array_equal(structure.cell, atoms.cell[:])
        results = atoms.calc.results
        assert label.energy == results["energy"]
        forces = results["forces"] if "forces" in results else atoms.arrays["force"]
        np.testing.assert_array_equal(label.forces, forces)
