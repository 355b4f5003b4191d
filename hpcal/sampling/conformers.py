"""Starting geometries of a molecule from its SMILES, over all torsions.

Embedding alone misses conformers: it never turns the hydroxyl of glycine round (C–C–O–H near 0°),
whose minimum then dominates the error of a potential. So every rotatable torsion is set
systematically, those of hydroxyl and amino hydrogens included.

Angles of a torsion A–B–C–D about the single bond B–C outside rings:

==================================================  ========================================
bond B–C                                            angles
==================================================  ========================================
conjugated between planar atoms (acid, ester,       0°, 180°
amide, phenol, biaryl)
between saturated carbons                           60°, 180°, 300°
three equal substituents at one end (CH₃, NH₃⁺)     as embedded: turning gives the same again
planar end with two equal substituents (NO₂, COO⁻)  multiples of the step below 180°
all others                                          multiples of the step
==================================================  ========================================

Ring puckers and the inversion of nitrogen come from several embeddings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdmolops, rdMolTransforms

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import InputError
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure, parity_problem
from hpcal.sampling.relaxation import bonds, distance_fingerprint, same_minimum, unique_minima

__all__ = [
    "ConformerSettings",
    "Conformers",
    "enumerate_conformers",
    "same_minimum",
    "unique_minima",
]

STAGGERED: Final = (60.0, 180.0, 300.0)
"""Degrees."""
OVERSAMPLING: Final = 4
"""Torsion combinations tried for each conformer asked for, before a choice is made at random."""
START_TOLERANCE: Final = 0.15
"""Å; starting geometries closer than this in every distance are one."""
FORCE_FIELD_STEPS: Final = 2000


class ConformerSettings(Settings):
    """How starting geometries are made from a SMILES."""

    max_conformers: int = Field(
        default=200, ge=1, description="starting geometries at most; beyond it a seeded choice is made"
    )
    angle_step_degrees: int = Field(
        default=60, ge=10, le=180, description="step of torsions of hydroxyl, amino and the like; divides 360"
    )
    embeddings: int = Field(
        default=5,
        ge=1,
        description="embeddings of molecules with flexible rings or nitrogen that can invert",
    )
    jitter_A: float = Field(  # noqa: N815
        default=0.02,
        ge=0,
        le=0.2,
        description="standard deviation of a random displacement of each coordinate; keeps a relaxation "
        "from ending on a saddle point of a symmetric geometry",
    )

    @field_validator("angle_step_degrees")
    @classmethod
    def _divides_the_circle(cls, value: int) -> int:
        if 360 % value:
            raise ValueError(f"{value} does not divide 360")
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Conformers:
    """Starting geometries of one molecule.

    Attributes:
        structures: the geometries, in the order of the torsion grid.
        torsions: the four atoms of each torsion that was turned.
        combinations: points of the whole grid of torsions and embeddings.
        complete: whether the whole grid was gone through and all that is different was kept.
        message: one sentence with the numbers.
    """

    structures: tuple[Structure, ...]
    torsions: tuple[tuple[int, int, int, int], ...]
    combinations: int
    complete: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class _Rotor:
    """A torsion and the angles that it is set to, degrees."""

    atoms: tuple[int, int, int, int]
    angles: tuple[float, ...]


# ── Starting geometries ──────────────────────────────────────────────────────────────────────


def enumerate_conformers(smiles: str, settings: ConformerSettings, rng: np.random.Generator) -> Conformers:
    """Starting geometries over all torsions, to be relaxed.

    The charge is the sum of the formal charges. The multiplicity is one more than the number of
    radical electrons: several of them are taken as parallel. Geometries that differ by a mirror
    image or by equal atoms count once; those in which turning made or broke a bond are left out.

    Raises:
        InputError: no valid SMILES, several molecules, or no geometry can be made.
    """
    molecule = Chem.AddHs(_parse(smiles))
    seed = int(rng.integers(1, 2**31 - 1))
    bases = _embed(molecule, smiles, seed, settings.embeddings)
    rotors = _rotors(molecule, settings.angle_step_degrees)
    charge, multiplicity = Chem.GetFormalCharge(molecule), _multiplicity(molecule)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    template = Structure(numbers=numbers, positions=bases[0], charge=charge, multiplicity=multiplicity)
    problem = parity_problem(template)
    if problem is not None:
        raise InputError(f"SMILES {smiles!r}: {problem}")
    grid = [range(len(bases)), *(range(len(rotor.angles)) for rotor in rotors)]
    combinations = math.prod(len(axis) for axis in grid)
    tried = min(combinations, OVERSAMPLING * settings.max_conformers)
    points = _points([len(axis) for axis in grid], tried, rng)
    turned = (_turned(molecule, bases[point[0]], rotors, point[1:]) for point in points)
    found = _different(template, turned)
    if not found:
        # Crowded molecules: no point of the rigid grid keeps the bonds, the embeddings do.
        found = [template.with_positions(positions) for positions in bases]
    distinct = len(found)
    chosen = np.sort(rng.permutation(distinct)[: settings.max_conformers])
    structures = tuple(_jittered(found[i], settings.jitter_A, rng) for i in chosen)
    return Conformers(
        structures=structures,
        torsions=tuple(rotor.atoms for rotor in rotors),
        combinations=combinations,
        complete=tried == combinations and len(structures) == distinct,
        message=f"{smiles}: {len(rotors)} torsions, {combinations} combinations, {distinct} different "
        f"starting geometries{_left_out(tried < combinations, tried, distinct, len(structures))}"
        f"{_unstated_stereo(molecule)}",
    )


def _parse(smiles: str) -> Any:
    """The molecule of a SMILES, without hydrogens."""
    if not smiles.strip():
        raise InputError("an empty SMILES holds no molecule")
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles.strip(), sanitize=False)
        if molecule is None:
            raise InputError(f"{smiles!r} is not a valid SMILES: its syntax is wrong")
        try:
            Chem.SanitizeMol(molecule)
        except Chem.MolSanitizeException as error:
            raise InputError(f"{smiles!r} is not a valid SMILES: {error}") from None
    # Once more in one go, which also perceives the stereochemistry.
    molecule = Chem.MolFromSmiles(smiles.strip())
    if molecule.GetNumAtoms() == 0:
        raise InputError(f"SMILES {smiles!r} holds no atoms")
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise InputError(f"SMILES {smiles!r} holds a placeholder (*) instead of an element")
    fragments = len(Chem.GetMolFrags(molecule))
    if fragments > 1:
        raise InputError(
            f"SMILES {smiles!r} holds {fragments} molecules, and does not say how they lie; give their "
            "geometry in a file"
        )
    return molecule


def _multiplicity(molecule: Any) -> int:
    return 1 + sum(int(atom.GetNumRadicalElectrons()) for atom in molecule.GetAtoms())


def _embed(molecule: Any, smiles: str, seed: int, embeddings: int) -> list[FloatArray]:
    """Geometries in which rings and nitrogens differ, relaxed by a force field where it has parameters."""
    copy = Chem.Mol(molecule)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed
    count = embeddings if _needs_embeddings(molecule) else 1
    with rdBase.BlockLogs():
        found = list(rdDistGeom.EmbedMultipleConfs(copy, count, parameters))
        if not found:
            parameters.useRandomCoords = True
            found = list(rdDistGeom.EmbedMultipleConfs(copy, count, parameters))
        if not found:
            raise InputError(f"no geometry could be made from SMILES {smiles!r}; give the molecule in a file")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(copy):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(copy, maxIters=FORCE_FIELD_STEPS)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(copy):
            rdForceFieldHelpers.UFFOptimizeMoleculeConfs(copy, maxIters=FORCE_FIELD_STEPS)
    return [np.array(copy.GetConformer(i).GetPositions()) for i in found]


def _needs_embeddings(molecule: Any) -> bool:
    """Whether turning about bonds does not reach all conformers: flexible rings, or inversion."""
    rings = molecule.GetRingInfo().AtomRings()
    flexible = any(
        len(ring) > 3 and not all(molecule.GetAtomWithIdx(i).GetIsAromatic() for i in ring) for ring in rings
    )
    return flexible or any(_inverts(atom) for atom in molecule.GetAtoms())


def _inverts(atom: Any) -> bool:
    """A pyramidal nitrogen or phosphorus whose inversion is not also a rotation: fewer than two H."""
    return (
        atom.GetAtomicNum() in (7, 15)
        and atom.GetDegree() == 3
        and str(atom.GetHybridization()) == "SP3"
        and sum(n.GetAtomicNum() == 1 for n in atom.GetNeighbors()) < 2
    )


def _rotors(molecule: Any, step: int) -> list[_Rotor]:
    ranks = list(Chem.CanonicalRankAtoms(molecule, breakTies=False))
    rotors = []
    for bond in molecule.GetBonds():
        if bond.GetBondType() != Chem.BondType.SINGLE or bond.IsInRing():
            continue
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        around = [_others(end, other) for end, other in (ends, ends[::-1])]
        if not all(around) or any(str(end.GetHybridization()) == "SP" for end in ends):
            continue
        angles = _angles(bond, ends, [[ranks[i] for i in others] for others in around], step)
        if len(angles) > 1:
            b, c = (end.GetIdx() for end in ends)
            rotors.append(_Rotor(atoms=(around[0][0], b, c, around[1][0]), angles=angles))
    return rotors


def _others(end: Any, other: Any) -> list[int]:
    """Neighbours of one end of a bond, heavy atoms first."""
    neighbours = [n for n in end.GetNeighbors() if n.GetIdx() != other.GetIdx()]
    return [n.GetIdx() for n in sorted(neighbours, key=lambda n: (n.GetAtomicNum() == 1, n.GetIdx()))]


def _angles(bond: Any, ends: Any, ranks: list[list[int]], step: int) -> tuple[float, ...]:
    """Angles of a torsion, degrees; see the table at the top of this module."""
    planar = [str(end.GetHybridization()) == "SP2" for end in ends]
    if any(len(around) == 3 and len(set(around)) == 1 for around in ranks):
        return ()
    folds = [
        flat and len(around) == 2 and len(set(around)) == 1
        for flat, around in zip(planar, ranks, strict=True)
    ]
    if bond.GetIsConjugated() and all(planar):
        return () if any(folds) else (0.0, 180.0)
    if all(str(end.GetHybridization()) == "SP3" and end.GetAtomicNum() == 6 for end in ends):
        return STAGGERED
    return tuple(float(angle) for angle in range(0, 180 if any(folds) else 360, step))


def _points(sizes: Sequence[int], count: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """All points of a grid if ``count`` covers it, else so many different ones at random."""
    if count >= math.prod(sizes):
        yield from itertools.product(*(range(size) for size in sizes))
        return
    seen: set[tuple[int, ...]] = set()
    while len(seen) < count:
        point = tuple(int(rng.integers(size)) for size in sizes)
        if point not in seen:
            seen.add(point)
            yield point


def _turned(molecule: Any, base: FloatArray, rotors: Sequence[_Rotor], point: Sequence[int]) -> FloatArray:
    """(N, 3) positions with every torsion at its angle, Å."""
    conformer = Chem.Conformer(len(base))
    conformer.SetPositions(np.ascontiguousarray(base))
    copy = Chem.Mol(molecule)
    copy.RemoveAllConformers()
    identifier = copy.AddConformer(conformer)
    placed = copy.GetConformer(identifier)
    for rotor, index in zip(rotors, point, strict=True):
        rdMolTransforms.SetDihedralDeg(placed, *rotor.atoms, rotor.angles[index])
    return np.array(placed.GetPositions())


def _different(template: Structure, geometries: Iterable[FloatArray]) -> list[Structure]:
    """Those of the (N, 3) geometries that keep the bonds and differ from all before them."""
    bonded = bonds(template)
    size = len(distance_fingerprint(template))
    known, found = np.zeros((64, size)), list[Structure]()
    for positions in geometries:
        structure = template.with_positions(positions)
        if bonds(structure) != bonded:
            continue
        mark, count = distance_fingerprint(structure), len(found)
        apart = np.abs(known[:count] - mark).max(axis=1, initial=0.0)
        if count and float(apart.min()) < START_TOLERANCE:
            continue
        if count == len(known):
            known = np.concatenate([known, np.zeros_like(known)])
        known[count] = mark
        found.append(structure)
    return found


def _jittered(structure: Structure, sigma: float, rng: np.random.Generator) -> Structure:
    noise = rng.normal(0.0, 1.0, structure.positions.shape) * sigma
    return structure.with_positions(structure.positions + noise)


def _left_out(random: bool, tried: int, distinct: int, kept: int) -> str:
    drawn = f" among {tried} combinations drawn at random" if random else ""
    return drawn + (f", of which {kept} were drawn (max_conformers)" if kept < distinct else "")


def _unstated_stereo(molecule: Any) -> str:
    elements = rdmolops.FindPotentialStereo(Chem.RemoveHs(molecule))
    unstated = sum(element.specified == Chem.StereoSpecified.Unspecified for element in elements)
    if not unstated:
        return ""
    return f"; {unstated} stereo elements are not stated in the SMILES, one configuration of each was taken"
