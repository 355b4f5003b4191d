"""The report sums up the audits of labels from the rows that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report.conftest import LEVEL, Author
from report.test_html import Outline

from hpcal.core.errors import FailureClass
from hpcal.core.walker import Split
from hpcal.report.data import gather
from hpcal.report.html_label_audits import section
from hpcal.store.database import Store
from hpcal.store.label_audits import AuditSummary, label_audits
from hpcal.store.rows import level_id
from hpcal.store.tables import RejectionRow
from hpcal.store.transitions import StructureState


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Author]:
    store = Store.create(tmp_path)
    with store.write() as session:
        author = Author(session=session, rng=np.random.default_rng(5))
        author.level = level_id(session, LEVEL)
        yield author
    store.close()


def record(value: float | None, limit: float | None = 0.005, *, passed: bool = True) -> dict[str, object]:
    return {"value": value, "limit": limit, "passed": passed}


def audited(write: Author, **audits: object) -> int:
    """A labelled structure whose label was audited."""
    row = write.structure("sample", StructureState.LABELLED, Split.TRAIN)
    write.label(row, None).diagnostics = {"checks": {}, "audits": audits}
    return row.id


def turned_away(write: Author, name: str, **audits: object) -> int:
    """A structure whose label failed the last of its audits."""
    row = write.structure("sample", StructureState.QUARANTINED, Split.TRAIN)
    write.add(
        RejectionRow(
            structure_id=row.id, level_of_theory_id=write.level, failure_class=FailureClass.PHYSICS,
            code=f"audit_{name}", message="made up", diagnostics={"audits": audits}, qm_calls=3, created=0,
        )
    )  # fmt: skip
    return row.id


def test_audits_of_labels_and_of_rejections_are_counted_by_name(write):
    write.labelled("sample", Split.TRAIN, 3)  # not audited
    audited(write, finite_difference=record(0.001), fod=record(0.31, None), t1=record(None, None))
    audited(write, finite_difference=record(0.002), stability=record(None, None))
    worst = turned_away(
        write, "stability", finite_difference=record(0.004), stability=record(None, None, passed=False)
    )
    write.session.flush()
    found = {summary.name: summary for summary in label_audits(write.session)}
    assert found["finite_difference"] == AuditSummary(
        name="finite_difference",
        made=3,
        failed=0,
        worst=0.004,
        worst_structure=worst,
        limits=(0.005, 0.005),
    )
    assert (found["stability"].made, found["stability"].failed, found["stability"].worst) == (2, 1, None)
    assert (found["fod"].worst, found["fod"].limits) == (0.31, None)
    assert (found["t1"].made, found["t1"].worst, found["t1"].worst_structure) == (1, None, None)


def test_a_code_or_message_with_the_word_is_no_audit(write):
    turned_away(write, "x")
    row = write.structure("sample", StructureState.LABELLED, Split.TRAIN)
    write.label(row, None).diagnostics = {"checks": ["audits"], "note": 'no "audits" here'}
    write.session.flush()
    assert label_audits(write.session) == []


def test_the_report_shows_them_with_their_units(campaign: SimpleNamespace):
    shown = section(gather(campaign.store))
    words = " ".join(Outline(shown.body).words)
    assert shown.title == "Audits of labels"
    assert "finite_difference force along a random direction against the slope of the energy 3 0" in words
    assert "0.0042\u00a0eV/Å" in words
    assert "0.0075\u00a0eV/Å" in words
    assert "fod N_FOD, electrons in fractional occupations 3 0 0.042 " in words


def test_a_campaign_without_audits_says_so(begun: Store):
    assert "No label has been audited yet." in " ".join(Outline(section(gather(begun)).body).words)
