"""The promotion gate, and the threshold of an ensemble: pure functions of what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from hpcal.engine.campaign_file import PromotionBlock


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the gate says.

    Attributes:
        promoted: whether the ensemble takes over.
        reason: one sentence with numbers.
    """

    promoted: bool
    reason: str


def gate(force_rmse: float | None, previous: float | None, count: int, settings: PromotionBlock) -> Gate:
    """Decides whether an ensemble takes over from its predecessor.

    Args:
        force_rmse: error of the ensemble on the audit labels, eV/Å, or None without any.
        previous: error of its predecessor on the same labels, or None without predecessor.
        count: audit labels.
        settings: margin and how many labels are needed.
    """
    if previous is None:
        return Gate(promoted=True, reason="the first ensemble")
    if force_rmse is None or count < settings.min_audit:
        return Gate(
            promoted=True,
            reason=f"{count} audit labels are too few to refuse on (min_audit {settings.min_audit})",
        )
    change = force_rmse / previous - 1
    numbers = (
        f"force RMSE on {count} audit labels {force_rmse:.4f} eV/Å, predecessor {previous:.4f} "
        f"({change:+.1%}, margin {settings.margin:.0%})"
    )
    return Gate(promoted=change <= settings.margin, reason=numbers)
