"""Every part of this installation keeps the promises of its protocol.

Parts are found through entry points. A new one needs an entry in the table of its kind, with
settings that make it quick.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.plugins import Group, find, names
from hpcal.core.protocols import MemberSpec
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange.extxyz import LabelledFrame, write_labelled
from hpcal.sampling.relaxation import relax
from hpcal.testing import (
    check_generator,
    check_labeler,
    check_metric,
    check_potential_kind,
    check_sampler,
    check_selector,
)

SHORT = {"timestep_fs": 0.5, "time_ps": 0.012, "stride": 3, "burn_in": 0}
SAMPLERS: dict[str, dict[str, Any]] = {
    "langevin": {**SHORT, "batch": 4},
    "nve": {**SHORT, "batch": 4},
    "udd": {**SHORT, "batch": 4, "strength_eV": 0.5, "delay_fs": 1.0, "ramp_fs": 3.0, "unbiased_share": 0.3},
}
GENERATORS: dict[str, dict[str, Any]] = {"normal_modes": {}, "random_displacement": {}}
SELECTORS: dict[str, list[dict[str, Any]]] = {
    "farthest_point": [{}, {"min_distance": 1.5}],
    "random": [{}],
}
METRICS = {"energy_dev", "energy_std", "force_dev", "force_std"}
POTENTIALS: dict[str, tuple[dict[str, Any], int]] = {
    "ani": ({"members": 2, "hidden": [8, 8], "epochs": 3, "batch_size": 4}, 1),
    "morse": ({"members": 2, "steps": 20}, 7),
}
LABELERS = {"ase", "delta", "espresso", "lookup", "pyscf", "teacher", "xtb"}


def entry(table: dict[str, Any], group: Group, name: str) -> Any:
    """The entry of a part, or a failure that says where to write one."""
    if name not in table:
        pytest.fail(
            f"{group.singular} {name!r} is installed, but tests/testing/test_own_parts.py has no entry for "
            "it: add settings that make it quick to the table of its kind, so that its promises are checked"
        )
    return table[name]


def test_a_part_without_an_entry_fails_with_the_way_out():
    with pytest.raises(pytest.fail.Exception, match=r"metric 'brand_new' is installed, but .* has no entry"):
        entry({}, Group.METRICS, "brand_new")


def of_stage(stage: str) -> list[str]:
    return [name for name in names(Group.SAMPLERS) if find(Group.SAMPLERS, name).stage == stage]


def test_stages_are_known():
    """Each entry of the group of samplers is one of the two kinds that are checked below."""
    assert sorted(of_stage("sampling") + of_stage("bootstrap")) == list(names(Group.SAMPLERS))


@pytest.mark.parametrize("name", names(Group.METRICS))
def test_metrics(name, ensemble, batch):
    entry(dict.fromkeys(METRICS, True), Group.METRICS, name)
    check_metric(name, ensemble, batch)


@pytest.mark.parametrize("name", names(Group.SELECTORS))
def test_selectors(name):
    for settings in entry(SELECTORS, Group.SELECTORS, name):
        check_selector(name, settings)


@pytest.mark.parametrize("name", of_stage("sampling"))
def test_samplers(name, ensemble, scorer, walkers):
    check_sampler(name, entry(SAMPLERS, Group.SAMPLERS, name), ensemble, scorer, walkers)


@pytest.mark.slow
@pytest.mark.parametrize("name", of_stage("sampling"))
def test_samplers_with_networks_in_single_precision(name, networks, scorer, walkers):
    """As campaigns run them: where rounding is large, a cut trajectory still ends at the same bits."""
    single = replace(scorer, potential=networks, threshold=0.5)
    settings = entry(SAMPLERS, Group.SAMPLERS, name)
    check_sampler(name, settings, networks, single, walkers, score_tolerance=1e-3)


@pytest.mark.parametrize("name", of_stage("bootstrap"))
def test_generators(name, morse_minimum, morse_forces):
    settings = entry(GENERATORS, Group.SAMPLERS, name)
    check_generator(name, settings, morse_minimum, morse_forces)


@pytest.mark.parametrize("name", names(Group.POTENTIALS))
def test_potentials(name, dataset, mixed, tmp_path):
    settings, steps = entry(POTENTIALS, Group.POTENTIALS, name)
    check_potential_kind(name, settings, dataset, tmp_path, structures=mixed, steps=steps)


@pytest.mark.slow
def test_ani_that_knows_charge_and_spin(dataset, mixed, ensemble_folder, tmp_path):
    """Each geometry as a molecule and as its cation, which lies 9 eV higher."""
    labeler_class = find(Group.LABELERS, "teacher")
    teacher = labeler_class(labeler_class.Settings(model=ensemble_folder))
    molecules = dataset.structures()[:4]
    cations = [replace(s, charge=1, multiplicity=2) for s in molecules]
    labels = [teacher.label(s, Deadline()) for s in molecules]
    ionised = [replace(label, energy=label.energy + 9.0) for label in labels]
    splits = [Split(split) for split in dataset.splits[:4]] * 2
    data = Dataset.of([*molecules, *cations], [*labels, *ionised], splits=splits)
    shown = [*mixed[:2], *(replace(s, charge=1, multiplicity=2) for s in mixed[:2])]
    settings, steps = POTENTIALS["ani"]
    settings = {**settings, "charge_aware": True, "epochs": 2}
    check_potential_kind("ani", settings, data, tmp_path, structures=shown, steps=steps)


@pytest.mark.parametrize(
    "name",
    # It starts a program for each of some 50 calculations.
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "espresso")) for n in names(Group.LABELERS)],
)
def test_labelers(name, request):
    entry(dict.fromkeys(LABELERS, True), Group.LABELERS, name)
    request.getfixturevalue(f"check_{name}")()


@pytest.fixture
def check_xtb(mixed) -> Callable[[], None]:
    radical = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.97]])
    crystal = Structure(
        numbers=mixed[0].numbers, positions=mixed[0].positions, cell=np.diag([4.0, 4.5, 5.0]), pbc=(True,) * 3
    )
    return lambda: check_labeler("xtb", [*mixed, crystal], refused=[radical])


@pytest.fixture
def check_pyscf(rattled) -> Callable[[], None]:
    molecules = [*rattled("H2", 1), *rattled("H2O", 1)]
    radical = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.97]])
    settings = {"method": "hf", "basis": "sto-3g"}
    return lambda: check_labeler("pyscf", molecules, settings=settings, refused=[radical], directions=1)


@pytest.fixture
def check_ase() -> Callable[[], None]:
    cell = np.array([[0.05, 1.85, 1.8], [1.8, 0.0, 1.85], [1.85, 1.8, 0.0]]) * 1.02
    crystals = [
        Structure(numbers=[29], positions=[[0, 0, 0]], cell=cell, pbc=(True,) * 3),
        Structure(numbers=[29] * 2, positions=[[0, 0, 0], [0.2, 0.1, 2.3]]),
    ]
    settings = {"calculator": "emt"}
    return lambda: check_labeler("ase", crystals, settings=settings, directions=1)


@pytest.fixture
def check_delta(rattled) -> Callable[[], None]:
    molecules = [*rattled("H2", 1), *rattled("H2O", 1)]
    radical = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.97]])
    settings = {
        "target": {"labeler": "xtb", "method": "GFN2-xTB"},
        "base": {"labeler": "xtb", "method": "GFN1-xTB"},
    }
    return lambda: check_labeler("delta", molecules, settings=settings, refused=[radical], directions=1)


@pytest.fixture
def check_espresso(mixed) -> Callable[[], None]:
    potential = Path("/usr/share/espresso/pseudo/Si.pz-vbc.UPF")
    if shutil.which("pw.x") is None or not potential.exists():
        pytest.skip("no pw.x, or none of its files (Debian: quantum-espresso, quantum-espresso-data)")
    cell = np.array([[0.05, 2.7, 2.7], [2.7, 0.0, 2.75], [2.65, 2.7, 0.0]])
    crystals = [
        Structure(numbers=[14, 14], positions=[[0, 0, 0], second], cell=cell, pbc=(True,) * 3)
        for second in ([1.42, 1.33, 1.36], [1.30, 1.38, 1.31])
    ]
    settings = {
        "pseudopotentials": {"Si": potential},
        "ecutwfc_eV": 150,
        "kpoints": [1, 1, 1],
        "convergence_eV": 1e-9,
    }
    # Strained cells meet the Pulay stress of this cutoff; tests/labeling has the test of the stress.
    return lambda: check_labeler(
        "espresso", crystals, settings=settings, refused=mixed[:1], directions=1, stress_tolerance=0.1
    )


@pytest.fixture
def check_teacher(ensemble_folder, mixed) -> Callable[[], None]:
    crystal = Structure(
        numbers=mixed[0].numbers, positions=mixed[0].positions, cell=np.diag([4.0, 4.5, 5.0]), pbc=(True,) * 3
    )
    return lambda: check_labeler(
        "teacher",
        [*mixed, crystal],
        settings={"model": ensemble_folder},
        step=1e-4,
        force_tolerance=1e-5,
        energy_tolerance=1e-9,
        stress_tolerance=1e-7,
    )


@pytest.fixture
def check_lookup(dataset, ensemble_folder, tmp_path: Path) -> Callable[[], None]:
    teacher_class = find(Group.LABELERS, "teacher")
    teacher = teacher_class(teacher_class.Settings(model=ensemble_folder))
    known = dataset.structures()[:3]
    file = tmp_path / "labels.extxyz"
    frames = [LabelledFrame(structure=s, label=teacher.label(s, Deadline())) for s in known]
    write_labelled(file, frames)
    return lambda: check_labeler(
        "lookup", known, settings={"file": file}, refused=dataset.structures()[3:5], labels_anything=False
    )


@pytest.fixture(scope="session")
def networks(ensemble_folder, mixed, rattled, tmp_path_factory):
    """Two ANI networks in float32, trained for a moment on molecules of two, three and four atoms."""
    labeler_class = find(Group.LABELERS, "teacher")
    teacher = labeler_class(labeler_class.Settings(model=ensemble_folder))
    structures = [s for name in ("H2", "H2O", "H2O2") for s in rattled(name, 6, seed=5)]
    dataset = Dataset.of(structures, [teacher.label(s, Deadline()) for s in structures])
    kind_class = find(Group.POTENTIALS, "ani")
    kind = kind_class(kind_class.Settings(members=2, hidden=(8, 8), epochs=20))
    members = [MemberSpec(index=i, seed=i) for i in range(2)]
    trainer = kind.trainer(dataset.elements, 1)
    results = trainer.fit(dataset, members, Deadline(), tmp_path_factory.mktemp("ani"))
    return kind_class.load([Path(r.path) for r in results], dtype="float32")


@pytest.fixture(scope="session")
def morse_forces(ensemble_folder):
    labeler_class = find(Group.LABELERS, "teacher")
    teacher = labeler_class(labeler_class.Settings(model=ensemble_folder))

    def forces(structure: Structure):
        label = teacher.label(structure, Deadline())
        return label.energy, label.forces

    return forces


@pytest.fixture(scope="session")
def morse_minimum(waters, morse_forces) -> Structure:
    return relax(waters[0], morse_forces).structure
