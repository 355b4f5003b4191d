"""Stores of earlier releases: what is said of them, and how they are brought up to date."""

from __future__ import annotations

import json
import sqlite3
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import Connection, MetaData, create_engine, event, text

from hpcal.cli.main import cli
from hpcal.core.errors import CampaignHeld, InputError
from hpcal.core.fingerprint import fingerprint
from hpcal.core.structure import Structure
from hpcal.store import campaigns, ensembles, queries, structures
from hpcal.store.connect import writer
from hpcal.store.database import Store
from hpcal.store.location import Location
from hpcal.store.migrate import migrate
from hpcal.store.tables import SCHEMA_VERSION, Base

WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])


def alembic(folder) -> Config:
    config = Config()
    config.set_main_option("script_location", "hpcal:store/migrations")
    return config


def at_schema(folder, version: str) -> sqlite3.Connection:
    """A store of an earlier schema, made by the steps that led to it."""
    folder.mkdir(exist_ok=True)
    engine = create_engine(f"sqlite:///{folder / 'store.db'}")
    with engine.begin() as connection:
        config = alembic(folder)
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()
    return sqlite3.connect(folder / "store.db")


def first_release(folder) -> None:
    """A campaign as the first release left it: no table of Alembic, two labels, one evaluation."""
    db = at_schema(folder, "1")
    db.execute("DROP TABLE alembic_version")
    insert(
        db,
        "campaign",
        id=1,
        name="old",
        run_id="r",
        schema_version=1,
        hpcal_version="0.1.0",
        created=1.0,
        spec="{}",
        spec_folder=".",
        site="{}",
        state="stopped",
        planned=0,
        lease_epoch=1,
        lease_counter=0,
    )
    insert(db, "level_of_theory", id=1, hash="h", record="{}")
    insert(
        db,
        "dataset",
        id=1,
        generation=1,
        level_of_theory_id=1,
        last_seq=2,
        n_train=1,
        n_validation=0,
        created=1,
    )
    insert(
        db,
        "ensemble",
        id=1,
        generation=1,
        revision=0,
        state="promoted",
        kind="morse",
        dataset_id=1,
        created=1.0,
        metric="force_std",
        quiet_rounds=0,
    )
    insert(
        db,
        "task",
        id=1,
        kind="label",
        pool="label",
        state="done",
        priority=0,
        inputs="{}",
        units=1,
        created=1.0,
        failures=0,
        losses=0,
    )
    insert(
        db,
        "attempt",
        id=1,
        task_id=1,
        number=1,
        epoch=3,
        executor="label",
        state="done",
        dispatched=1.0,
        qm_calls=0,
    )
    for i, split in ((1, "train"), (2, "test")):
        insert(
            db,
            "structure",
            id=i,
            hash=WATER.content_hash,
            state="labelled",
            origin="sample",
            split=split,
            n_atoms=3,
            formula="H2O",
            numbers=WATER.numbers.astype("u1").tobytes(),
            positions=WATER.positions.tobytes(),
            pbc=0,
            charge=0,
            multiplicity=1,
            created=1.0,
            generation=1,
            priority=0.0,
            failures=0,
        )
        insert(
            db,
            "label",
            id=i,
            seq=i,
            structure_id=i,
            level_of_theory_id=1,
            attempt_id=1,
            split=split,
            energy=-1.0,
            diagnostics="{}",
            qm_calls=1,
            created=1.0,
        )
    insert(
        db,
        "score",
        id=1,
        structure_id=2,
        ensemble_id=1,
        purpose="evaluate",
        metric="force_std",
        value=0.1,
        energy_error=0.3,
        force_mae=0.1,
        force_rmse=0.2,
    )
    db.commit()
    db.close()


def insert(db: sqlite3.Connection, table: str, **columns) -> None:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(columns.values()))


@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
def test_steps_lead_to_the_schema_of_a_new_store(tmp_path):
    at_schema(tmp_path, "head").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()
    # SQLite cannot add a named constraint to a table; the unnamed one is there all the same.
    assert [d for d in found if d[0] != "add_fk"] == []
    assert ScriptDirectory.from_config(alembic(tmp_path)).get_current_head() == str(SCHEMA_VERSION)


def test_store_of_an_older_release_says_what_to_do(tmp_path):
    first_release(tmp_path)
    with pytest.raises(InputError, match=f"schema 1, .* knows {SCHEMA_VERSION}: .*older.*`hpcal migrate"):
        Store.read(tmp_path)
    result = CliRunner().invoke(cli, ["status", str(tmp_path)])
    assert result.exit_code == 2
    assert "hpcal migrate" in result.stderr


def test_store_of_a_newer_release_says_what_to_do(tmp_path):
    store = Store.create(tmp_path)
    with store.write() as session:
        campaigns.add_campaign(session, name="new", spec={}, spec_folder=".", site={})
        campaigns.campaign(session).schema_version = SCHEMA_VERSION + 1
    store.close()
    for use in (Store.read, Store.open, migrate):
        with pytest.raises(InputError, match="newer hpcal"):
            use(tmp_path)


