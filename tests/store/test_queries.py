"""The planner's queries use their indexes, however long the history."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from hpcal.core.walker import Split
from hpcal.store import campaigns, queries
from hpcal.store.database import Store
from hpcal.store.transitions import StructureState

QUERIES = {
    "queue": lambda s: queries.queue(s, StructureState.WAITING, ("sample",), 10),
    "unfinished": queries.unfinished,
    "scored_by": lambda s: queries.scored_by(s, 3, 10, stale=True),
    "outstanding": queries.outstanding,
    "idle_walkers": lambda s: queries.idle_walkers(s, 0, 10),
    "alive_walkers": queries.alive_walkers,
    "audit_waiting": lambda s: queries.audit_waiting(s, up_to=3),
    "last_commit": queries.last_commit,
    "labels_after": lambda s: queries.labels_after(s, 10, (Split.TRAIN, Split.VALIDATION)),
    "walker_ends": lambda s: queries.walker_ends(s, 3),
}


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_of_the_planner_scans_a_whole_table(tmp_path, name):
    store = Store.create(tmp_path)
    with store.write() as session:
        campaigns.add_campaign(session, name="x", spec={}, spec_folder=".", site={})
    statements = []
    with store.session() as session:

        @event.listens_for(session.get_bind(), "before_cursor_execute")
        def note(_connection, _cursor, statement, parameters, _context, _many):
            statements.append((statement, parameters))

        QUERIES[name](session)
        event.remove(session.get_bind(), "before_cursor_execute", note)
        raw = session.connection().connection.cursor()
        plans = [
            line[3]
            for statement, parameters in statements
            if statement.startswith("SELECT")
            for line in raw.execute("EXPLAIN QUERY PLAN " + statement, parameters).fetchall()
        ]
        raw.close()
    store.close()
    assert plans
    # A partial index holds only what is unfinished, so that walking through all of it is short.
    short = ("ix_", "USING INTEGER", "CONSTANT ROW")
    whole = [p for p in plans if p.startswith("SCAN") and not any(word in p for word in short)]
    assert not whole, plans
