"""Sections of the report on what the ensembles are worth."""

from __future__ import annotations

import numpy as np
from scipy import stats

from hpcal.core.walker import Split
from hpcal.report.canvas import MAX_POINTS, WORST
from hpcal.report.data import ReportData
from hpcal.report.page import Cell, Section, figure, folded, table, text
from hpcal.report.pictures import GROUPS, caught, learning_curve, parity, true_error, uncertainty
from hpcal.store.error_summary import error_summary
from hpcal.store.measurements import Evaluations, FamilyErrors

AUDIT = (Split.CALIBRATION, Split.TEST)


def sections(data: ReportData) -> list[Section]:
    """Learning curve, accuracy now, uncertainty, promotion."""
    return [_learning(data), _accuracy(data), _uncertainty(data), _promotion(data)]


def _learning(data: ReportData) -> Section:
    history = data.status["history"]
    lead = text(
        "Every ensemble, evaluated on the audit test labels that there are now: frames drawn uniformly in "
        "time from walkers set apart, whatever their uncertainty, which no ensemble learnt from. The band is "
        "the 95 % bootstrap interval over walkers.",
        "lead",
    )
    force, energy = learning_curve(history, "force"), learning_curve(history, "energy")
    if force is None and energy is None:
        lead += text(_no_curve(data), "nothing")
    rows: list[list[Cell]] = []
    for entry in history:
        audit, reference = entry["audit"], entry["reference"]
        interval = audit["force_rmse_ev_per_ang_interval"]
        rows.append(
            [
                _name(entry["generation"], entry["revision"]),
                entry["labels"],
                entry["n_train"],
                entry["node_hours"],
                _milli(audit["energy_rmse_ev_per_atom"]),
                audit["force_rmse_ev_per_ang"],
                f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else None,
                audit["count"],
                _milli(reference["energy_rmse_ev_per_atom"]),
                reference["force_rmse_ev_per_ang"],
                reference["count"],
            ]
        )
    head = (
        "generation", "labels", "train", "node hours", "E audit (meV/atom)", "F audit (eV/Å)", "95 %",
        "audit", "E ref. (meV/atom)", "F ref. (eV/Å)", "ref.",
    )  # fmt: skip
    numbers = table(head, rows, "tables ensemble, dataset, label, score (purpose evaluate), attempt; RMSE")
    body = lead
    body += figure(force, "Force RMSE over all components.") if force else ""
    body += figure(energy, "Energy RMSE per atom.") if energy else ""
    return Section(anchor="learning", title="Learning curve", body=body + folded("Numbers", numbers))


def _no_curve(data: ReportData) -> str:
    if not data.ensembles:
        return "No ensemble has been trained yet."
    return "No ensemble has been evaluated on audit or reference labels yet."


def _accuracy(data: ReportData) -> Section:
    found = data.now(*GROUPS)
    if data.current is None:
        return Section(
            anchor="accuracy", title="Accuracy", body=text("No ensemble has been promoted yet.", "nothing")
        )
    rows: list[list[Cell]] = []
    for split, (name, _, _) in GROUPS.items():
        errors = error_summary(FamilyErrors.summed(data.now(split)))
        if errors["count"]:
            rows.append(
                [
                    name,
                    errors["count"],
                    _milli(errors["energy_mae_ev_per_atom"]),
                    _milli(errors["energy_rmse_ev_per_atom"]),
                    errors["force_mae_ev_per_ang"],
                    errors["force_rmse_ev_per_ang"],
                ]
            )
    head = ("group", "structures", "E MAE (meV/atom)", "E RMSE (meV/atom)", "F MAE (eV/Å)", "F RMSE (eV/Å)")
    picture = parity(found)
    body = text(
        f"The ensemble of generation {data.current.name}, promoted last, on labels it never saw.", "lead"
    )
    if picture is not None:
        caption = (
            "Energies per atom relative to the mean label of their composition; force RMSE of single "
            f"structures. {_drawn(found)}"
        )
        body += figure(picture, caption)
    source = "tables score (purpose evaluate: energy_error, force_mae, force_rmse), label, structure"
    return Section(anchor="accuracy", title="Accuracy", body=body + table(head, rows, source))


