"""Every option of synfundus with its default, bound, unit and meaning: the single source of truth.

One section per verb, and three shared ones: storage, launch, telemetry. The text under a field becomes its help text
and its description in the JSON schema. Defaults stand nowhere else: the classes that take these values have none.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from synfundus.config.applications import AugmentConfig, EditConfig, ProgressConfig
from synfundus.config.base import Section
from synfundus.config.diffusion import TrainConfig
from synfundus.config.generation import (
    DemoConfig,
    EncodeLatentsConfig,
    ExportConfig,
    JudgeConfig,
    PostHocEmaConfig,
    SampleConfig,
    VerifyLatentsConfig,
)
from synfundus.config.machine import LaunchConfig, PlanConfig, PlotConfig, StorageConfig, TelemetryConfig, WatchConfig
from synfundus.config.photographs import ForgetConfig, InspectConfig, PhantomsConfig, PrepareConfig
from synfundus.config.sample_sets import ExportDicomConfig, GalleryConfig, PlanLabelsConfig, VerifyConfig
from synfundus.config.training import TrainVaeConfig


class RunConfig(Section):
    """Configuration of all verbs; a preset or a run.yaml can describe the whole chain."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw."""
    demo: DemoConfig = DemoConfig()
    """The whole chain in minutes."""
    phantoms: PhantomsConfig = PhantomsConfig()
    """Procedural photographs."""
    prepare: PrepareConfig = PrepareConfig()
    """From photographs to image shards."""
    forget: ForgetConfig = ForgetConfig()
    """Sets without a patient who has withdrawn."""
    inspect: InspectConfig = InspectConfig()
    """Contents of a set."""
    train_vae: TrainVaeConfig = TrainVaeConfig()
    """Training of the autoencoder."""
    encode_latents: EncodeLatentsConfig = EncodeLatentsConfig()
    """From images to latents."""
    verify_latents: VerifyLatentsConfig = VerifyLatentsConfig()
    """Checking latents against their images."""
    train: TrainConfig = TrainConfig()
    """Training of the diffusion model."""
    watch: WatchConfig = WatchConfig()
    """Progress of a run."""
    plot: PlotConfig = PlotConfig()
    """Curves of runs."""
    plan_labels: PlanLabelsConfig = PlanLabelsConfig()
    """Which labels to generate images for."""
    sample: SampleConfig = SampleConfig()
    """Generating images."""
    verify: VerifyConfig = VerifyConfig()
    """Drawing some images of a set again."""
    progress: ProgressConfig = ProgressConfig()
    """One eye as a disease advances."""
    edit: EditConfig = EditConfig()
    """A photograph as another disease stage would look."""
    augment: AugmentConfig = AugmentConfig()
    """Photographs and generated images as one training set."""
    judge: JudgeConfig = JudgeConfig()
    """Label control of generated images."""
    gallery: GalleryConfig = GalleryConfig()
    """A page on which to look through a set."""
    ema: PostHocEmaConfig = PostHocEmaConfig()
    """Weight averages of any length after training."""
    export: ExportConfig = ExportConfig()
    """Writing a model as a diffusers folder."""
    export_dicom: ExportDicomConfig = ExportDicomConfig()
    """Generated images as DICOM files."""
    plan: PlanConfig = PlanConfig()
    """Memory, time and cost of a run."""
    storage: StorageConfig = StorageConfig()
    """Object store and cache."""
    launch: LaunchConfig = LaunchConfig()
    """Processes and cluster."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Metrics."""