def test_migration_fills_what_is_new_from_what_is_there_and_keeps_a_copy(tmp_path):
    first_release(tmp_path)
    done = migrate(tmp_path)
    assert (done.before, done.after) == (1, SCHEMA_VERSION)
    store = Store.read(tmp_path)
    with store.session() as session:
        assert campaigns.campaign(session).name == "old"
        assert queries.labels_after(session, 0, queries.LEARNING) == 1
        assert queries.labels_after(session, 1, queries.AUDITING) == 1
        assert queries.errors(session, 1, queries.AUDITING).force_rmse == pytest.approx(0.2)
        assert {row.fingerprint for row in structures.rows_of(session, [1, 2]).values()} == {
            fingerprint(WATER)
        }
        assert queries.last_task_states(session, "label", 3, 3)[0][0] == "done"
    store.close()
    copy = sqlite3.connect(done.copy)
    assert copy.execute("SELECT schema_version FROM campaign").fetchone() == (1,)
    copy.close()
    assert migrate(tmp_path).copy is None  # a second time there is nothing to do


def test_migration_that_fails_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    first_release(tmp_path)

    def broken(_session):
        raise OSError("the disk is gone")

    monkeypatch.setattr("hpcal.store.migrate._fill_fingerprints", broken)
    with pytest.raises(OSError, match="disk is gone"):
        migrate(tmp_path)
    db = sqlite3.connect(tmp_path / "store.db")
    assert db.execute("SELECT schema_version FROM campaign").fetchone() == (1,)
    assert "fingerprint" not in {row[1] for row in db.execute("PRAGMA table_info(structure)")}
    db.close()
    monkeypatch.undo()
    assert migrate(tmp_path).after == SCHEMA_VERSION


def test_a_running_campaign_is_not_migrated(tmp_path):
    store = Store.create(tmp_path)
    with store.write() as session:
        campaigns.add_campaign(session, name="held", spec={}, spec_folder=".", site={})
        campaigns.campaign(session).schema_version = 1
    store.acquire()
    with pytest.raises(CampaignHeld):
        migrate(tmp_path)
    store.close()


def test_the_command_says_what_it_did(tmp_path):
    first_release(tmp_path)
    result = CliRunner().invoke(cli, ["migrate", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert f"schema 1 to {SCHEMA_VERSION}" in result.stdout
    assert "store.schema-1.db" in result.stdout
    assert json.loads(CliRunner().invoke(cli, ["status", str(tmp_path), "--json"]).stdout)["name"] == "old"


@pytest.fixture
def in_training(tmp_path) -> Path:
    """A campaign of schema 2 in SQLite or PostgreSQL: one member of three is there, two are out."""
    at_schema(tmp_path / "made", "2").close()
    made = create_engine(f"sqlite:///{tmp_path / 'made' / 'store.db'}")
    tables = MetaData()
    event.listen(tables, "column_reflect", any_database)
    tables.reflect(made)
    made.dispose()
    location = Location.new(tmp_path / "old")
    engine = writer(location)
    with engine.begin() as connection:
        if location.schema is not None:
            connection.execute(text(f'CREATE SCHEMA "{location.schema}"'))
        tables.create_all(connection)
        connection.execute(tables.tables["alembic_version"].insert().values(version_num="2"))
        add = partial(add_row, connection, tables)
        add("campaign", id=1, schema_version=2, state="stopped")
        add("level_of_theory", id=1)
        add("dataset", id=1, level_of_theory_id=1)
        add("ensemble", id=3, dataset_id=1, state="training")
        for task, state, member in ((5, "done", 0), (6, "dispatched", 1), (7, "queued", 2)):
            inputs = {"ensemble_id": 3, "members": [{"index": member, "seed": 1}]}
            add("task", id=task, kind="train", state=state, inputs=inputs)
        add("task", id=8, kind="label", state="queued", inputs={"structure_ids": [1]})
        add("model", id=1, ensemble_id=3, member=0, task_id=5, path="models/m0", sha256="0")
        add("model", id=2, ensemble_id=3, member=1)
        add("model", id=3, ensemble_id=3, member=2)
    engine.dispose()
    return tmp_path / "old"


def any_database(_inspector: object, _table: object, column: dict) -> None:
    """The steps to schema 2 run in SQLite only; their tables are wanted in PostgreSQL too."""
    column["type"] = column["type"].as_generic()


def add_row(connection: Connection, tables: MetaData, name: str, **columns) -> None:
    """Inserts a row; columns that need a value and are not given one are empty, or nought."""
    table = tables.tables[name]
    empty: dict[type, object] = {str: "", dict: {}}
    needed = [c for c in table.columns if not c.nullable and c.server_default is None]
    other = {c.name: empty.get(c.type.python_type, 0) for c in needed if c.name not in columns}
    connection.execute(table.insert().values(**other, **columns))


@pytest.mark.stores
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
def test_members_in_training_learn_which_task_trains_them(in_training):
    """Schema 3. The inputs of a task come as text from SQLite, and decoded from PostgreSQL."""
    assert migrate(in_training).before == 2
    store = Store.read(in_training)
    with store.session() as session:
        members = ensembles.members_of(session, 3)
        assert [(m.member, m.task_id, m.path, m.missing) for m in members] == [
            (0, 5, "models/m0", None),
            (1, 6, None, None),
            (2, 7, None, None),
        ]
        assert [task.id for task in ensembles.outstanding_trainings(session, 3)] == [6, 7]
    store.close()
