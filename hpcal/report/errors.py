"""Errors of ensembles on labelled structures, summed up from the rows of the store."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.store.measurements import Evaluations

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000
DRAWS: Final = 5_000_000
"""Most numbers drawn for one interval; beyond this there are fewer resamples, at least 200."""

_NOTHING: Final[dict[str, Any]] = {
    "energy_mae_ev_per_atom": None,
    "energy_rmse_ev_per_atom": None,
    "force_mae_ev_per_ang": None,
    "force_rmse_ev_per_ang": None,
    "force_rmse_ev_per_ang_interval": None,
    "count": 0,
}


def error_summary(found: Evaluations) -> dict[str, Any]:
    """Errors over structures of N_i atoms with energy errors e_i and forces errors f_ic.

    Energies are taken per atom and structures count alike:
    MAE = ⟨|e_i| / N_i⟩, RMSE = ⟨(e_i / N_i)²⟩^½. Forces are taken over all components:
    RMSE = (Σ_ic f_ic² / Σ_i 3 N_i)^½, which is (Σ_i N_i RMSE_i² / Σ_i N_i)^½; MAE likewise.

    Returns:
        ``energy_mae_ev_per_atom``, ``energy_rmse_ev_per_atom``, ``force_mae_ev_per_ang``,
        ``force_rmse_ev_per_ang``, the 95 % interval of the last as
        ``force_rmse_ev_per_ang_interval`` (see :func:`force_interval`) and ``count`` of
        structures; None where there is nothing to tell from.
    """
    if not len(found):
        return dict(_NOTHING)
    per_atom = found.energy_error / found.n_atoms
    per_atom = per_atom[np.isfinite(per_atom)]
    with_forces = found.where(np.isfinite(found.force_rmse) & np.isfinite(found.force_mae))
    weights = with_forces.n_atoms
    summary = dict(_NOTHING, count=len(found))
    if len(per_atom):
        summary["energy_mae_ev_per_atom"] = float(np.abs(per_atom).mean())
        summary["energy_rmse_ev_per_atom"] = float(np.sqrt(np.mean(per_atom**2)))
    if len(with_forces):
        summary["force_mae_ev_per_ang"] = float(np.average(with_forces.force_mae, weights=weights))
        summary["force_rmse_ev_per_ang"] = float(
            np.sqrt(np.average(with_forces.force_rmse**2, weights=weights))
        )
        summary["force_rmse_ev_per_ang_interval"] = force_interval(with_forces)
    return summary


def force_interval(found: Evaluations) -> list[float] | None:
    """95 % percentile bootstrap interval of the force RMSE, eV/Å; None for fewer than two families.

    Whole families are drawn with replacement, as frames of one walker resemble each other and
    drawing them singly would promise too much (Field and Welsh, J. R. Stat. Soc. B 2007,
    10.1111/j.1467-9868.2007.00593.x). The draws depend on the number of families alone, so the
    interval is the same whenever it is asked for.
    """
    _, family = np.unique(found.family, return_inverse=True)
    squares = np.bincount(family, weights=found.n_atoms * found.force_rmse**2)
    atoms = np.bincount(family, weights=found.n_atoms)
    if len(atoms) < 2:
        return None
    draws = _bootstrap_counts(len(atoms))
    resampled = np.sqrt((draws @ squares) / (draws @ atoms))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return [float(low), float(high)]


@lru_cache(maxsize=8)
def _bootstrap_counts(n: int) -> FloatArray:
    """(R, n) how often each of n families is drawn in each of R resamples."""
    resamples = max(200, min(RESAMPLES, DRAWS // n))
    rng = np.random.Generator(np.random.Philox(n))
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)
