"""`synfundus demo`: the whole chain, with the jobs of the verbs, in a given number of minutes.

phantoms -> prepare -> train-vae -> encode-latents -> train -> sample, then a judge classifies the result. A finished
stage leaves a record in ``stages/``, so that a stopped demo can be resumed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.claim import Claim
from synfundus.artifacts.sample_set import PngStore
from synfundus.config.auto import PRECISION_KEYS, settle_precision
from synfundus.config.diffusion import UNetConfig
from synfundus.config.generation import DemoConfig
from synfundus.config.schema import RunConfig
from synfundus.config.training import AutoencoderConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import LocalWorld, World, leave_new_groups, torch_device
from synfundus.labels.plan import label_table, read_label_plan
from synfundus.pictures.sheets import patients_note
from synfundus.shards.reader import decode_image
from synfundus.stages import Summary, build
from synfundus.stages.demo.conditions import UNCONDITIONAL
from synfundus.stages.demo.pace import measure_pace
from synfundus.stages.demo.plan import REFERENCE_PACE, GenerationPlan, describe_pace, plan_demo, plan_generation
from synfundus.stages.demo.report import (
    DemoResult,
    describe_autoencoder,
    draw_demo,
    peak_memory_gib,
    report_document,
    show_report,
)
from synfundus.stages.demo.verb import look_at_photographs
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.judging import (
    LabelledImages,
    describe_judged,
    held_out_splits,
    judge_label_control,
    read_photographs,
    read_states,
    reconstruct,
)
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.prepare import job as prepare
from synfundus.stages.sample import job as sample
from synfundus.stages.starting_weights import DRAWN, architecture_problem, denoiser_problem, shipped_model
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.stages.trial_step import latent_shape
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import SPLITS, ShardSet, load_shard_set
from synfundus.telemetry.console import Console, SilentConsole

STAGES_DIR = "stages"
PICTURE_NAME = "demo.png"
REPORT_NAME = "demo.json"
LABEL_PLAN_NAME = "label-plan.csv"
REQUEST_NAME = "request.json"
_FORMAT = "synfundus-demo"
_VERSION = 1
_CLAIM = Claim(f"{STAGES_DIR}/{REQUEST_NAME}", _FORMAT, _VERSION, others="a demo with other settings")

Job = Callable[[RunConfig, World, Console], Summary]


@dataclass(frozen=True)
class _Stage:
    """A stage of the chain.

    Attributes:
        name: The verb.
        job: What it runs.
        merit: Its figure of merit, from the summary.
    """

    name: str
    job: Job
    merit: Callable[[Summary], str]


STAGES = (
    _Stage("phantoms", phantoms.run, lambda s: f"{s['num_images']} photographs of {s['num_patients']} patients"),
    _Stage("prepare", prepare.run, lambda s: f"{s['num_samples']} samples, {sum(s['rejects'].values())} rejects"),
    _Stage("train-vae", train_vae.run, describe_autoencoder),
    _Stage("encode-latents", encode_latents.run, lambda s: f"{s['num_samples']} latents {s['moments_shape']}"),
    _Stage("train", train.run, lambda s: f"{s['images_seen']:,} images seen, {s['engine']}"),
    _Stage("sample", sample.run, lambda s: f"{s['num_images']} synthetic images"),
)


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Run the chain. Collective; resumes by itself.

    Returns:
        The content of demo.json.

    Raises:
        ConfigError: No folder, or one with a demo of other settings; a sampler that cannot draw from the model.
    """
    out = require(config.demo.out, flag="--out", key="demo.out")
    build.check_sampler(build.sampler_settings(config.sample).sampler, config.train.diffusion)
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    # a mistake in a table is told first
    on_rank_0(lambda: _CLAIM.read(out) or look_at_photographs(config.model_dump()), world)
    pace = settle_pace(
        config.demo, out, lambda: measure_pace(config.train, shape, world, seed=config.seed), world, console
    )
    config = start_from_drawn(plan_demo(config, pace=pace), console, on_rank_0(lambda: _CLAIM.read(out), world))
    demo = _Demo(config, out, pace, world, console)
    if config.demo.source is not None and (channels := config.demo.source_latent_channels) is not None:
        console.message(f"photographs: an autoencoder of {channels} latent channels (demo.source_latent_channels)")
    demo.claim()
    for stage in STAGES:
        if stage.name == "phantoms" and config.demo.source is not None:
            continue
        if stage.name == "sample":
            demo.write_label_plan()
        demo.run_stage(stage)
    return demo.finish()


def compare_claim(config: RunConfig) -> None:
    """Refuse the folder of a demo with other settings, as the run does; a precision that is not settled is as there.

    Raises:
        ConfigError: The folder holds something else.
    """
    out, console = str(config.demo.out), SilentConsole()
    if (begun := _CLAIM.read(out)) is None:
        return
    there = documents.flatten(begun["settings"])
    config = settle_precision(config, native_bf16=False, begun={key: there[key] for key in PRECISION_KEYS})
    pace = settle_pace(config.demo, out, lambda: REFERENCE_PACE, LocalWorld(), console)
    demo = _Demo(start_from_drawn(plan_demo(config, pace=pace), console, begun), out, pace, LocalWorld(), console)
    _CLAIM.refuse_difference(out, begun, demo.request())


