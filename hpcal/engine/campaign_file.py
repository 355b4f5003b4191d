"""The campaign file as the user writes it: its blocks, their keys and defaults."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from hpcal.core.settings import Settings
from hpcal.core.walker import Split


class StructuresBlock(Settings):
    """Where the campaign starts from."""

    smiles: str | list[str] | None = Field(None, description="one SMILES or several")
    file: str | None = Field(None, description="extended XYZ with seeds, relative to this file")
    relax: bool | None = Field(
        None,
        description="relax seeds to minima first; by default for SMILES and where a bootstrap needs minima",
    )
    level: dict[str, Any] | None = Field(
        None, description="labeler block for relaxations and Hessians; default: the campaign's own"
    )
    max_conformers: PositiveInt = Field(64, description="most torsional starting geometries of one SMILES")


class GivenCampaign(Settings):
    """An entry of ``bootstrap`` that takes the labels of another campaign."""

    campaign: str = Field(description="folder of the other campaign, relative to this file")
    splits: list[Split] = Field(
        [Split.TRAIN, Split.VALIDATION],
        min_length=1,
        description="splits whose labels are taken; each label keeps its split",
    )
    generation: PositiveInt | None = Field(
        None, description="only what the ensemble of this generation was trained on; default: all labels"
    )

    @field_validator("splits")
    @classmethod
    def _no_reference(cls, splits: list[Split]) -> list[Split]:
        if Split.REFERENCE in splits:
            raise ValueError(
                "labels of a reference set are for evaluation alone; export them with "
                "`hpcal export DIR OUT --split reference` and give the file as evaluate.reference"
            )
        return splits


class UncertaintyBlock(Settings):
    """How certainty is measured and where the line is."""

    metric: str = Field("force_std", description="metric that is compared with the threshold")
    threshold: Literal["calibrated"] | float = Field(
        "calibrated", description="number in the metric's unit, or calibrated on the audit stream"
    )
    calibration: dict[str, Any] = Field(default_factory=dict, description="settings of the calibration")


class StopBlock(Settings):
    """When the campaign is done; the first that holds ends it."""

    labels: PositiveInt | None = Field(None, description="accepted labels, audit included")
    generations: PositiveInt | None = Field(None, description="generations trained and evaluated")
    quiet_generations: PositiveInt | None = Field(
        None, description="rounds of walkers in a row in which almost none crosses the threshold"
    )
    quiet_walkers: PositiveInt = Field(20, description="walkers of a round, born under one ensemble")
    quiet_share: float = Field(0.05, ge=0, le=1, description="share that may cross in a quiet round")
    force_rmse_eV_per_A: float | None = Field(  # noqa: N815
        None, gt=0, description="target on the audit test group"
    )
    energy_rmse_meV_per_atom: float | None = Field(  # noqa: N815
        None, gt=0, description="target on the audit test group"
    )
    min_test: PositiveInt = Field(20, description="audit test labels needed before an error target counts")


class SplitsBlock(Settings):
    """How the splits of walkers, seeds and bootstrap structures are drawn."""

    validation: float = Field(0.1, ge=0, lt=1, description="share of learning walkers and structures")
    audit_walkers: float = Field(0.2, ge=0, lt=1, description="share of walkers set apart for the audit")
    audit_frames: PositiveInt = Field(2, description="frames of one audit walker, uniform in time")


class PromotionBlock(Settings):
    """When a new ensemble takes over."""

    margin: float = Field(0.2, ge=0, description="audit force RMSE may be worse by this share")
    min_audit: PositiveInt = Field(10, description="audit labels needed before the gate can refuse")


class EvaluateBlock(Settings):
    """Fixed reference set."""

    reference: str | None = Field(None, description="labelled file, relative to this file")


class TasksBlock(Settings):
    """Size of the pieces of work."""

    sample_seconds: float = Field(20.0, gt=0, description="wall budget of a sampling task, s")
    sample_steps: PositiveInt = Field(200, description="step budget of a sampling task run inline")
    reserve: float = Field(1.0, ge=0, description="walkers in reserve as a share of the batch")
    label_seconds: float = Field(10.0, gt=0, description="aimed duration of a labelling task, s")
    max_label_chunk: PositiveInt = Field(64, description="most structures in one labelling task")
    train_seconds: float = Field(3600.0, gt=0, description="wall budget of one training attempt, s")
    quorum: PositiveInt | None = Field(
        None,
        description="members that make an ensemble where others fail or are late; default: three quarters, "
        "rounded up, and at least 2",
    )
    max_failures: PositiveInt = Field(2, description="attempts at a task before it counts as failed")
    max_losses: PositiveInt = Field(5, description="lost attempts at a task before it counts as failed")


class CampaignFile(Settings):
    """A campaign file."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the campaign and of its folder")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    structures: StructuresBlock
    label: dict[str, Any] = Field(
        description="labeler: NAME and its settings; checks: policy of the checks; screen: a cheaper labeler "
        "that turns structures away first"
    )
    potential: dict[str, Any] = Field(description="kind: NAME and its settings")
    bootstrap: list[dict[str, Any]] = Field(
        min_length=1,
        description="sampler: NAME, count and its settings; or file: labelled structures; or campaign: DIR "
        "of another campaign, whose labels are taken",
    )
    sampling: list[dict[str, Any]] = Field(
        min_length=1, description="sampler: NAME, walkers and its settings"
    )
    uncertainty: UncertaintyBlock = UncertaintyBlock()
    selection: dict[str, Any] = Field(
        default_factory=dict, description="method: NAME, batch, audit_share and its settings"
    )
    splits: SplitsBlock = SplitsBlock()
    promotion: PromotionBlock = PromotionBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
    stop: StopBlock
    tasks: TasksBlock = TasksBlock()
