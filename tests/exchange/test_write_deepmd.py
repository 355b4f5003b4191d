"""Folders of DeePMD as its own documentation has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from exchange.data import LEVEL, made_up, molecules

from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.structure import Structure, from_ase
from hpcal.exchange.deepmd_write import write_deepmd
from hpcal.exchange.files import read_dataset


def frames(root: Path) -> list[dict]:
    """Every frame under a folder, by numpy alone."""
    found = []
    for types in sorted(root.rglob("type.raw")):
        system = types.parent
        names = (system / "type_map.raw").read_text().split()
        symbols = [names[int(t)] for t in types.read_text().split()]
        arrays = {p.stem: np.load(p) for p in (system / "set.000").glob("*.npy")}
        assert all(array.dtype == np.float64 for array in arrays.values())
        nopbc = (system / "nopbc").exists()
        assert nopbc == ("box" not in arrays)
        for i in range(len(arrays["energy"])):
            found.append(
                {k: v[i] for k, v in arrays.items()} | {"symbols": symbols, "split": system.parent.name}
            )
    return found


def test_every_frame_is_there_in_ev_and_angstrom(tmp_path: Path) -> None:
    dataset = replace(made_up(40), charges=np.zeros(40, dtype=int), multiplicities=np.ones(40, dtype=int))
    note, left_out = write_deepmd(tmp_path / "out", dataset)
    assert note.startswith("10 structures have no forces")
    for words in ("level of theory (wb97x", "dipoles", "partial charges", "initial magnetic moments"):
        assert words in left_out
    found = frames(tmp_path / "out")
    assert len(found) == 40
    for frame in found:
        (i,) = np.flatnonzero(dataset.energies == frame["energy"])
        structure, label = dataset.structure(i), dataset.label(i)
        assert Atoms(frame["symbols"]).numbers.tolist() == structure.numbers.tolist()
        assert frame["split"] == dataset.splits[i]
        np.testing.assert_array_equal(frame["coord"].reshape(-1, 3), structure.positions)
        assert ("force" in frame) == (label.forces is not None)
        if label.forces is not None:
            np.testing.assert_array_equal(frame["force"].reshape(-1, 3), label.forces)
        assert ("box" in frame) == structure.periodic
        assert ("virial" in frame) == (label.stress is not None)
        if structure.periodic:
            np.testing.assert_array_equal(frame["box"].reshape(3, 3), structure.cell)
            volume = abs(np.linalg.det(structure.cell))
            np.testing.assert_allclose(frame["virial"].reshape(3, 3), -volume * label.stress, rtol=1e-12)


def test_the_virial_is_minus_the_derivative_by_strain(tmp_path: Path) -> None:
    """Against finite differences of the energy, without any convention on stress in between."""
    rng = np.random.default_rng(0)
    atoms = Atoms(
        "Ar4", positions=[[0, 0, 0], [2.4, 2.4, 0], [2.4, 0, 2.4], [0, 2.4, 2.4]], cell=[4.8] * 3, pbc=True
    )
    atoms.rattle(0.1, rng=rng)
    atoms.calc = LennardJones(sigma=3.0, epsilon=0.01, rc=7.0, smooth=True)
    structure = from_ase(atoms)
    label = Label(
        energy=atoms.get_potential_energy(), forces=atoms.get_forces(), stress=atoms.get_stress(voigt=False),
        level=LEVEL,
    )  # fmt: skip
    write_deepmd(tmp_path / "out", Dataset.of([structure], [label]))
    virial = np.load(tmp_path / "out/train/Ar4/set.000/virial.npy").reshape(3, 3)
    step, numeric = 1e-5, np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell[:] @ strain.T, scale_atoms=True)
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        numeric[a, b] = -(energies[0] - energies[1]) / (2 * step)
    np.testing.assert_allclose(virial, numeric, atol=1e-6)
    assert abs(virial).max() > 0.1


def test_names_of_folders(tmp_path: Path) -> None:
    write_deepmd(tmp_path / "out", molecules(10))
    systems = sorted(p.parent.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("type.raw"))
    assert systems == ["train/C2H2", "train/CH4", "train/H2O", "train/H2O_2", "train/H3N"]
    assert (tmp_path / "out/train/H2O/type.raw").read_text() == "3\n0\n0\n"
    assert (tmp_path / "out/train/H2O/type_map.raw").read_text() == "H\nC\nN\nO\n"


def test_only_deepmd_data_give_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_deepmd(out, molecules(10))
    write_deepmd(out, molecules(1))
    assert len(list(out.rglob("type.raw"))) == 1
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other things"):
        write_deepmd(out, molecules(3))
    assert (out / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        write_deepmd(tmp_path / "file", molecules(3))
    (tmp_path / "empty").mkdir()
    write_deepmd(tmp_path / "empty", molecules(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "out"]


def test_states_of_a_formula(tmp_path: Path) -> None:
    dataset = molecules(10)
    ions = replace(dataset, charges=np.where(dataset.sizes == 5, -2, 0))
    note, _ = write_deepmd(tmp_path / "ions", ions)
    assert "2 structures are charged or no singlets" in note
    charges = np.zeros(10, dtype=int)
    charges[2] = 2  # one of the waters, in another order of atoms than the first
    with pytest.raises(
        InputError, match=r"cannot hold 4 of 10 structures \(the first is 100\).*several charges"
    ):
        write_deepmd(tmp_path / "mixed", replace(dataset, charges=charges))
    assert not (tmp_path / "mixed").exists()


def test_what_it_cannot_hold(tmp_path: Path) -> None:
    slab = Structure(numbers=[18], positions=np.zeros((1, 3)), cell=9 * np.eye(3), pbc=(True, True, False))
    with pytest.raises(InputError, match="one or two directions"):
        write_deepmd(tmp_path / "out", Dataset.of([slab], [Label(energy=1.0, forces=None, level=LEVEL)]))
    with pytest.raises(InputError, match="not finite"):
        write_deepmd(tmp_path / "out", replace(molecules(2), energies=np.array([0.0, np.nan])))
    with pytest.raises(InputError, match="cannot be written"):
        write_deepmd(tmp_path / "none" / "out", molecules(2))
    assert list(tmp_path.iterdir()) == []


def test_hpcal_reads_it_back(tmp_path: Path) -> None:
    n = 40
    dataset = replace(
        made_up(n),
        charges=np.zeros(n, dtype=int),
        multiplicities=np.ones(n, dtype=int),
        magnetic_moments=None,
    )
    write_deepmd(tmp_path / "out", dataset)
    found = read_dataset(tmp_path / "out", LEVEL)
    place = {s.content_hash: i for i, s in enumerate(dataset.structures())}
    assert len(found) == len(place) == n
    for i, structure in enumerate(found.structures()):
        j = place[structure.content_hash]
        assert found.splits[i] == dataset.splits[j]
        assert found.energies[i] == dataset.energies[j]
        np.testing.assert_array_equal(found.forces_of(i), dataset.forces_of(j))
        np.testing.assert_allclose(found.stresses[i], dataset.stresses[j], rtol=1e-12)