def start_from_drawn(config: RunConfig, console: Console, begun: documents.Document | None = None) -> RunConfig:
    """Return the config with shipped starting weights for one's own photographs, where they fit.

    Args:
        config: The settings.
        console: Where it is said.
        begun: The request of a resumed demo, which keeps what it began with.
    """
    demo = config.demo
    if demo.source is None or not demo.starting_weights or config.train_vae.init_from:
        return config
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    sections = (
        _fitting_sections(config.train_vae.autoencoder, config.train.unet, shape)
        if begun is None
        else _begun_from_drawn(begun)
    )
    sections = [name for name in sections if not getattr(config, name).init_from]
    if not sections:
        return config
    said = " and ".join({"train_vae": "the autoencoder", "train": "the denoiser"}[name] for name in sections)
    start = "starts" if len(sections) == 1 else "start"
    console.message(f"{said} {start} from the shipped weights of drawn eyes (off: demo.starting_weights=false)")
    changed = {name: getattr(config, name).model_copy(update={"init_from": DRAWN}) for name in sections}
    return config.model_copy(update=changed)


def _fitting_sections(autoencoder: AutoencoderConfig, unet: UNetConfig, shape: tuple[int, int, int]) -> list[str]:
    """Return the sections whose networks the shipped weights fit; a denoiser needs the autoencoder it learnt with."""
    folder = shipped_model()
    if folder is None or architecture_problem(autoencoder, folder):
        return []
    other = shipped_model("unet") is None or denoiser_problem(unet, shape, folder)
    return ["train_vae"] if other else ["train_vae", "train"]


def _begun_from_drawn(begun: documents.Document) -> list[str]:
    found = documents.flatten(begun)
    return [name for name in ("train_vae", "train") if found.get(f"settings.{name}.init_from") == DRAWN]


def settle_pace(section: DemoConfig, out: str, measure: Callable[[], float], world: World, console: Console) -> float:
    """Return the pace that scales the budgets: the stored one of a resumed demo, or a new one. Collective.

    Args:
        section: What is asked for.
        out: The demo's folder.
        measure: Measures a pace. Collective.
        world: The ranks.
        console: Where the pace is shown.
    """
    begun = on_rank_0(lambda: _CLAIM.read(out), world)  # refuse a folder of something else before measuring
    if not section.fit_to_machine:
        return REFERENCE_PACE
    if begun is not None:
        return float(begun["pace_images_per_s"])
    console.message("measuring how fast this machine is: a few steps of training")
    pace = measure()
    said, warning = describe_pace(section.minutes, pace)
    console.message(said)
    if warning:
        console.warning(warning)
    return pace


def _read(url: str) -> documents.Document | None:
    if not filesystem.exists(url):
        return None
    return documents.read_document(url, format_name=_FORMAT, version=_VERSION)


def _write(url: str, document: Summary) -> None:
    documents.write_document(url, document, format_name=_FORMAT, version=_VERSION)


