import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import event
from support.rows import label_row

from hpcal.core.errors import InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store import history, measurements
from hpcal.store.database import Store
from hpcal.store.rows import level_id, structure_row
from hpcal.store.tables import (
    SCHEMA_VERSION,
    AttemptRow,
    Campaign,
    DatasetRow,
    EnsembleRow,
    ScoreRow,
    SelectionRow,
    TaskRow,
)
from hpcal.store.transitions import CampaignState, EnsembleState, StructureState, TaskState

pytestmark = pytest.mark.stores

LEVEL = LevelOfTheory(code="tblite", version="0.4", method="GFN2-xTB")
S = StructureState


@pytest.fixture
def made(tmp_path):
    """A store with a campaign, an ensemble, and ways to add what a test is about."""
    store = Store.create(tmp_path)
    context = SimpleNamespace(store=store, file=tmp_path / "store.db", seq=0)
    with store.write() as session:
        context.level = level_id(session, LEVEL)
        session.add(
            Campaign(
                name="c",
                run_id="r",
                schema_version=SCHEMA_VERSION,
                hpcal_version="0",
                created=0.0,
                spec={},
                spec_folder="/",
                site={"name": "x"},
                state=CampaignState.RUNNING,
                level_of_theory_id=context.level,
            )
        )

    def add(row):
        with store.write() as session:
            session.add(row)
            session.flush()
            return row.id

    def structure(state=S.CANDIDATE, split=Split.TRAIN, origin="sample", **columns):
        value = Structure(numbers=np.array([1]), positions=np.array([[float(context.seq), 0, 0]]))
        return add(structure_row(value, origin=origin, state=state, split=split, **columns))

    def label(structure_id, split=Split.TRAIN, counted=True, **columns):
        context.seq += counted
        value = Label(energy=-1.0, forces=np.ones((1, 3)), level=LEVEL)
        row = label_row(
            value,
            structure_id=structure_id,
            split=split,
            level_id=context.level,
            seq=context.seq if counted else None,
            attempt_id=None,
        )
        for name, given in columns.items():
            setattr(row, name, given)
        return add(row)

    def ensemble(generation, last_seq, state=EnsembleState.PROMOTED, **columns):
        dataset = add(
            DatasetRow(
                generation=generation,
                level_of_theory_id=context.level,
                last_seq=last_seq,
                n_train=1,
                n_validation=0,
                created=0.0,
            )
        )
        return add(
            EnsembleRow(
                generation=generation,
                state=state,
                kind="ani",
                dataset_id=dataset,
                metric="force_std",
                created=5.0,
                **columns,
            )
        )

    def evaluation(structure_id, ensemble_id, force_rmse, purpose="evaluate"):
        return add(
            ScoreRow(
                structure_id=structure_id,
                ensemble_id=ensemble_id,
                purpose=purpose,
                metric="force_std",
                value=0.1,
                energy_std=0.0,
                force_std=0.0,
                energy_error=0.2,
                force_rmse=force_rmse,
            )
        )

    context.add, context.structure, context.label = add, structure, label
    context.ensemble, context.evaluation = ensemble, evaluation
    yield context
    store.close()


def asked(made, question, *args):
    with made.store.session() as session:
        return question(session, *args)


def plans(made, question):
    """How SQLite answers a question: one line of its plan for each table."""
    statements = []
    with made.store.session() as session:

        def note(_connection, _cursor, statement, parameters, _context, _many):
            statements.append((statement, parameters))

        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        question(session)
        event.remove(engine, "before_cursor_execute", note)
    with sqlite3.connect(made.file) as connection:
        return [
            row[3]
            for s, p in statements
            for row in connection.execute(f"explain query plan {s}", p).fetchall()
        ]


def test_counts_by_split_and_state(made):
    made.structure(S.DROPPED)
    made.structure(S.DROPPED)
    made.structure(S.WAITING, Split.TEST, "audit")
    assert asked(made, history.structure_counts) == {("train", "dropped"): 2, ("test", "waiting"): 1}
    assert asked(made, history.unfinished_counts) == {("waiting", "audit"): 1}
    assert asked(made, history.structure_origins) == {("audit", "waiting"): 1, ("sample", "dropped"): 2}


@pytest.mark.parametrize(
    ("question", "index"),
    [
        (history.structure_counts, "COVERING INDEX ix_structure_split"),
        (history.unfinished_counts, "COVERING INDEX ix_structure_queue"),
        (history.task_counts, "COVERING INDEX ix_task_kind"),
        (history.walker_counts, "COVERING INDEX ix_walker_generation"),
    ],
)
def test_counting_reads_an_index_rather_than_the_rows(made, question, index, database):
    if database != "sqlite":
        pytest.skip("the plans of SQLite are looked at")
    assert any(index in plan for plan in plans(made, question))


