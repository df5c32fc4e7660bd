"""README.md of an exported model: what it is, what it was trained on, what it is for and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

from synfundus.artifacts.cards.front_matter import LICENCE, TAGS, front_matter
from synfundus.labels.schema import LabelSchema

CARD_NAME = "README.md"
"""The name under which Hugging Face looks for it."""
PREVIEW_NAME = "preview.png"
JUDGED_NAME = "judged"
"""Folder in a run where `export` looks for a report of `judge`."""
_OPEN = "**not stated: fill in**"
FEW = 10
"""From how many photographs on a number is given exactly where a model leaves the house."""

_BLOCKS_NOTE = (
    " The stock class returns blocks of {size} x {size} pixels as {channels} channels: "
    "`torch.nn.functional.pixel_shuffle(decoded, {size})` makes them RGB."
)
_PICTURES = f"""
## Pictures

![Generated images]({PREVIEW_NAME})

Generated during training, with fixed seeds and labels: averaged weights above, raw ones below.
"""
_LINEAR_PATH_NOTE = (
    " This autoencoder has a linear path beside the network (two more files in `vae/`), which only "
    "synfundus adds: the stock class decodes the network's share alone."
)


_FIELDS = {
    "license": LICENCE,
    "pipeline_tag": "unconditional-image-generation",
    "tags": [*TAGS, "latent-diffusion"],
}
_GUIDED = """\
pipe.scheduler.set_timesteps({steps})  # guidance in a part of the way only
guided = [{first} <= 1 - t.item() / {noisiest} <= {last} for t in pipe.scheduler.timesteps] + [False]
def turn(pipe, step, timestep, kept):  # a scale of 1 itself would end it for good
    pipe._guidance_scale = {scale} if guided[step + 1] else 1 + 1e-9
    return kept
"""


_OTHER_SAMPLERS = (
    "\nOther schedulers are made with `from_config(pipe.scheduler.config)`; diffusers' DDIM needs a number of steps "
    "that divides {timesteps}."
)


def _text(template: str, **parts: object) -> str:
    return files(__package__).joinpath(template).read_text(encoding="utf-8").format(**parts)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "not recorded"


def _objective(schedule: Mapping[str, Any]) -> str:
    """Say what the network predicts, and on which way from image to noise."""
    kind, count = schedule["prediction_type"], schedule["num_timesteps"]
    if kind == "flow_velocity":
        return (
            "the velocity `noise - image` on the straight way between them (flow matching). It is told the time, 0\n"
            f"for the image and 1 for noise, times {count}; sampling times are shifted by {schedule['shift']:g}"
        )
    ending = " that ends in pure noise" if schedule["zero_terminal_snr"] else ""
    return f"`{kind}` on a `{schedule['schedule_kind']}` noise schedule of {count} steps{ending}"


def _sampling(document: Mapping[str, Any]) -> str:
    advice = document.get("recommended_sampling")
    if not advice:
        return "not recorded"
    first, last = advice["guidance_interval"]
    part = "" if (first, last) == (0, 1) else f", in the part {first:g} to {last:g} of the way"
    return (
        f"{advice['sampler']}, {advice['num_steps']} steps, guidance {advice['guidance_scale']:g} "
        f"(rescaled by {advice['guidance_rescale']:g}{part})"
    )


def _photographs(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows about the photographs: what they are, whose, and how many."""
    told = training.get("photographs") or {}
    drawn = {True: "drawn by a program: phantoms, no patient", "in part": "of patients, and in part drawn by a program"}
    return [
        ("training photographs", _count(training.get("training_images"))),
        ("they are", drawn.get(told.get("drawn", False), "of patients, or not known to be anything else")),
        ("collections", ", ".join(told.get("collections", ())) or "not recorded"),
        ("patients, those held out included", _count(told.get("patients"))),
    ]


def _label_control(told: Mapping[str, Any] | str | None) -> str:
    """Return the row about label control: what `judge` found, or how to find it."""
    if not told:
        return f"not measured: `synfundus judge --model RUN --data IMAGES --out RUN/{JUDGED_NAME}`, then export again"
    if isinstance(told, str):
        return told
    said = "`{}` {measure} {generated:.2f} (held-out photographs {photographs:.2f})"
    return "; ".join(said.format(label, **figures) for label, figures in told.items())


