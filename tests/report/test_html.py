import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hpcal.core.errors import InputError
from hpcal.report.canvas import MAX_POINTS, WORST, drawn
from hpcal.report.data import gather
from hpcal.report.html import render_report, write_report
from hpcal.report.pictures import caught, parity, uncertainty
from hpcal.report.status import campaign_status
from hpcal.report.timeline import timeline
from hpcal.store.database import Store
from hpcal.store.measurements import Attempts, Evaluations

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(campaign):
    return render_report(gather(campaign.store))


def many(n: int) -> Evaluations:
    rng = np.random.default_rng(1)
    value = rng.lognormal(-2, 0.5, n)
    rmse = value * rng.lognormal(0, 0.3, n)
    return Evaluations(
        structure_id=np.arange(n),
        ensemble_id=np.ones(n, dtype=int),
        split=np.full(n, "test"),
        family=np.arange(n),
        n_atoms=np.full(n, 10),
        formula=np.full(n, "C2H5NO2"),
        value=value,
        energy_std=value / 10,
        force_std=value,
        label_energy=rng.normal(size=n),
        energy_error=rng.normal(0, 0.1, n),
        committee_error=rng.random(n),
        force_mae=0.7 * rmse,
        force_rmse=rmse,
    )


def test_well_formed_and_whole(report):
    outline = Outline(report)
    pictures = outline.all("img")
    assert len(pictures) == 7
    for picture in pictures:
        assert len(picture["alt"] or "") > 20
        prefix, data = (picture["src"] or "").split(",")
        assert prefix == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    anchors = {a["href"] for a in outline.all("a")}
    assert anchors == {f"#{s['id']}" for s in outline.all("section")}


def test_nothing_from_outside(report):
    outline = Outline(report)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/svg+xml;base64,", "#"))
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", report)
    assert "http://" not in outside
    assert "https://" not in outside
    assert "url(" not in outside
    assert "@import" not in outside
    for data in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", report):
        svg = base64.b64decode(data).decode()
        links = re.findall(r"(?:href|src)=\"([^\"]*)\"", svg)
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_what_comes_from_rows_is_escaped(report):
    assert "<b>no convergence</b>" not in report
    assert "&lt;b&gt;no convergence&lt;/b&gt; &amp; more" in report
    assert "generation 1 was promoted &amp; &lt;compared&gt;" in report


def test_every_table_names_its_source(report):
    outline = Outline(report)
    captions = re.findall(r"<caption>Source: ([^<]+)</caption>", report)
    assert len(captions) == len(outline.all("table"))
    for caption in captions:
        assert re.search(
            r"\b(campaign|ensemble|score|label|selection|structure|rejection|task|attempt|walker|event)\b",
            caption,
        )


def test_numbers_are_those_of_the_status(report, campaign):
    status = campaign_status(campaign.store)
    text = " ".join(Outline(report).words)
    assert f"{status['ensemble']['force_rmse_ev_per_ang']:.3f}" in text
    for entry in status["history"]:
        assert f"{entry['audit']['force_rmse_ev_per_ang']:.4g}" in text
    assert f"{status['labels']['accepted']} labels accepted" in text


def test_a_campaign_that_has_just_begun(begun, tmp_path):
    path = write_report(begun, tmp_path / "new" / "report.html")
    outline = Outline(path.read_text(encoding="utf-8"))
    text = " ".join(outline.words)
    assert "No ensemble has been trained yet." in text
    assert outline.all("img") == []


def test_ensemble_without_evaluations(campaign):
    data = gather(campaign.store)
    blind = replace(data, evaluations=data.evaluations.where(np.zeros(len(data.evaluations), dtype=bool)))
    text = " ".join(Outline(render_report(blind)).words)
    assert "nothing is known of this" in text


def test_why_it_ended_is_told(begun):
    data = gather(begun)
    ended = replace(data, status={**data.status, "state": "finished", "stop_reason": "600 labels < asked"})
    assert "600 labels &lt; asked" in render_report(ended)


def test_an_older_report_is_replaced_whole(campaign, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(campaign.store, path) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(campaign, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(campaign.store, tmp_path / "file" / "report.html")


def test_store_without_campaign(tmp_path):
    store = Store.create(tmp_path)
    with pytest.raises(InputError, match="no campaign"):
        write_report(store, tmp_path / "report.html")
    store.close()


def test_many_points_do_not_make_a_large_picture():
    found = many(100_000)
    shown = uncertainty(found, metric="force_std", threshold=0.2, kind="force_rmse", limit=0.3)
    even = parity(found)
    assert shown is not None
    assert even is not None
    assert len(shown.svg) + len(even.svg) < 1_000_000


def test_the_worst_are_always_drawn():
    error = np.random.default_rng(0).normal(size=50_000)
    index = drawn(error)
    assert len(index) == len(np.unique(index)) == MAX_POINTS
    assert set(np.argsort(-np.abs(error))[:WORST]) <= set(index)
    assert np.array_equal(index, drawn(error))
    assert np.array_equal(drawn(error[:10]), np.arange(10))


def test_same_rows_give_the_same_picture():
    found = many(50)
    settings = {"metric": "force_std", "threshold": 0.2, "kind": "force_rmse", "limit": 0.3}
    assert uncertainty(found, **settings) == uncertainty(found, **settings)


def test_caught_and_missed():
    found = replace(
        many(4), value=np.array([1.0, 1.0, 3.0, 3.0]), force_rmse=np.array([0.1, 0.9, 0.1, np.nan])
    )
    assert caught(found, 2.0, "force_rmse", 0.5) == {"caught": 0, "missed": 1, "false_alarm": 1, "certain": 1}
    energies = replace(found, committee_error=np.array([0.9, 0.1, 0.9, 0.1]))
    assert caught(energies, 2.0, "energy", 0.5) == {"caught": 1, "missed": 1, "false_alarm": 1, "certain": 1}


def test_timeline_of_very_many_attempts():
    rng = np.random.default_rng(0)
    start = 1.7e9 + np.sort(rng.uniform(0, 50_000, 20_000))
    attempts = Attempts(
        executor=np.full(20_000, "label"),
        kind=rng.choice(["label", "relax"], 20_000),
        state=np.full(20_000, "done"),
        epoch=np.ones(20_000, dtype=int),
        dispatched=start,
        start=start,
        end=start + rng.uniform(1, 60, 20_000),
        qm_calls=np.ones(20_000, dtype=int),
    )
    picture = timeline(attempts, {"label": {"slots": 16}}, [])
    assert picture is not None
    assert len(picture.svg) < 300_000
    assert "20000 attempts" in picture.alt