def _drawn(found: Evaluations) -> str:
    if all((found.split == str(split)).sum() <= MAX_POINTS for split in GROUPS):
        return ""
    return (
        f"Of each group {MAX_POINTS} points are drawn: the {WORST} with the largest errors and a random "
        "share of the others; all numbers are of all."
    )


def _uncertainty(data: ReportData) -> Section:
    found, current = data.now(*AUDIT), data.current
    kind, limit = data.failure_kind, data.failure_error
    known = found.where(np.isfinite(true_error(found, kind)))
    if current is None or not len(known):
        body = text("No audit labels have been evaluated yet, so nothing is known of this.", "nothing")
        return Section(anchor="uncertainty", title="Uncertainty", body=body)
    body = text(
        f"Audit frames under the ensemble of generation {current.name}. A frame with an error above "
        f"{limit:g} {'eV/Å (force RMSE)' if kind == 'force_rmse' else 'eV/√atom (energy)'} is a failure; one "
        "whose uncertainty is above the threshold would be labelled. A good threshold misses few failures.",
        "lead",
    )
    picture = uncertainty(known, metric=current.metric, threshold=current.threshold, kind=kind, limit=limit)
    if picture is not None:
        body += figure(picture, f"Each point is one audit frame. {_drawn(known)}")
    rows = [_uncertainty_row(data, split) for split in AUDIT if len(known.of(current.id, split))]
    head = (
        "group", "frames", "rank correlation", "failures", "caught", "missed", "false alarms", "certain",
        "error above threshold", "error below",
    )  # fmt: skip
    body += table(
        head,
        rows,
        "tables score (purpose evaluate), ensemble (threshold), campaign (uncertainty.calibration); the "
        "threshold is chosen on the calibration group, so only the test group judges it; errors are RMS",
    )
    sentence = (current.calibration or {}).get("sentence")
    if sentence:
        body += text(f"Calibration: {sentence}.", "note")
    return Section(anchor="uncertainty", title="Uncertainty", body=body)


def _uncertainty_row(data: ReportData, split: Split) -> list[Cell]:
    found, kind = data.now(split), data.failure_kind
    found = found.where(np.isfinite(true_error(found, kind)))
    error = true_error(found, kind)
    row: list[Cell] = [GROUPS[split][0], len(found), _rank_correlation(found, kind)]
    threshold = data.current.threshold if data.current else None
    if threshold is None:
        return row + [None] * 7
    counts = caught(found, threshold, kind, data.failure_error)
    over = found.value > threshold
    return [
        *row,
        counts["caught"] + counts["missed"],
        *counts.values(),
        float(np.sqrt(np.mean(error[over] ** 2))) if over.any() else None,
        float(np.sqrt(np.mean(error[~over] ** 2))) if (~over).any() else None,
    ]


def _rank_correlation(found: Evaluations, kind: str) -> float | None:
    """Spearman's rank correlation of uncertainty and error; None where one of them does not vary."""
    error = true_error(found, kind)
    if len(found) < 3 or np.ptp(error) == 0 or np.ptp(found.value) == 0:
        return None
    return float(stats.spearmanr(found.value, error).statistic)


def _promotion(data: ReportData) -> Section:
    lead = text(
        "An ensemble whose audit error is worse than its predecessor's by more than the stated margin is not "
        "promoted; the campaign goes on with the one before.",
        "lead",
    )
    rows: list[list[Cell]] = [
        [e.name, e.state, e.size, e.labels, e.threshold, e.bias_width, e.decision] for e in data.ensembles
    ]
    head = ("generation", "state", "members", "labels", "threshold", "bias width (eV/√atom)", "decision")
    body = lead + (
        table(head, rows, "tables ensemble, dataset, model")
        if rows
        else text("No ensemble has been trained yet.", "nothing")
    )
    missing: list[list[Cell]] = [
        [e.name, member, why] for e in data.ensembles for member, why in e.missing.items()
    ]
    if missing:
        body += text("Members that an ensemble did without: its others were the quorum, or it has failed.")
        body += table(("generation", "member", "why"), missing, "table model (missing)")
    return Section(anchor="promotion", title="Promotion", body=body)


def _name(generation: int, revision: int) -> str:
    return f"{generation}.{revision}" if revision else str(generation)


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value