def opening_of_parts(why_not: str, *, linear_path: bool, autoencoder_class: str, block_size_px: int) -> str:
    """Return how to open the parts of a model that has no stock pipeline.

    Args:
        why_not: Why it has none.
        linear_path: Whether the autoencoder has the linear path.
        autoencoder_class: diffusers' name of what opens ``vae/``.
        block_size_px: Edge of the blocks of pixels that are the channels of the autoencoder's network; 1 = pixels.
    """
    return _text(
        "opening_parts.md",
        why_not=why_not,
        autoencoder_class=autoencoder_class,
        blocks="" if block_size_px == 1 else _BLOCKS_NOTE.format(size=block_size_px, channels=3 * block_size_px**2),
        linear_path=_LINEAR_PATH_NOTE if linear_path else "",
    )


def opening_of_stock(document: Mapping[str, Any], schema: LabelSchema, timesteps: int, *, place: str) -> str:
    """Return how to open the stock pipeline of a model.

    Args:
        document: Content of ``synfundus.json``.
        schema: The labels.
        timesteps: Of its scheduler.
        place: Its folder, as seen from the card.
    """
    count = document["schedule"]["num_timesteps"]
    advice = document.get("recommended_sampling") or {}
    scale, steps = advice.get("guidance_scale", 2.0), advice.get("num_steps", 30)
    first, last = advice.get("guidance_interval", (0.0, 1.0))
    part = (first, last) != (0, 1)
    guided = _GUIDED.format(steps=steps, first=first, last=last, noisiest=count - 1, scale=scale) if part else ""
    turned = f"guidance_scale={scale}" + (" if guided[0] else 1 + 1e-9, callback_on_step_end=turn" if part else "")
    return _text(
        "opening_stock.md",
        place=place,
        what="This folder" if place == "." else f"`{place}/`",
        label=schema.names[0],
        guided=guided,
        sampling=f"num_inference_steps={steps}, {turned}, guidance_rescale={advice.get('guidance_rescale', 0.0)}",
        others="" if advice.get("sampler") == "heun" else _OTHER_SAMPLERS.format(timesteps=timesteps),
    )


def model_card(
    document: Mapping[str, Any],
    schema: LabelSchema,
    *,
    opening: str,
    library: Literal["synfundus", "diffusers"] = "synfundus",
    preview: bool = False,
) -> str:
    """Return the card in Markdown.

    Args:
        document: Content of ``synfundus.json``.
        schema: The labels.
        opening: How its parts, or the stock pipeline, are opened.
        library: Which library opens the folder as a whole.
        preview: Whether a grid of generated images lies beside the card.
    """
    if library == "synfundus":
        opening = _text("opening_synfundus.md", label=schema.names[0], rest=opening)
    training, prints = document["training"], document["fingerprints"]
    told = training.get("photographs") or {}
    loss = training.get("validation_loss")
    facts = [
        *_photographs(training),
        ("images seen in training (repetitions included)", _count(training.get("images_seen"))),
        ("parameters of U-Net and conditioner", _count(training.get("parameters"))),
        (
            f"validation loss on {training.get('judged_on') or 'held-out images'}",
            f"{loss:.4g}" if isinstance(loss, float) else "not recorded",
        ),
        ("model fingerprint", f"`{prints['model']}`"),
        ("autoencoder fingerprint", f"`{prints['autoencoder']}`"),
        ("latent set", f"`{prints['latent_set']}`"),
        ("recommended sampling", _sampling(document)),
        ("label control, of generated images", _label_control(training.get("label_control"))),
        ("licence of the photographs", _OPEN if told.get("drawn") is not True else "no one's: drawn by synfundus"),
        ("licence of the weights", _OPEN),
        ("contact", _OPEN),
        ("written on", document["date"]),
    ]
    if training.get("weights") == "raw":
        facts.append(("weights", "as the optimizer left them, not averaged"))
    if training.get("started_from"):
        facts.append(("started from other weights, whose licence may bind", f"`{training['started_from']}`"))
    counts = told.get("positives", {})
    schedule = document["schedule"]
    channels, height, width = document["latent_shape"]
    return _text(
        "model_card.md",
        front_matter=front_matter({"library_name": library, **_FIELDS}),
        version=document["versions"]["synfundus"],
        channels=channels,
        height=height,
        width=width,
        num_labels=len(schema.labels),
        image_size_px=document["image_size_px"],
        objective=_objective(schedule),
        facts="\n".join(f"| {name} | {value} |" for name, value in facts),
        labels="\n".join(
            f"| `{spec.name}` | 0-{spec.num_values - 1} | {counts.get(spec.name, 'not recorded')} | {spec.meaning} |"
            for spec in schema.labels
        ),
        few=FEW,
        started=", and those of the weights it was started from," if training.get("started_from") else "",
        opening=opening,
        pictures=_PICTURES if preview else "",
    )
