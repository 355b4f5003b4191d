"""Errors of ensembles on labelled structures, summed up from the rows of the store."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.store.measurements import FamilyErrors

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000
DRAWS: Final = 5_000_000
"""Most numbers drawn for one interval; beyond this there are fewer resamples, at least 200."""

NO_ERRORS: Final[dict[str, Any]] = {
    "energy_mae_ev_per_atom": None,
    "energy_rmse_ev_per_atom": None,
    "force_mae_ev_per_ang": None,
    "force_rmse_ev_per_ang": None,
    "force_rmse_ev_per_ang_interval": None,
    "count": 0,
}


def error_summary(found: FamilyErrors) -> dict[str, Any]:
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
    summary = dict(NO_ERRORS, count=int(found.count.sum()))
    energies, atoms = found.energies.sum(), found.atoms.sum()
    if energies:
        summary["energy_mae_ev_per_atom"] = float(found.energy_abs.sum() / energies)
        summary["energy_rmse_ev_per_atom"] = float(np.sqrt(found.energy_sq.sum() / energies))
    if atoms:
        summary["force_mae_ev_per_ang"] = float(found.force_abs.sum() / atoms)
        summary["force_rmse_ev_per_ang"] = float(np.sqrt(found.force_sq.sum() / atoms))
        summary["force_rmse_ev_per_ang_interval"] = force_interval(found)
    return summary


def force_interval(found: FamilyErrors) -> list[float] | None:
    """95 % percentile bootstrap interval of the force RMSE, eV/Å; None for fewer than two families.

    Whole families are drawn with replacement, as frames of one walker resemble each other and
    drawing them singly would promise too much (Field and Welsh, J. R. Stat. Soc. B 2007,
    10.1111/j.1467-9868.2007.00593.x). The draws depend on the number of families alone, so the
    interval is the same whenever it is asked for.
    """
    there = found.atoms > 0
    squares, atoms = found.force_sq[there], found.atoms[there]
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
