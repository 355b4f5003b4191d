from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from hpcal.core.errors import CampaignHeld, FencedError, InputError
from hpcal.store import campaigns, lease
from hpcal.store.database import STORE_FILE, Store
from hpcal.store.tables import Campaign

pytestmark = pytest.mark.stores


@pytest.fixture
def folder(tmp_path):
    store = Store.create(tmp_path)
    with store.write() as session:
        campaigns.add_campaign(session, name="held", spec={}, spec_folder=".", site={})
    store.close()
    return tmp_path


HOLD = """
import sys, time
from pathlib import Path
from hpcal.store.database import Store
store = Store.open(Path(sys.argv[1]))
store.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_second_controller_is_refused_and_told_who_holds_it(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        second = Store.open(folder)
        with pytest.raises(CampaignHeld, match=f"process {holder.pid} on {os.uname().nodename}"):
            second.acquire()
        holder.kill()
        holder.wait()
        # A dead one on the same host is taken over at once.
        assert second.acquire().epoch == 2
        second.close()


def test_a_controller_that_was_taken_over_cannot_write(folder):
    first, second = Store.open(folder), Store.open(folder)
    first.acquire()
    with first.write() as session:
        session.query(Campaign).update({"lease_pid": None})
    second.acquire()
    with pytest.raises(FencedError), first.write() as session:
        campaigns.campaign(session).name = "mine"
    with second.session() as session:
        assert campaigns.campaign(session).name == "held"
    first.close()
    second.close()


def elsewhere(store: Store, counter: int) -> None:
    with store.write() as session:
        row = campaigns.campaign(session)
        row.lease_host, row.lease_pid, row.lease_process_start = "elsewhere", 1, 1.0
        row.lease_counter = counter


def test_a_holder_on_another_host_is_judged_by_its_counter(folder, monkeypatch):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.5)
    store = Store.open(folder)
    elsewhere(store, 5)
    assert store.acquire().epoch == 1
    elsewhere(store, 6)
    sleep = time.sleep

    def beats(seconds: float) -> None:
        sleep(seconds)
        other = Store.open(folder)
        with other.write() as session:
            campaigns.campaign(session).lease_counter += 1
        other.close()

    monkeypatch.setattr(lease.time, "sleep", beats)
    with pytest.raises(CampaignHeld, match="elsewhere"):
        store.acquire()
    store.close()


def test_released_lease_is_free_at_once(folder):
    store = Store.open(folder)
    store.acquire()
    store.release()
    other = Store.open(folder)
    assert other.acquire().epoch == 2
    other.close()
    store.close()


def test_a_file_that_is_no_store_is_one_clear_sentence(tmp_path):
    (tmp_path / STORE_FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError, match="is not a store of hpcal"):
        Store.read(tmp_path)


def test_a_database_of_somebody_else_is_no_store(tmp_path):
    with closing(sqlite3.connect(tmp_path / STORE_FILE)) as connection:
        connection.execute("CREATE TABLE cake (id INTEGER)")
    with pytest.raises(InputError, match="is not a store of hpcal: it has no campaign"):
        Store.begun(tmp_path)


@pytest.mark.parametrize("command", [None, "PRAGMA user_version = 0", "PRAGMA journal_mode = WAL"])
def test_what_was_killed_before_its_first_table_is_begun_anew(tmp_path, command):
    """An empty file, or one with the header of a database and nothing else."""
    (tmp_path / STORE_FILE).touch()
    if command is not None:
        with closing(sqlite3.connect(tmp_path / STORE_FILE)) as connection:
            connection.execute(command)
        assert (tmp_path / STORE_FILE).stat().st_size
    assert not Store.begun(tmp_path)
    with pytest.raises(InputError, match="holds no campaign that was begun: start it with `hpcal run`"):
        Store.read(tmp_path)
    Store.create(tmp_path).close()
    assert not Store.begun(tmp_path)  # it has tables, and no campaign yet


def test_no_store(tmp_path):
    with pytest.raises(InputError, match="no campaign in"):
        Store.read(tmp_path)


def test_a_reader_cannot_write(folder):
    from hpcal.core.errors import StoreError

    reader = Store.read(folder)
    with pytest.raises(StoreError), reader.write() as session:
        campaigns.campaign(session).name = "written"
    reader.close()