def test_accepted_labels(made):
    for split in (Split.TRAIN, Split.TRAIN, Split.TEST):
        made.label(made.structure(S.LABELLED, split), split)
    made.label(made.structure(S.LABELLED, Split.REFERENCE, "reference"), Split.REFERENCE, counted=False)
    made.label(made.structure(S.LABELLED), retracted="wrong spin")
    made.label(made.structure(S.LABELLED, Split.CALIBRATION), Split.CALIBRATION, retracted="wrong spin")
    assert asked(made, history.label_counts) == ({("train",): 2, ("test",): 1}, 2)
    assert sum(asked(made, history.label_origins).values()) == 3


def test_labels_of_an_ensemble_are_those_up_to_its_data_set(made):
    for taken_back in (None, "wrong", None, None):
        made.label(made.structure(S.LABELLED), retracted=taken_back)
    made.ensemble(1, last_seq=2, decided=9.0)
    made.ensemble(2, last_seq=3, state=EnsembleState.TRAINING)
    first, second = asked(made, history.ensembles)
    assert (first.labels, first.closed, first.promoted, first.trained) == (1, 9.0, True, True)
    assert (second.labels, second.closed, second.promoted, second.trained) == (2, 5.0, False, False)


def test_ensembles_come_by_generation_and_revision(made):
    made.ensemble(2, 0)
    made.ensemble(1, 0, revision=1)
    made.ensemble(1, 0)
    assert [e.name for e in asked(made, history.ensembles)] == ["1", "1.1", "2"]


def test_only_a_label_that_was_wanted_counts_as_saved(made):
    ensemble = made.ensemble(3, 0)
    wanted, candidate, twin = (made.structure(S.DROPPED) for _ in range(3))
    for structure, decision, rule in (
        (wanted, "chosen", "farthest_point"),
        (wanted, "dropped", "rescore"),
        (candidate, "dropped", "rescore"),
        (twin, "chosen", "farthest_point"),
        (twin, "dropped", "duplicate"),
    ):
        made.add(
            SelectionRow(
                structure_id=structure, ensemble_id=ensemble, decision=decision, rule=rule, reason=""
            )
        )
    assert asked(made, history.labels_saved) == {(3,): 1}
    assert asked(made, history.selection_counts)["dropped", "rescore"] == 2


def task(made, state=TaskState.FAILED, **columns):
    return made.add(
        TaskRow(kind="label", pool="label", state=state, inputs={}, units=1, created=0.0, **columns)
    )


def test_latest_evaluation_counts(made):
    ensemble, other = made.ensemble(1, 0), made.ensemble(2, 0)
    structure = made.structure(S.LABELLED, Split.TEST, "audit")
    made.label(structure, Split.TEST)
    made.evaluation(structure, ensemble, 0.9)
    made.evaluation(structure, ensemble, 0.3)
    made.evaluation(structure, other, 0.2)
    made.evaluation(structure, other, 7.0, purpose="sample")
    found = asked(made, measurements.evaluations, [Split.TEST])
    assert len(found) == 2
    assert dict(zip(found.ensemble_id.tolist(), found.force_rmse.tolist(), strict=True)) == {
        ensemble: 0.3,
        other: 0.2,
    }
    assert found.of(other, Split.TEST).force_rmse.tolist() == [0.2]
    assert len(found.of(None, Split.TEST)) == 0
    assert np.isnan(found.force_mae).all()


def test_evaluations_are_of_labels_that_stand(made):
    ensemble = made.ensemble(1, 0)
    kept, gone, training, unlabelled = (
        made.structure(S.LABELLED, s) for s in (Split.TEST, Split.TEST, Split.TRAIN, Split.TEST)
    )
    made.label(kept, Split.TEST)
    made.label(gone, Split.TEST, retracted="wrong")
    made.label(training, Split.TRAIN)
    for structure in (kept, gone, training, unlabelled):
        made.evaluation(structure, ensemble, 0.1)
    assert asked(made, measurements.evaluations, [Split.TEST]).structure_id.tolist() == [kept]


def test_attempts(made):
    first = task(made, TaskState.DONE)
    for number, end in ((1, None), (2, 30.0)):
        made.add(
            AttemptRow(
                task_id=first,
                number=number,
                epoch=number,
                executor="label",
                qm_calls=3,
                dispatched=1.0,
                start=10.0,
                end=end,
                state=TaskState.DONE if end else TaskState.LOST,
                exit_reason=None if end else "gone",
            )
        )
    found = asked(made, measurements.attempts)
    assert found.seconds.tolist() == [0.0, 20.0]
    assert found.state.tolist() == ["lost", "done"]
    assert asked(made, history.attempt_endings) == {("label", "lost", "gone"): 1}


def test_empty_store(tmp_path):
    store = Store.create(tmp_path / "empty")
    with store.session() as session:
        with pytest.raises(InputError, match="hpcal run"):
            history.campaign(session)
        assert history.ensembles(session) == []
        assert history.label_counts(session) == ({}, 0)
        assert len(measurements.attempts(session)) == 0
        assert len(measurements.evaluations(session, list(Split))) == 0
    store.close()
