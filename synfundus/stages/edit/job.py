"""`synfundus edit`: a photograph under other labels, through the autoencoder and back from a noise level.

Nothing that is written names the photograph's file: it is known by its sha256, in ``request.json`` and in each frame.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synfundus.artifacts.claim import Claim
from synfundus.artifacts.model import Model, decode_images
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.artifacts.progression import BetweenStates, Course, packed_guidance, packed_states
from synfundus.artifacts.samples.description import image_marks
from synfundus.config.applications import EditConfig
from synfundus.config.photographs import PrepareConfig
from synfundus.config.schema import RunConfig
from synfundus.diffusion.editing import plan_path
from synfundus.diffusion.guidance import Guidance
from synfundus.diffusion.sampling import SamplerSettings, edit_latents, scheduler_for
from synfundus.distributed.numerics import reproducible_threads
from synfundus.distributed.world import World, torch_device
from synfundus.errors import ConfigError, DataError
from synfundus.evaluation.judge import Judge
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.vessel_metrics import vessel_correlation
from synfundus.photographs.decoding.synthetic_marks import is_marked_synthetic
from synfundus.photographs.field_of_view import FieldOfViewError
from synfundus.photographs.preparation import prepare_pixels
from synfundus.photographs.undecodable import UndecodableImage
from synfundus.pictures.sheets import encode_png
from synfundus.seeding import keyed_normal, keyed_normal_series
from synfundus.stages import Summary, build
from synfundus.stages.frames import (
    COMPRESS_LEVEL,
    Pixels,
    described,
    difference_map,
    ends,
    frame_caption,
    frames_table,
    judged_values,
    open_judge,
    write_animations,
    write_sheet,
)
from synfundus.stages.rehearsal import read_model
from synfundus.stages.verb import require
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console

_CLAIM = Claim("request.json", "synfundus-edit", 1, others="another edited picture")
_PHOTOGRAPH, _GENERATED = "a photograph of a person: not anonymous", "a generated image"
_README = """# An edited picture

Every picture of `frames/` was drawn by a model; none is a photograph. It was drawn from {source}. {labels}.

**No forecast.** This is what a model drew for labels. It says nothing of how a patient's eye will change, and nobody
has verified that a picture shows its labels. **Not anonymous.** What is drawn from a photograph keeps its vessels, by
which a person can be known again: handle it as you handle the photograph.

`strip.png`: the picture as the model sees it, what its autoencoder makes of it, and the edited ones. `difference.png`:
where each is brighter (orange) or darker (blue) than the second. `frames.csv`: `vessels` is the correlation of the
vessel map with that of the second (1: the same vessels, empty where there are none to see){judged}.
"""


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Draw the picture that ``config.edit`` asks for. One process.

    Returns:
        ``out``, ``num_frames``, ``vessels`` (of the last frame, None where there are none to see).

    Raises:
        CheckpointError: No model.
        ConfigError: Labels or values that the model does not have, or a folder that holds something else.
        DataError: A file that is no picture of a fundus.
    """
    section = config.edit
    out = require(section.out, flag="--out", key="edit.out")
    folder = find_pipeline(require(section.model, flag="--model", key="edit.model"))
    data = filesystem.read_bytes(require(section.image, flag="--image", key="edit.image"))
    build.tensor_cores(True, world, console)
    device = torch_device(world)
    model = load_pipeline(folder, device=device)
    sampling = build.sampler_settings(config.sample, model.recommended_sampling, schema=model.label_schema)
    if not config.sample.guidance_weight:  # else it is refused
        sampling = replace(sampling, guidance_weight={})
    guidance = packed_guidance(sampling, model.label_schema)
    course, num_frames = edit_course(section, model.label_schema)
    plan_path(model.schedule_settings, strength=section.strength, num_steps=section.num_steps)
    if section.method == "sdedit":
        scheduler_for(sampling.sampler, model.schedule_settings)  # refused before the folder is claimed
    picture = _prepared(data, model.image_size_px)
    judge = open_judge(section.judge, model)
    request = _request(section, config.seed, model.fingerprint, data)
    _CLAIM.make(out, {**request, "sampling": sampling_document(sampling, section.method)})
    build.ready_to_sample(model, config.launch, dtype=torch.float32, world=world, console=console)
    with (
        reproducible_threads(device=world.device),
        console.progress("drawing", total=num_frames, unit="pictures") as bar,
    ):
        x0 = encoded(model, picture, device=device)
        with torch.no_grad():
            draw = _drawer(model, section, sampling, guidance, x0, seed=config.seed)
        tile_px = sampling.decode_tile_px
        frames = _frames(model, course, num_frames, draw, tile_px=tile_px, device=device, advance=bar.advance)
        restored = decode_images(model, x0, tile_px=tile_px)
    pictures = np.concatenate([picture[None], restored, *frames])
    rows = edit_rows(pictures, course, judge=judge)
    source = _GENERATED if is_marked_synthetic(data) else _PHOTOGRAPH
    _write(out, section, config.seed, model, course, pictures, rows, source, request["image_sha256"])
    vessels = rows[-1]["vessels"]
    return {"out": out, "num_frames": num_frames, "vessels": None if math.isnan(vessels) else vessels}


