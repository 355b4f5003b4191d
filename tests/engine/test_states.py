"""Several electronic states of a geometry: which are labelled, split, learned from, and refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.campaigns import SITE, SLOTS, StopAfter, content, query, run_inline

from hpcal.core.errors import ConfigurationError, FailureClass, Interrupted
from hpcal.core.label import Label, Rejection
from hpcal.core.settings import parse_yaml
from hpcal.core.structure import Structure
from hpcal.engine.campaign import label_spec, read_campaign
from hpcal.engine.dispatch import InlineDispatcher
from hpcal.engine.plan import Select, plan
from hpcal.engine.start import begin, check
from hpcal.engine.states import State, StatesSettings, expanded, labels_each, states_of
from hpcal.engine.tasks import run_attempt
from hpcal.engine.view import EnsembleView, EntryView, View
from hpcal.labeling.teacher import Teacher
from hpcal.potentials.morse import Morse
from hpcal.report.status import campaign_status, status_text
from hpcal.store.database import Store
from hpcal.store.labels import HELD
from hpcal.store.transitions import EnsembleState

IONS = "{charges: [-1, 0, 1]}"
LOWEST = "{charges: [-1, 0, 1], multiplicities: [1, 2, 3], keep: lowest}"
SPLITS = {"train", "validation", "calibration", "test"}


def water(**state: int) -> Structure:
    positions = [[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]]
    return Structure(numbers=np.array([8, 1, 1]), positions=np.array(positions), **state)


def energy_shift(structure: Structure) -> float:
    """eV; above or below zero for a triplet, by its geometry."""
    stretch = float(np.linalg.norm(structure.positions[1] - structure.positions[0])) - 0.965
    return 0.2 * abs(structure.charge) + (structure.multiplicity - 1) * stretch


@contextmanager
def parts(turned_away: Any = lambda _structure: False) -> Iterator[None]:
    """A labeler whose energies know charge and multiplicity, and a potential that says it does."""
    told, labelled = Morse.capabilities, Teacher.label

    def label(self: Teacher, structure: Structure, deadline: Any) -> Label | Rejection:
        if turned_away(structure):
            return Rejection(failure_class=FailureClass.PHYSICS, code="scf_not_converged", message="made up")
        made = labelled(self, structure, deadline)
        assert isinstance(made, Label)
        return replace(made, energy=made.energy + energy_shift(structure))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Morse, "capabilities", lambda self: replace(told(self), charge_aware=True))
        patch.setattr(Teacher, "label", label)
        yield


def with_states(file: Path, states: str) -> Path:
    """The campaign of a file with a policy of states."""
    text = file.read_text()
    assert "}\npotential" in text
    file.write_text(text.replace("}\npotential", f", states: {states}}}\npotential"))
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, teacher):
    from support.campaigns import CAMPAIGN

    def write(states: str, stop: str = "{labels: 90, generations: 3}") -> Path:
        file = tmp_path_factory.mktemp("states") / "tiny.yaml"
        file.write_text(CAMPAIGN.format(teacher=teacher, stop=stop, threshold="0.02"))
        return with_states(file, states)

    return write


# ── the policy ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("policy", "structure", "states"),
    [
        ({"charges": [-1, 0, 1]}, water(), [(-1, 2), (0, 1), (1, 2)]),
        ({"charges": [0, 1]}, water(multiplicity=3), [(0, 3), (1, 2)]),
        ({"charges": [0, 1]}, water(charge=1, multiplicity=2), [(1, 2), (2, 1)]),
        ({"multiplicities": [1, 3]}, water(), [(0, 1), (0, 3)]),
        ({"multiplicities": [1, 3]}, water(multiplicity=5), [(0, 1), (0, 3), (0, 5)]),
        ({"charges": [0, 1], "multiplicities": [1, 2, 3]}, water(), [(0, 1), (0, 3), (1, 2)]),
        (
            {"charges": [0, 1]},
            Structure(numbers=np.array([1]), positions=np.zeros((1, 3)), multiplicity=2),
            [(0, 2)],
        ),
    ],
)
def test_a_geometry_has_the_states_that_charges_and_electrons_allow(policy, structure, states):
    found = states_of(StatesSettings(**policy), structure)
    assert [(s.charge, s.multiplicity) for s in found] == states


def test_states_of_a_frame_are_those_around_the_state_that_the_campaign_began_with():
    policy = StatesSettings(charges=[-1, 0, 1])
    cation = water(charge=1, multiplicity=2)
    assert states_of(policy, cation, State.of(water())) == states_of(policy, water())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{}", "they name no second state"),
        ("{charges: [-1, 1]}", "0, the structure's own charge"),
        ("{charges: [0, 1, 1]}", "twice"),
        ("{charges: [0, 1], multiplicities: []}", "at least one"),
        ("{charges: [0, 1], keep: lowest}", "keep: lowest chooses between multiplicities"),
        ("{charges: [0, 1], multiplicity: lowest}", "did you mean 'multiplicities'"),
        ("[-1, 0, 1]", "name charges or multiplicities"),
    ],
)
def test_a_policy_without_a_meaning_is_refused_with_its_line(block, message):
    document = parse_yaml(f"labeler: xtb\nstates: {block}\n", "label.yaml")
    with pytest.raises(ConfigurationError, match=rf"label\.yaml:2: states.*{message}"):
        label_spec(document, (), Path())


def test_a_geometry_takes_at_most_as_many_labels_as_its_states():
    for policy in (
        StatesSettings(charges=[-1, 0, 1]),
        StatesSettings(multiplicities=[1, 3]),
        StatesSettings(charges=[-1, 0, 1, 2], multiplicities=[1, 2, 3]),
    ):
        found = [len(states_of(policy, s)) for s in (water(), water(charge=1, multiplicity=2))]
        assert max(found) == labels_each(policy)
        assert len(list(expanded(policy, [water()]))) == found[0]
    assert labels_each(None) == 1


def test_a_batch_is_in_labels_and_a_budget_is_used_up(tiny):
    spec = read_campaign(tiny(IONS))
    now = EnsembleView(id=1, generation=1, state=EnsembleState.PROMOTED, last_seq=16)
    view = View(
        labels=20, slots=SLOTS, current=now, newest=now, candidates=tuple(range(9)), walkers=(EntryView(),)
    )
    assert spec.selection.batch == 8

    def budget(labels: int) -> list[int]:
        actions = plan(replace(view, labels=labels), spec)
        return [action.budget for action in actions if isinstance(action, Select)]

    assert budget(20) == [3]
    assert budget(86) == [2]
    assert budget(89) == [1]


# ── what fits together ───────────────────────────────────────────────────────────────────────


def test_states_of_one_geometry_are_refused_for_a_potential_that_cannot_tell_them_apart(tiny):
    with pytest.raises(ConfigurationError) as raised:
        check(read_campaign(tiny(IONS)))
    message = str(raised.value)
    assert "label.states: H2O would be learned with charge -1 multiplicity 2, charge 0" in message
    assert "potential morse cannot tell apart" in message
    with pytest.raises(ConfigurationError, match="charge -1, charge 0, charge 1"):
        check(read_campaign(tiny(LOWEST)))


def test_one_state_a_geometry_is_for_any_potential(tiny):
    check(read_campaign(tiny("{multiplicities: [1, 3], keep: lowest}")))


def test_multiplicities_that_no_ion_has_are_refused(tiny):
    with parts(), pytest.raises(ConfigurationError, match=r"fits the 11 electrons that H2O .* add 2"):
        check(read_campaign(tiny("{charges: [-1, 0], multiplicities: [1, 3]}")))


def test_multiplicities_are_not_compared_by_a_method_without_spin(tiny):
    pytest.importorskip("tblite")
    file = tiny("{multiplicities: [1, 3]}")
    teacher = file.read_text().split("label: {")[1].split(", states")[0]
    file.write_text(file.read_text().replace(teacher, "labeler: xtb"))
    with parts(), pytest.raises(ConfigurationError, match=r"GFN2-xTB .* has no spin polarisation"):
        check(read_campaign(file))


def test_a_crystal_has_no_states(tiny, tmp_path):
    file = tiny(IONS)
    text = file.read_text().replace('{smiles: "O"}', "{file: crystal.extxyz}")
    file.write_text(text)
    (file.parent / "crystal.extxyz").write_text(
        '3\nLattice="9 0 0 0 9 0 0 0 9" pbc="T T T" Properties=species:S:1:pos:R:3\n'
        "O 0 0 0\nH 0.76 0.59 0\nH -0.76 0.59 0\n"
    )
    with parts(), pytest.raises(ConfigurationError, match=r"label\.states: structure 1 .* is periodic"):
        check(read_campaign(file))


# ── campaigns ────────────────────────────────────────────────────────────────────────────────


def geometries(root: Path) -> dict[int, list[dict[str, Any]]]:
    """Structures that were to be labelled, with their labels, by the one that their geometry came in as."""
    rows = query(
        root,
        "SELECT s.id, s.parent_id, s.origin, s.state, s.split, s.walker_id, s.charge, s.multiplicity, "
        "s.positions, l.energy, l.seq, l.retracted FROM structure s LEFT JOIN label l "
        "ON l.structure_id = s.id WHERE s.origin <> 'seed' ORDER BY s.id",
    )
    names = (
        "id", "parent", "origin", "state", "split", "walker", "charge", "multiplicity", "positions", "energy",
        "seq", "retracted",
    )  # fmt: skip
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in (dict(zip(names, values, strict=True)) for values in rows):
        further = row["origin"] in ("state", "audit_state")
        found[row["parent"] if further else row["id"]].append(row)
    return {first: group for first, group in found.items() if group[0]["state"] != "dropped"}


@pytest.fixture(scope="module")
def ions(tiny, tmp_path_factory) -> Path:
    """Folder of a campaign that labels the neutral molecule and both ions."""
    root = tmp_path_factory.mktemp("ions") / "run"
    with parts():
        run_inline(tiny(IONS), root)
    return root


@pytest.fixture(scope="module")
def lowest(tiny, tmp_path_factory) -> Path:
    """Folder of a campaign that keeps singlet or triplet of the molecule, whichever is lower."""
    root = tmp_path_factory.mktemp("lowest") / "run"
    run_lowest(tiny, root)
    return root


def run_lowest(tiny: Any, root: Path, **how: Any) -> None:
    with parts(**how):
        run_inline(tiny("{multiplicities: [1, 3], keep: lowest}", stop="{labels: 40, generations: 3}"), root)


@pytest.mark.slow
def test_every_state_of_every_geometry_is_labelled_in_one_split_and_family(ions):
    whole = 0
    for first, group in geometries(ions).items():
        if all(row["state"] == "labelled" for row in group):
            whole += 1
            assert {row["charge"] for row in group} == {-1, 0, 1}
            assert len(group) == 3
        assert len({row["split"] for row in group}) == 1, first
        assert len({row["walker"] for row in group}) == 1, first
        assert len({row["positions"] for row in group}) == 1, first
        audits = group[0]["split"] in ("calibration", "test")
        assert {row["origin"] for row in group[1:]} <= {"audit_state" if audits else "state"}
    splits = dict(query(ions, "SELECT split, count(*) FROM label WHERE seq IS NOT NULL GROUP BY split"))
    assert set(splits) == SPLITS
    assert whole >= 25
    assert query(ions, "SELECT max(generation) FROM ensemble")[0][0] >= 3


@pytest.mark.slow
def test_the_label_budget_is_kept_to_the_label(ions):
    assert query(ions, "SELECT count(*) FROM label WHERE seq IS NOT NULL")[0][0] <= 90


@pytest.mark.slow
def test_walkers_go_on_in_the_state_of_their_seed_and_states_do_not_drift(ions):
    born = query(
        ions,
        "SELECT DISTINCT s.charge, f.charge FROM walker w JOIN structure s ON s.id = w.structure_id "
        "JOIN structure f ON f.walker_id = w.id WHERE f.origin IN ('sample', 'audit')",
    )
    assert {seed for seed, _ in born} > {0}
    assert all(seed == frame for seed, frame in born)
    assert {c for (c,) in query(ions, "SELECT DISTINCT charge FROM structure")} == {-1, 0, 1}


@pytest.mark.slow
def test_ensembles_are_evaluated_in_every_state(ions):
    charges = query(
        ions,
        "SELECT DISTINCT s.charge FROM score c JOIN structure s ON s.id = c.structure_id "
        "WHERE c.purpose = 'evaluate' AND s.split = 'test'",
    )
    assert {c for (c,) in charges} == {-1, 0, 1}


@pytest.mark.slow
def test_of_multiplicities_the_lowest_is_learned_and_the_other_says_why_not(lowest):
    kept = set()
    for group in geometries(lowest).values():
        labelled = [row for row in group if row["energy"] is not None]
        if len(labelled) < 2:
            assert all(row["seq"] is None for row in labelled)
            continue
        best, other = sorted(labelled, key=lambda row: row["energy"])
        kept.add(best["multiplicity"])
        assert best["seq"] is not None
        assert best["retracted"] is None
        assert other["seq"] is None
        assert f"not the lowest at charge 0: multiplicity {best['multiplicity']}" in other["retracted"]
        assert f"{best['energy']:.6f} eV (structure {best['id']})" in other["retracted"]
    assert kept == {1, 3}
    trained = query(lowest, "SELECT trained_on FROM model WHERE trained_on IS NOT NULL")
    seen = {int(i) for (blob,) in trained for i in np.frombuffer(blob, "<i8")}
    taken_back = {i for (i,) in query(lowest, "SELECT structure_id FROM label WHERE seq IS NULL")}
    assert seen
    assert taken_back
    assert not seen & taken_back
    assert not taken_back & {i for (i,) in query(lowest, "SELECT structure_id FROM walker")}


@pytest.mark.slow
def test_a_multiplicity_without_label_leaves_open_which_is_lowest(tiny, tmp_path):
    # Seeds are relaxed as singlets.
    run_lowest(
        tiny, tmp_path / "run", turned_away=lambda s: s.multiplicity == 3 and s.content_hash[0] in "01"
    )
    pairs = [group for group in geometries(tmp_path / "run").values() if len(group) == 2]
    open_ones = [(a, b) for a, b in pairs if a["energy"] is not None and b["state"] == "rejected"]
    assert open_ones
    for labelled, rejected in open_ones:
        assert labelled["seq"] is None
        why = f"structure {rejected['id']}, multiplicity 3, has no label (rejected: scf_not_converged"
        assert why in labelled["retracted"]


def test_labels_are_held_back_until_all_multiplicities_are_there(tiny, tmp_path):
    file = tiny("{multiplicities: [1, 3], keep: lowest}")
    text = (
        file.read_text().replace("max_label_chunk: 4", "max_label_chunk: 3").replace("count: 16", "count: 2")
    )
    file.write_text(text)
    with parts(), pytest.raises(Interrupted):
        run_inline(file, tmp_path / "run", StopAfter(4))
    groups = geometries(tmp_path / "run").values()
    labelled = [[row for row in group if row["energy"] is not None] for group in groups]
    ((half,),) = [group for group in labelled if len(group) == 1]
    assert half["seq"] is None
    assert half["retracted"] == HELD
    with closing(Store.read(tmp_path / "run")) as store:
        status = campaign_status(store)
    assert (status["labels"]["held"], status["labels"]["retracted"]) == (1, 2)
    assert "1 label waits for the other multiplicities of its geometry" in status_text(status)
    whole = [group for group in labelled if len(group) == 2]
    assert sorted(row["seq"] for group in whole for row in group if row["retracted"] is None) == [1, 2]
    assert HELD not in {row["retracted"] for group in whole for row in group}


@pytest.mark.parametrize("after", [3, 6, 17])
@pytest.mark.parametrize("policy", [IONS, LOWEST])
@pytest.mark.slow
def test_a_campaign_that_was_interrupted_equals_one_that_was_not(tiny, tmp_path, policy, after):
    file = tiny(policy)
    with parts():
        run_inline(file, tmp_path / "whole")
        with pytest.raises(Interrupted):
            run_inline(file, tmp_path / "cut", StopAfter(after))
        run_inline(file, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_what_comes_with_its_label_is_not_labelled_again(tiny, tmp_path):
    file = tiny(IONS)
    head = "Properties=species:S:1:pos:R:3"
    atoms = "O 0 0 0\nH 0.76 0.59 0\nH -0.76 0.59 0\n"
    (file.parent / "seeds.extxyz").write_text(f"3\n{head}\n{atoms}")
    labelled = f"{head}:REF_forces:R:3 REF_energy=-1.0 charge=1 multiplicity=2"
    (file.parent / "ion.extxyz").write_text(f"3\n{labelled}\n" + atoms.replace("\n", " 0 0 0\n"))
    text = file.read_text().replace('{smiles: "O"}', "{file: seeds.extxyz, relax: false}")
    file.write_text(text.replace("bootstrap:\n", "bootstrap:\n  - {file: ion.extxyz}\n"))
    with parts():
        context, _ = begin(read_campaign(file), tmp_path / "run", InlineDispatcher(SLOTS, run_attempt), SITE)
        context.store.release()
        context.store.close()
    rows = query(tmp_path / "run", "SELECT charge, origin, state, twin_id FROM structure ORDER BY charge, id")
    assert [(charge, origin, state) for charge, origin, state, _ in rows] == [
        (-1, "state", "waiting"),
        (0, "given", "waiting"),
        (1, "file", "labelled"),
        (1, "state", "dropped"),
    ]
