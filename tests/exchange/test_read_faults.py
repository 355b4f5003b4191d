"""Bad files of each format: one sentence with the place, and nothing allocated that is not there."""

from __future__ import annotations

import io
import sqlite3
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ase.db
import h5py
import numpy as np
import pytest
from ase import Atoms
from exchange import molecules
from exchange.molecules import NUMBERS, h5, water

from hpcal.core.errors import FormatError
from hpcal.core.units import HARTREE
from hpcal.exchange.files import read_found
from hpcal.exchange.found import ReadOptions

FRAMES = water(8)
N = len(FRAMES)
BILLION = 10**9


def spoiled(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


NAN = spoiled(FRAMES.positions, (2, 1, 0), np.nan)
ENERGY_NAN = spoiled(FRAMES.energies, (4,), np.nan)
FORCE_INF = spoiled(FRAMES.forces, (3, 2, 1), np.inf)
ALIEN = np.array([8, 1, 119])


def header_of_a_billion() -> bytes:
    """The header of an npy array of a billion atoms, and a few bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (BILLION, 3, 3)}
    )
    return buffer.getvalue() + bytes(72)


def npz_of_a_billion(path: Path) -> Path:
    molecules.npz(path, FRAMES, coords=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("coords.npy", header_of_a_billion())
    return path


def npy_of_a_billion(path: Path) -> Path:
    (molecules.deepmd(path, FRAMES) / "set.000/coord.npy").write_bytes(header_of_a_billion())
    return path


def torn_header(path: Path) -> Path:
    file = molecules.deepmd(path, FRAMES) / "set.000/coord.npy"
    file.write_bytes(file.read_bytes().replace(b"'shape': (8, 9)", b"'shape': (8, 9("))
    return path


def torn_schema(path: Path) -> Path:
    data = molecules.database(path, FRAMES).read_bytes()
    assert b"unique_id_index" in data
    path.write_bytes(data.replace(b"unique_id_index", b"uniqu\x94_id_index"))
    return path


def h5_of_a_billion(
    write: Callable[..., Path], group: str, name: str, *, chunks: bool
) -> Callable[[Path], Path]:
    """A data set of a billion frames of which nothing, or one chunk, is in the file."""

    def make(path: Path) -> Path:
        write(path, FRAMES)
        with h5py.File(path, "r+") as file:
            del file[group][name]
            kind = {"chunks": (1000, 3, 3), "compression": "gzip"} if chunks else {}
            stored = file[group].create_dataset(name, shape=(BILLION, 3, 3), dtype="f8", **kind)
            if chunks:
                stored[:1000] = 1.0
        return path

    return make


def database_with(statement: str, *values: object) -> Callable[[Path], Path]:
    """A database of which one row was changed behind the back of ASE."""

    def make(path: Path) -> Path:
        molecules.database(path, FRAMES)
        connection = sqlite3.connect(path)
        connection.execute(statement, values)
        connection.commit()
        connection.close()
        return path

    return make


def cut(write: Callable[..., Path], fraction: float = 0.6) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        data = write(path, FRAMES).read_bytes()
        path.write_bytes(data[: int(fraction * len(data))])
        return path

    return make


def lying(**arrays: object) -> Callable[[Path], Path]:
    return lambda path: molecules.npz(path, FRAMES, **arrays)


def comp6(**arrays: object) -> Callable[[Path], Path]:
    return lambda path: molecules.comp6(path, FRAMES, **arrays)


def spice(**arrays: object) -> Callable[[Path], Path]:
    return lambda path: molecules.spice(path, FRAMES, **arrays)


def deepmd(**arrays: object) -> Callable[[Path], Path]:
    return lambda path: molecules.deepmd(path, FRAMES, **arrays)


def deepmd_with(name: str, text: str | None) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        folder = molecules.deepmd(path, FRAMES)
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)
        return folder

    return make


def empty_database(path: Path) -> Path:
    with ase.db.connect(str(path), use_lock_file=False) as db:
        number = db.write(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]))
        db.delete([number])
    return path


def written(data: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


FAULTS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    # npz
    "npz cut": ("a.npz", cut(molecules.npz), "cut short or damaged"),
    "npz of something else": ("a.npz", written(b"\x00" * 200), "cannot be read as an npz file"),
    "npz nan": ("a.npz", lying(coords=NAN), "frame 3: coordinates of atom 1 not finite: nan"),
    "npz energy nan": ("a.npz", lying(energies=ENERGY_NAN / HARTREE), "ambiguous"),
    "npz force inf": ("a.npz", lying(forces=FORCE_INF), "frame 4: forces of atom 2 not finite: inf"),
    "npz shapes": ("a.npz", lying(forces=FRAMES.forces[:-1]), "forces have shape (7, 3, 3), not (8, 3, 3)"),
    "npz atoms": ("a.npz", lying(nuclear_charges=np.array([8, 1])), "atomic numbers have shape (2,)"),
    "npz element": ("a.npz", lying(nuclear_charges=ALIEN), "ambiguous"),
    "npz objects": ("a.npz", lying(energies=np.array([{"a": 1}] * N, dtype=object)), "Python objects"),
    "npz billion": ("a.npz", npz_of_a_billion, "claims (1000000000, 3, 3) values"),
    "npz empty": ("a.npz", lying(coords=np.zeros((0, 3, 3)), energies=np.zeros(0)), "holds no structure"),
    "npz no coordinates": ("a.npz", lying(coords=None), "holds no coordinates under coords"),
    "npz flat": ("a.npz", lying(coords=np.zeros(9)), "coordinates have shape (9,)"),
    "npz forces alone": ("a.npz", lying(energies=None), "forces but no energies"),
    # ANI, COMP6
    "ani cut": ("a.h5", cut(molecules.comp6), "cut short or damaged"),
    "ani text": ("a.h5", written(b"hello" * 99), "cannot be read as an HDF5 file"),
    "ani nan": (
        "a.h5",
        comp6(coordinates=NAN),
        "group /s66x8/mol00, frame 3: coordinates of atom 1 not finite",
    ),
    "ani energy nan": ("a.h5", comp6(energies=ENERGY_NAN / HARTREE), "frame 5: energy not finite: nan"),
    "ani force inf": ("a.h5", comp6(forces=FORCE_INF), "frame 4: forces of atom 2 not finite: inf"),
    "ani shapes": ("a.h5", comp6(forces=FRAMES.forces[:-1]), "forces have shape (7, 3, 3)"),
    "ani energies": ("a.h5", comp6(energies=np.zeros(7)), "energies have shape (7,), not (8,)"),
    "ani element": ("a.h5", comp6(species=np.array([b"O", b"H", b"Xx"])), "unknown element 'Xx'"),
    "ani number": ("a.h5", comp6(species=ALIEN), "unknown element: atomic number 119 (atom 2)"),
    "ani no species": ("a.h5", comp6(species=None), "mol00 holds no species"),
    "ani no energies": ("a.h5", comp6(energies=None), "forces but no energies"),
    "ani billion": (
        "a.h5",
        h5_of_a_billion(molecules.comp6, "s66x8/mol00", "coordinates", chunks=False),
        "/s66x8/mol00/coordinates claims (1000000000, 3, 3) values",
    ),
    "ani billion in chunks": (
        "a.h5",
        h5_of_a_billion(molecules.comp6, "s66x8/mol00", "forces", chunks=True),
        "/s66x8/mol00/forces claims (1000000000, 3, 3) values",
    ),
    "ani no frames": (
        "a.h5",
        comp6(coordinates=np.zeros((0, 3, 3)), energies=np.zeros(0), forces=np.zeros((0, 3, 3)), cm5=None),
        "holds no structure",
    ),
    "h5 of something else": (
        "a.h5",
        lambda path: h5(path, {"results": {"x": np.zeros(3)}}),
        "none of the layouts that are read",
    ),
    "h5 group for array": (
        "a.h5",
        lambda path: h5(path, {"m/coordinates": {"x": np.zeros(3)}}),
        "group where an",
    ),
    # SPICE
    "spice cut": ("a.hdf5", cut(molecules.spice), "cut short or damaged"),
    "spice nan": ("a.hdf5", spice(conformations=NAN), "group /water, frame 3: coordinates of atom 1 not"),
    "spice energy nan": ("a.hdf5", spice(dft_total_energy=ENERGY_NAN), "frame 5: energy not finite"),
    "spice inf": ("a.hdf5", spice(dft_total_gradient=FORCE_INF), "frame 4: forces of atom 2 not finite"),
    "spice shapes": ("a.hdf5", spice(dft_total_gradient=np.zeros((8, 4, 3))), "forces have shape (8, 4, 3)"),
    "spice element": ("a.hdf5", spice(atomic_numbers=ALIEN), "atomic number 119 (atom 2)"),
    "spice element 0": ("a.hdf5", spice(atomic_numbers=np.array([8, 0, 1])), "atomic number 0 (atom 1)"),
    "spice no energy": ("a.hdf5", spice(dft_total_energy=None), "holds no dft_total_energy"),
    "spice no numbers": ("a.hdf5", spice(atomic_numbers=None), "holds no atomic_numbers"),
    "spice billion": (
        "a.hdf5",
        h5_of_a_billion(molecules.spice, "water", "conformations", chunks=True),
        "/water/conformations claims (1000000000, 3, 3) values",
    ),
    # ASE
    "ase cut": ("a.db", cut(molecules.database), "is it cut short"),
    "ase text": ("a.db", written(b"hello" * 99), "no database of ASE"),
    "ase empty": ("a.db", empty_database, "the database has no rows"),
    "ase nothing": ("a.db", written(b""), "no database of ASE"),
    "ase nan": (
        "a.db",
        database_with("UPDATE systems SET positions=? WHERE id=3", NAN[2].tobytes()),
        "row 3: coordinates of atom 1 (H) are not finite",
    ),
    "ase torn schema": ("a.db", torn_schema, "no database of ASE"),
    "ase energy": (
        "a.db",
        database_with("UPDATE systems SET energy='low' WHERE id=2"),
        "row 2: energy must be",
    ),
    "ase inf": (
        "a.db",
        database_with("UPDATE systems SET forces=? WHERE id=4", FORCE_INF[3].tobytes()),
        "row 4: forces is not finite",
    ),
    "ase shapes": (
        "a.db",
        database_with("UPDATE systems SET forces=? WHERE id=4", bytes(48)),
        "row 4: forces has shape (2, 3), not (3, 3)",
    ),
    "ase torn": (
        "a.db",
        database_with("UPDATE systems SET positions=? WHERE id=4", bytes(50)),
        "the row after row 3: it cannot be decoded",
    ),
    "ase element": (
        "a.db",
        database_with("UPDATE systems SET numbers=? WHERE id=2", ALIEN.astype("<i4").tobytes()),
        "row 2: unknown element: atomic number 119",
    ),
    "ase no energy": ("a.db", database_with("UPDATE systems SET energy=NULL"), "row 1: it has forces but no"),
    # DeePMD
    "deepmd nan": (
        "a",
        deepmd(coord=NAN.reshape(N, 9)),
        "set.000, frame 3: coordinates of atom 1 not finite",
    ),
    "deepmd energy nan": ("a", deepmd(energy=ENERGY_NAN), "frame 5: energy not finite"),
    "deepmd inf": ("a", deepmd(force=FORCE_INF.reshape(N, 9)), "frame 4: forces of atom 2 not finite"),
    "deepmd shapes": ("a", deepmd(force=np.zeros((N, 12))), "force.npy has shape (8, 12), not (8, 9)"),
    "deepmd atoms": ("a", deepmd(coord=np.zeros((N, 12))), "coord.npy has shape (8, 12), not (frames, 9)"),
    "deepmd billion": ("a", npy_of_a_billion, "coord.npy claims (1000000000, 3, 3) values"),
    "deepmd torn header": ("a", torn_header, "coord.npy is no npy array"),
    "deepmd objects": ("a", deepmd(energy=np.array([None] * N, dtype=object)), "Python objects"),
    "deepmd words": ("a", deepmd(energy=np.array(["a"] * N)), "energy.npy must hold numbers"),
    "deepmd element": ("a", deepmd_with("type_map.raw", "O\nXx\n"), "unknown element: type 1 has no symbol"),
    "deepmd type": ("a", deepmd_with("type.raw", "0\n1\n7\n"), "of type 7, but type_map.raw names 2 types"),
    "deepmd type word": ("a", deepmd_with("type.raw", "0 H 1"), "the type of atom 1 must be a number"),
    "deepmd no names": ("a", deepmd_with("type_map.raw", None), "ambiguous: without type_map.raw"),
    "deepmd no cells": ("a", deepmd_with("nopbc", None), "ambiguous: there is no box.npy"),
    "deepmd no energy": ("a", deepmd(energy=None), "holds force.npy but no energy.npy"),
    "deepmd no frames": ("a", deepmd(coord=np.zeros((0, 9)), energy=None, force=None), "holds no structure"),
    # Extended XYZ: more in test_extxyz.py
    "xyz cut": ("a.xyz", cut(molecules.extxyz), "frame 5"),
    "xyz billion": ("a.xyz", written(b"1000000000\n\nH 0 0 0\n"), "1000000000 atoms announced"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_with_its_place(tmp_path: Path, fault: str) -> None:
    name, make, words = FAULTS[fault]
    path = make(tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            read_found(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < 30_000_000


NPZ = ReadOptions(energy_unit="kcal/mol", length_unit="Å")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"energies": ENERGY_NAN}, "frame 5: energy not finite: nan"),
        ({"nuclear_charges": np.array([8, 1])}, "atomic numbers have shape (2,), not (3,)"),
        ({"nuclear_charges": ALIEN}, "atomic number 119 (atom 2)"),
        ({"nuclear_charges": np.array([8, 0, 1])}, "atomic number 0 (atom 1)"),
        ({"coords": np.zeros((0, 3, 3)), "energies": np.zeros(0)}, "holds no structure"),
        ({"energies": np.zeros((N, 2))}, "energies have shape (8, 2)"),
        ({"energies": np.array(["a"] * N)}, "energies must be numbers"),
    ],
)
def test_faults_of_npz_in_stated_units(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    path = molecules.npz(tmp_path / "a.npz", FRAMES, **arrays)
    with pytest.raises(FormatError) as caught:
        read_found(path, NPZ)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.db", "a.xyz", "a"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=r"no such file|the extension"):
        read_found(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [molecules.npz, molecules.comp6, molecules.spice, molecules.database])
def test_a_file_cut_anywhere_never_gives_other_molecules(tmp_path: Path, kind: Callable[..., Path]) -> None:
    """Refused, or read as it was: formats with checksums or tables of contents notice."""
    suffix = {molecules.npz: ".npz", molecules.database: ".db"}.get(kind, ".h5")
    whole = kind(tmp_path / f"whole{suffix}", FRAMES)
    expected = [frame.structure for frame in read_found(whole).frames]
    data = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in np.linspace(0, len(data) - 1, 25).astype(int):
        path.write_bytes(data[:length])
        try:
            found = read_found(path)
        except FormatError:
            continue
        assert [frame.structure for frame in found.frames] == expected


def test_data_in_another_file_are_not_followed(tmp_path: Path) -> None:
    whole = molecules.comp6(tmp_path / "whole.h5", FRAMES)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["m"] = h5py.ExternalLink(whole.name, "/s66x8/mol00")
    with pytest.raises(FormatError, match="none of the layouts"):
        read_found(tmp_path / "a.h5")
    layout = h5py.VirtualLayout(shape=(N, 3, 3), dtype="f4")
    layout[:] = h5py.VirtualSource(str(whole), "s66x8/mol00/coordinates", shape=(N, 3, 3))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["m/species"] = NUMBERS
        file.create_virtual_dataset("m/coordinates", layout)
    with pytest.raises(FormatError, match="kept in another file"):
        read_found(tmp_path / "b.h5")


def test_compressed_data_are_read(tmp_path: Path) -> None:
    molecules.comp6(tmp_path / "a.h5", FRAMES, coordinates=None)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["s66x8/mol00"].create_dataset(
            "coordinates", data=FRAMES.positions, compression="gzip", shuffle=True, chunks=(3, 2, 3)
        )
    assert read_found(tmp_path / "a.h5").counts.structures == N
    with np.load(molecules.npz(tmp_path / "a.npz", FRAMES)) as arrays:
        np.savez_compressed(tmp_path / "b.npz", **arrays)
    assert read_found(tmp_path / "b.npz").counts.structures == N