class _Demo:
    """One run of the chain."""

    def __init__(self, config: RunConfig, out: str, pace: float, world: World, console: Console) -> None:
        self._config = config
        self._out = out
        self._world = world
        self._console = console
        self._result = DemoResult(minutes=config.demo.minutes, pace_images_per_s=pace, world_size=world.size)

    def _at(self, *parts: str) -> str:
        return filesystem.join(self._out, *parts)

    def claim(self) -> None:
        """Claim the folder. Collective.

        Raises:
            ConfigError: It holds a demo with other settings.
        """
        on_rank_0(lambda: _CLAIM.make(self._out, self.request()), self._world)

    def request(self) -> Summary:
        """Return what the folder is for."""
        settings = self._config.model_dump(mode="json", exclude={"launch", "telemetry", "forget", "judge"})
        for name in ("guidance_weight", "negative_label", "guide_model", "compile", "decode_tile_px"):
            if not settings["sample"][name]:
                del settings["sample"][name]  # demos begun before there were these are resumed
        settings["sample"].update(documents.as_json(build.sampler_settings(self._config.sample).to_document()))
        for verb in ("train_vae", "train"):
            settings[verb]["loop"]["num_threads"] = 0  # only changes speed
        if settings["demo"]["importer"] is None:
            del settings["demo"]["importer"]  # demos begun before there was one are resumed
        if settings["demo"]["starting_weights"]:
            del settings["demo"]["starting_weights"]  # likewise
        return {
            "settings_sha256": hashlib.sha256(documents.dump_json(settings)).hexdigest(),
            "minutes": self._config.demo.minutes,
            "pace_images_per_s": self._result.pace_images_per_s,
            "settings": settings,
        }

    def run_stage(self, stage: _Stage) -> None:
        """Run a stage, or read its record. Collective."""
        url = self._at(STAGES_DIR, f"{stage.name}.json")
        record: Summary | None = on_rank_0(lambda: _read(url), self._world)
        if record is None:
            self._console.message(f"--- {stage.name}")
            began = time.perf_counter()
            summary = stage.job(self._config, self._world, self._console)
            leave_new_groups()
            seconds = time.perf_counter() - began
            record = {"seconds": seconds, "merit": stage.merit(summary), "summary": _plain_figures(summary)}
            done = record
            on_rank_0(lambda: _write(url, done), self._world)
        self._result.add_stage(stage.name, record["seconds"], record["merit"], record["summary"])

    def _image_set(self) -> ShardSet:
        return load_shard_set(self._at("images"), kind="images")

    def _generation_plan(self) -> GenerationPlan:
        image_set = self._image_set()
        plan = plan_generation(
            held_out_states=read_states(image_set, splits=held_out_splits(image_set)),
            known_states=read_states(image_set, splits=SPLITS),
            schema=image_set.label_schema,
            num_control=self._config.demo.num_generated,
            seed=self._config.seed,
        )
        url = self._at(LABEL_PLAN_NAME)
        if not filesystem.exists(url):
            return plan
        kept = read_label_plan(filesystem.read_bytes(url), image_set.label_schema, where=url)
        if len(kept) == len(plan.rows):
            return replace(plan, rows=tuple(kept))
        self._console.warning(f"{url} is of another version and has other rows: the picture leaves them out")
        return replace(plan, rows=tuple(kept[: plan.num_control]), conditions=())

    def write_label_plan(self) -> None:
        """Write the label plan. Collective."""
        url = self._at(LABEL_PLAN_NAME)

        def write() -> None:
            if not filesystem.exists(url):
                plan, names = self._generation_plan(), self._image_set().label_schema.names
                filesystem.write_bytes(url, label_table(plan.rows, names))
                if plan.conditions[0].title == UNCONDITIONAL:
                    self._console.warning(f"{UNCONDITIONAL}; give --labels a table with labels, or its --mapping")

        on_rank_0(write, self._world)

    def finish(self) -> Summary:
        """Judge, draw, report, on rank 0. Collective."""
        return on_rank_0(self._report, self._world)

    def _report(self) -> Summary:
        began = time.perf_counter()
        picture = self._judge_and_draw()
        filesystem.write_bytes(self._at(PICTURE_NAME), picture)
        self._result.add_stage("judge", time.perf_counter() - began, self._result.headline_text(), {})
        self._result.peak_memory_gib = peak_memory_gib()
        document = report_document(self._result, seed=self._config.seed, budgets=self._budgets())
        _write(self._at(REPORT_NAME), document)
        show_report(self._result, self._console)
        note = _note(self._image_set())
        self._console.message(
            f"picture: {self._at(PICTURE_NAME)}{note and f' ({note})'}   figures: {self._at(REPORT_NAME)}"
        )
        return document

    def _budgets(self) -> dict[str, int | None]:
        config = self._config
        return {
            "phantoms": config.phantoms.num_images if config.demo.source is None else None,
            "vae_images": config.train_vae.loop.budget_images,
            "unet_images": config.train.loop.budget_images,
        }

    def _judge_and_draw(self) -> bytes:
        image_set, plan = self._image_set(), self._generation_plan()
        device = torch_device(self._world)
        autoencoder, _ = open_autoencoder(
            find_autoencoder(self._at("vae")), device=device, dtype=build.torch_dtype("fp32")
        )
        train_images, held_out = read_photographs(image_set)
        shown = [held_out] if held_out is train_images else [held_out, train_images]
        restored = reconstruct(autoencoder, held_out.pixels, device=device)
        generated = self._generated(plan, image_set)
        self._result.label_control = judge_label_control(
            train=train_images,
            held_out=held_out,
            held_out_restored=restored,
            generated=LabelledImages(generated.pixels[: plan.num_control], generated.states[: plan.num_control]),
            autoencoder=autoencoder,
            schema=image_set.label_schema,
            seed=self._config.seed,
            device=device,
            console=self._console,
        )
        self._result.num_generated, self._result.judged_on = plan.num_control, describe_judged(image_set)
        return draw_demo(
            result=self._result,
            plan=plan,
            held_out=held_out,
            restored=restored,
            photographs=LabelledImages(
                np.concatenate([images.pixels for images in shown]), np.concatenate([images.states for images in shown])
            ),
            generated=generated.pixels,
            schema=image_set.label_schema,
            note=_note(image_set),
        )

    def _generated(self, plan: GenerationPlan, image_set: ShardSet) -> LabelledImages:
        store = PngStore(self._at("samples"))
        images = [decode_image(store.read(number), where=store.file_name(number)) for number in range(len(plan.rows))]
        states = [image_set.label_schema.encode(row) for row in plan.rows]
        return LabelledImages(np.stack(images), np.array(states, dtype=np.int64))


def _note(image_set: ShardSet) -> str:
    return patients_note(image_set.properties)


def _plain_figures(summary: Summary) -> dict[str, Any]:
    """Return a summary for JSON, without non-finite numbers."""
    kept = {name: value for name, value in summary.items() if not isinstance(value, float) or np.isfinite(value)}
    return dict(documents.as_json(kept))