def rehearse(section: EditConfig) -> str:
    """Describe what would be drawn, for a dry run; the picture is read and cropped.

    Raises:
        SynfundusError: As the run.
    """
    document = read_model(str(section.model))
    schema = LabelSchema.from_document(document["label_schema"], where=str(section.model))
    course, num_frames = edit_course(section, schema)
    plan_path(document["schedule"], strength=section.strength, num_steps=section.num_steps)
    _prepared(filesystem.read_bytes(str(section.image)), int(document["image_size_px"]))
    return f"# picture\n{num_frames} frames: {_course_text(course, num_frames)}\n\n"


def compare_claim(section: EditConfig, seed: int) -> None:
    """Refuse a folder of another picture, as the run does, but for how it was sampled: that is of another section."""
    fingerprint = read_model(str(section.model))["fingerprints"]["model"]
    data = filesystem.read_bytes(str(section.image))
    replace(_CLAIM, free=r"sampling\..*").compare(str(section.out), _request(section, seed, fingerprint, data))


def edit_course(section: EditConfig, schema: LabelSchema) -> tuple[Course, int]:
    """Return the labels from the first picture to the last, and how many pictures there are.

    Raises:
        ConfigError: A label or value that the model does not have, or nothing to change.
    """
    first: dict[str, int | None] = _known(section, schema)
    last = dict(first)
    for name, text in section.label.items():
        try:
            first[name], last[name] = ends(schema, name, text)
        except DataError as error:
            hint = f"write --label {name}=VALUE, or {name}=FIRST..LAST"
            raise ConfigError(error.message, where="edit.label", hint=hint) from error
    course = Course(first, last)
    return course, section.frames if course.moved else 1


def _known(section: EditConfig, schema: LabelSchema) -> dict[str, int | None]:
    values: dict[str, int | None] = dict.fromkeys(schema.names)
    for name, value in section.known.items():
        try:
            values[name] = schema.check_value(name, value)
        except DataError as error:
            raise ConfigError(error.message, where="edit.known", hint=f"write --known {name}=VALUE") from error
    return values


def _prepared(data: bytes, image_size_px: int) -> Pixels:
    """Return a picture as a set would have it, uint8 ``[s, s, 3]``.

    Raises:
        UndecodableImage: The file cannot be decoded.
        FieldOfViewError: It shows no fundus.
    """
    limit = PrepareConfig().max_pixels
    try:
        return prepare_pixels(data, image_size_px=image_size_px, max_pixels=limit, burned_text="off").pixels
    except (UndecodableImage, FieldOfViewError) as error:  # their constructors take no place, as a set has many files
        error.where = "edit.image"
        error.hint = "give a photograph of a fundus, as `prepare` takes it"
        raise


@torch.no_grad()
def encoded(model: Model, picture: Pixels, *, device: torch.device) -> Tensor:
    """Return the normalised latents of a picture ``[1, c, lh, lw]``: the mean of the posterior."""
    mean, _ = LatentAutoencoder.split(model.autoencoder.encode(pixels_to_tensor(picture[None]).to(device)))
    centre, spread = (
        torch.tensor(values, dtype=torch.float32, device=device)[None, :, None, None]
        for values in (model.latent_mean, model.latent_std)
    )
    return (mean.float() - centre) / spread


def _drawer(
    model: Model,
    section: EditConfig,
    sampling: SamplerSettings,
    guidance: Guidance,
    x0: Tensor,
    *,
    seed: int,
) -> Callable[[Tensor], Tensor]:
    """Return what draws the latents of packed states ``[1, 3k]`` from those of the picture; all from the same noise."""
    denoise, device, steps = BetweenStates(model.denoiser), x0.device, section.num_steps
    if section.method == "inversion":
        path = plan_path(model.schedule_settings, strength=section.strength, num_steps=steps)
        known = packed_states(_known(section, model.label_schema), model.label_schema)
        start = path.inverted(denoise, x0, torch.tensor([known], device=device))
        return lambda states: path.denoised(denoise, start, states, guidance)
    noise = torch.from_numpy(keyed_normal(seed, "sample", [0], model.latent_shape)).to(device)
    scheduler = scheduler_for(sampling.sampler, model.schedule_settings)

    def drawn(states: Tensor) -> Tensor:
        series = keyed_normal_series(seed, "sample-noise", [0], model.latent_shape)
        return edit_latents(
            denoise,
            x0=x0,
            noise=noise,
            strength=section.strength,
            scheduler=scheduler,
            num_steps=steps,
            states=states,
            guidance=guidance,
            step_noise=(torch.from_numpy(array).to(device) for array in series),
        )

    return drawn


