"""Everything that a report tells, read from the store at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hpcal.core.walker import Split
from hpcal.report.status import campaign_status, newest, pools_of
from hpcal.store import history, measurements
from hpcal.store.database import Store
from hpcal.store.history import CampaignRecord, Counts, EnsembleRecord, RejectionCount
from hpcal.store.label_audits import AuditSummary, label_audits
from hpcal.store.measurements import Attempts, Evaluations
from hpcal.uncertainty.calibration import CalibrationSettings

EVALUATED: Final = (Split.TEST, Split.CALIBRATION, Split.REFERENCE)
LAST_EVENTS: Final = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """What a report tells.

    Attributes:
        status: as :func:`hpcal.report.status.campaign_status` gives it.
        ensembles: all of them, those in training or failed included.
        current: the ensemble promoted last, or None.
        evaluations: of all ensembles on the audit groups and the reference set.
        failure_error: error above which an audit frame counts as a failure.
        failure_kind: ``force_rmse`` (eV/Å) or ``energy`` (eV per square root of the number of atoms).
        label_origins: accepted labels by (generation, origin).
        saved: labels saved by rescoring, by (generation,).
        decisions: selections by (decision, rule).
        structure_origins: structures by (origin, state).
        walker_ends: walkers by (sampler, split, generation of birth, state, end reason).
        label_audits: audits of labels by name.
        attempt_endings: attempts that failed or were lost, by (kind, state, exit reason).
    """

    campaign: CampaignRecord
    status: Mapping[str, Any]
    ensembles: list[EnsembleRecord]
    current: EnsembleRecord | None
    evaluations: Evaluations
    attempts: Attempts
    failure_error: float
    failure_kind: str
    label_origins: Counts
    saved: Counts
    decisions: Counts
    structure_origins: Counts
    walker_ends: Counts
    rejections: list[RejectionCount]
    label_audits: list[AuditSummary]
    attempt_endings: Counts
    events: list[tuple[float, str, str]]

    @property
    def pools(self) -> Mapping[str, Mapping[str, Any]]:
        """Pools of the recorded site."""
        return pools_of(self.campaign)

    def now(self, *splits: Split) -> Evaluations:
        """Evaluations of the current ensemble on some splits."""
        return self.evaluations.of(self.current.id if self.current else None, *splits)


def gather(store: Store) -> ReportData:
    """Reads what a report tells. Raises InputError for a store without a campaign."""
    status = campaign_status(store)
    with store.session() as session:
        campaign = history.campaign(session)
        ensembles = history.ensembles(session)
        rule = _calibration(campaign)
        return ReportData(
            campaign=campaign,
            status=status,
            ensembles=ensembles,
            current=newest(ensembles),
            evaluations=measurements.evaluations(session, EVALUATED),
            attempts=measurements.attempts(session),
            failure_error=rule.error,
            failure_kind=rule.error_kind,
            label_origins=history.label_origins(session),
            saved=history.labels_saved(session),
            decisions=history.selection_counts(session),
            structure_origins=history.structure_origins(session),
            walker_ends=history.walker_ends(session),
            rejections=history.rejections(session),
            label_audits=label_audits(session),
            attempt_endings=history.attempt_endings(session),
            events=history.events(session, LAST_EVENTS),
        )


def _calibration(campaign: CampaignRecord) -> CalibrationSettings:
    given = (campaign.spec.get("uncertainty") or {}).get("calibration") or {}
    return CalibrationSettings.model_validate(given)
