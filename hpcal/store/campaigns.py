"""Writing the campaign's own row, and reading it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcal import __version__
from hpcal.store import transitions
from hpcal.store.tables import SCHEMA_VERSION, Campaign
from hpcal.store.transitions import CampaignState


def add_campaign(
    session: Session, *, name: str, spec: Mapping[str, Any], spec_folder: str, site: Mapping[str, Any]
) -> Campaign:
    """The row of a new campaign."""
    row = Campaign(
        name=name,
        run_id=uuid.uuid4().hex[:12],
        schema_version=SCHEMA_VERSION,
        hpcal_version=__version__,
        created=time.time(),
        spec=dict(spec),
        spec_folder=spec_folder,
        site=dict(site),
        state=CampaignState.STOPPED,
    )
    session.add(row)
    session.flush()
    return row


def campaign(session: Session) -> Campaign:
    """The campaign of a store."""
    return session.scalars(select(Campaign)).one()


def exists(session: Session) -> bool:
    """Whether a campaign was ever recorded; a run killed at its very start leaves none."""
    return session.scalar(select(Campaign.id)) is not None


def move(session: Session, new: CampaignState, reason: str | None = None) -> None:
    """Changes the state of the campaign. Raises TransitionError."""
    row = campaign(session)
    if row.state is not new:
        transitions.check(CampaignState, row.state, new, "the campaign")
        row.state = new
    row.stop_reason = reason