@torch.no_grad()
def _frames(
    model: Model,
    course: Course,
    num_frames: int,
    draw: Callable[[Tensor], Tensor],
    *,
    tile_px: int,
    device: torch.device,
    advance: Callable[[], None],
) -> list[Pixels]:
    frames = []
    for frame in range(num_frames):
        states = packed_states(course.values(frame, num_frames), model.label_schema)
        frames.append(decode_images(model, draw(torch.tensor([states], device=device)), tile_px=tile_px))
        advance()
    return frames


def edit_rows(pictures: Pixels, course: Course, *, judge: Judge | None) -> list[dict[str, Any]]:
    """Return a row of figures for each edited picture of ``[2 + n, h, w, 3]``; the first two are what it came from."""
    frames = pictures[2:]
    tensors = pixels_to_tensor(pictures)
    vessels = vessel_correlation(tensors[2:], tensors[1:2].expand_as(tensors[2:])).tolist()
    asked = [name for name, value in course.last.items() if value is not None]
    read = judged_values(judge, frames, asked) if judge is not None else {}
    return [
        {
            "frame": frame,
            **{name: course.values(frame, len(frames))[name] for name in asked},
            "vessels": vessels[frame],
            **{f"judged_{name}": values[frame] for name, values in read.items()},
        }
        for frame in range(len(frames))
    ]


def _request(section: EditConfig, seed: int, fingerprint: str, data: bytes) -> dict[str, Any]:
    names = {"label", "known", "method", "strength", "num_steps", "frames", "gif"}
    return {
        "model_fingerprint": fingerprint,
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "seed": seed,
        **section.model_dump(mode="json", include=names),
    }


def sampling_document(settings: SamplerSettings, method: str) -> dict[str, Any]:
    """Return what of the sampler's settings changes the pictures, for the claim: inversion has a solver of its own."""
    unused = {"num_steps"} if method == "sdedit" else {"num_steps", "sampler"}
    return {name: value for name, value in settings.to_document().items() if name not in unused}


def _course_text(course: Course, num_frames: int) -> str:
    if num_frames > 1:
        return described(course)
    return ", ".join(f"{name} {value}" for name, value in course.last.items() if value is not None)


def _write(
    out: str,
    section: EditConfig,
    seed: int,
    model: Model,
    course: Course,
    pictures: Pixels,
    rows: Sequence[Mapping[str, Any]],
    source: str,
    digest: str,
) -> None:
    """Write pictures, table and, last, what explains them."""
    frames, count = pictures[2:], len(pictures) - 2
    for frame, pixels in enumerate(frames):
        values = {name: value for name, value in course.values(frame, count).items() if value is not None}
        marks = image_marks(model=model.fingerprint, seed=seed, index=0, labels=values)
        marks |= {
            "drawn_from": source,
            "derived_from": digest,
            "edit": f"{section.method}, strength {section.strength:g}",
        }
        data = encode_png(pixels, text=marks, compress_level=COMPRESS_LEVEL)
        filesystem.write_bytes(filesystem.join(out, "frames", f"{frame:02d}.png"), data)
    if count > 1:
        write_animations(out, "frames", frames, gif=section.gif)
    names = ["photograph" if source == _PHOTOGRAPH else "generated image", "autoencoder"]
    said = [frame_caption(course, frame, count) or _course_text(course, count) for frame in range(count)]
    title = f"synthetic, drawn from {source} · {_course_text(course, count)} · no forecast"
    changed = [difference_map(pixels, pictures[1]) for pixels in frames]
    for name, shown, captions in (("strip.png", [*pictures], names + said), ("difference.png", changed, said)):
        sheet_marks = {"synthetic": "yes", "drawn_from": source}
        write_sheet(out, name, shown, captions=captions, columns=len(shown), title=title, marks=sheet_marks)
    filesystem.write_bytes(filesystem.join(out, "frames.csv"), frames_table(rows))
    judged = "; `judged_...` is what a judge reads, as an expected value" if section.judge else ""
    labels = f"Labels asked for: {_course_text(course, count)}"
    readme = _README.format(source=source, labels=labels, judged=judged)
    filesystem.write_bytes(filesystem.join(out, "README.md"), readme.encode())
