"""The campaigns and sites that ship are checked whole, as `hpcal run` would before it starts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.campaigns import query, run_inline

from hpcal.core.batch import Batch
from hpcal.core.protocols import BiasInput
from hpcal.core.units import KCAL_PER_MOL
from hpcal.core.walker import Walker
from hpcal.engine.campaign import CampaignSpec, read_campaign
from hpcal.engine.start import check
from hpcal.sites.schema import load_site

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "workflows"
CAMPAIGNS = sorted(WORKFLOWS.rglob("*.yaml"))
STUDY = sorted((WORKFLOWS / "studies").glob("*.yaml"))
SITES = sorted((ROOT / "site_configs").glob("*.yaml"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def missing_data(spec: CampaignSpec) -> list[Path]:
    """Files that a campaign names and that are made by a command rather than shipped."""
    files = [*(block.file for block in spec.bootstrap), spec.reference]
    return [path for path in files if path is not None and not path.exists()]


@pytest.mark.parametrize("path", CAMPAIGNS, ids=named)
def test_a_shipped_campaign_is_ready_to_run(path: Path) -> None:
    spec = read_campaign(path)
    missing = missing_data(spec)
    if missing:
        pytest.skip(f"{missing[0].name} is made by a command that the file states")
    start, level = check(spec)
    assert start.seeds
    assert level.method.lower() == str(spec.raw["label"]["method"]).lower()


@pytest.mark.parametrize("path", CAMPAIGNS, ids=named)
def test_a_shipped_campaign_says_what_it_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first.split()) > 5
    assert read_campaign(path).name == path.stem


def test_no_two_shipped_campaigns_share_a_name() -> None:
    names = [read_campaign(path).name for path in CAMPAIGNS]
    assert {"quickstart", "water_dft", "glycine_dft"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", SITES, ids=named)
def test_a_shipped_site_loads_by_path_and_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNT", "m1234")
    site = load_site(path)
    assert {"label", "sample", "train"} <= set(site.pools)
    assert load_site(path.stem) == site


def test_runs_of_the_study_differ_in_start_and_sampler_alone() -> None:
    assert len(STUDY) == 4
    common: list[dict[str, Any]] = []
    for path in STUDY:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        (walkers,) = data.pop("sampling")
        assert (walkers["temperature_K"], walkers["walkers"], walkers["time_ps"]) == (600, 48, 0.5)
        del data["name"], data["structures"]
        common.append(data)
    assert all(data == common[0] for data in common)
    starts = [(s.raw["structures"].get("file"), s.sampling[0].part.name) for s in map(read_campaign, STUDY)]
    assert len(set(starts)) == 4


# ── glycine_dft.yaml against the publication ─────────────────────────────────────────────────


def published_bias(energies: np.ndarray, n_atoms: int) -> float:
    """E_bias of 10.1038/s43588-023-00406-5, eqs 2 and 4, for glycine; energies and result in eV."""
    depth, width = 15.4 * KCAL_PER_MOL, 0.12 * KCAL_PER_MOL
    variance = 0.5 * np.sum((energies - energies.mean()) ** 2)
    return float(depth * (np.exp(-variance / (len(energies) * n_atoms * width**2)) - 1.0))


@pytest.mark.parametrize("spread", [0.005, 0.02, 0.06])  # eV
def test_the_bias_of_glycine_dft_is_the_published_one(spread: float) -> None:
    spec = read_campaign(WORKFLOWS / "glycine_dft.yaml")
    seed = check(spec)[0].seeds[0]
    walker = Walker(id=1, structure=seed, steps_full=1, stream=3, temperature=350.0)
    bias = spec.sampling[0].part.build().bias([walker], torch.device("cpu"))
    energies = np.random.default_rng(5).normal(0.0, spread, 8)
    at = BiasInput(
        energies=torch.tensor(energies)[:, None],
        batch=Batch.of([seed]),
        n_atoms=torch.tensor([10.0], dtype=torch.float64),
        time_fs=torch.tensor([1000.0], dtype=torch.float64),
    )
    found = float(bias.energy(at)[0])
    assert found == pytest.approx(published_bias(energies, 10), rel=1e-3)


def test_the_threshold_of_glycine_dft_is_the_published_one() -> None:
    spec = read_campaign(WORKFLOWS / "glycine_dft.yaml")
    assert spec.metric == "energy_std"
    assert spec.file.uncertainty.threshold == pytest.approx(0.35 * KCAL_PER_MOL, rel=1e-3)


def test_the_labels_of_glycine_dft_are_the_published_number_and_its_audit() -> None:
    spec = read_campaign(WORKFLOWS / "glycine_dft.yaml")
    learning = round(spec.file.stop.labels * (1 - spec.selection.audit_share))
    assert learning == 125 + 1280


# ── water_dft.yaml, run ──────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_water_dft_ends_by_its_own_rule_with_a_usable_ensemble(tmp_path: Path) -> None:
    reason = run_inline(WORKFLOWS / "water_dft.yaml", tmp_path / "water")
    assert reason == "label budget: 72 labels accepted"
    assert query(tmp_path / "water", "SELECT count(*) FROM rejection") == [(0,)]
    (squares,) = zip(
        *query(
            tmp_path / "water",
            "SELECT force_rmse * force_rmse FROM score JOIN structure ON structure.id = structure_id "
            "WHERE purpose = 'evaluate' AND structure.split = 'test' "
            "AND ensemble_id = (SELECT max(id) FROM ensemble)",
        ),
        strict=True,
    )
    assert np.sqrt(np.mean(squares)) < 0.1


# ── Campaigns of labels: a broken bond, ions, a crystal ──────────────────────────────────────


@pytest.mark.slow
def test_peroxide_labels_broken_bonds_by_their_lower_state(tmp_path: Path) -> None:
    reason = run_inline(WORKFLOWS / "peroxide.yaml", tmp_path / "peroxide")
    assert reason.startswith(("label budget", "generations"))
    labels = [json.loads(text) for (text,) in query(tmp_path / "peroxide", "SELECT diagnostics FROM label")]
    assert len(labels) >= 40
    broken = [d for d in labels if d["reference"] == "uks_bs"]
    assert broken
    assert all(d["state_check"] and d["state_lowering_eV"] > 0 for d in broken)
    assert all(d["checks"]["net_force"]["passed"] for d in labels)
    causes = query(tmp_path / "peroxide", "SELECT DISTINCT code FROM rejection")
    assert {code for (code,) in causes} <= {"lower_multiplicity", "force_limit", "overlap", "net_force"}


@pytest.mark.slow
def test_ions_learn_three_charges_of_each_geometry(tmp_path: Path) -> None:
    run_inline(WORKFLOWS / "ions.yaml", tmp_path / "ions")
    states = query(
        tmp_path / "ions",
        "SELECT charge, multiplicity, count(*) FROM label JOIN structure ON structure.id = structure_id "
        "GROUP BY charge, multiplicity",
    )
    counts = {charge: count for charge, _, count in states}
    assert {(charge, multiplicity) for charge, multiplicity, _ in states} == {(-1, 2), (0, 1), (1, 2)}
    assert min(counts.values()) >= 0.8 * max(counts.values())
    splits = query(
        tmp_path / "ions",
        "SELECT count(DISTINCT split) FROM structure GROUP BY hex(positions) HAVING count(*) > 1",
    )
    assert splits
    assert {n for (n,) in splits} == {1}


@pytest.mark.slow
def test_silicon_learns_forces_and_stress_of_a_crystal(tmp_path: Path) -> None:
    run_inline(WORKFLOWS / "silicon.yaml", tmp_path / "silicon")
    ((labels, stresses, periodic),) = query(
        tmp_path / "silicon",
        "SELECT count(*), count(stress), sum(pbc = 7) FROM label "
        "JOIN structure ON structure.id = structure_id",
    )
    assert labels == stresses == periodic
    assert labels >= 40
