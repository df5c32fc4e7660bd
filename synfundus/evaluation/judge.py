"""The judge of label control: a small convolutional network that predicts labels from fundus images.

It is trained on real photographs, and on their reconstructions if given, so that an autoencoder's blur is not taken for
a sign. The two image coordinates are input channels: the eye side follows from the position of the disc.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from synfundus.errors import DataError
from synfundus.evaluation.fit import FitRecipe, fit
from synfundus.evaluation.label_control import Agreement, LabelPrediction, is_nominal, label_agreement, label_prediction
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema, LabelSpec
from synfundus.seeding import keyed_generator, keyed_uniform

_PURPOSE = "judge"
"""Of its random draws."""
_WIDTHS = (32, 48, 80)
_INPUT_CHANNELS = 8
_SPREAD_FLOOR = 0.02
_HEAD_GAIN = 0.1
_SHIFT = 0.05
_ROTATION_DEG = 8.0
_ZOOM = 0.05
_BRIGHTNESS = 0.15
_CONTRAST = 0.15
_COLOUR = 0.06
_EVALUATION_BATCH = 128

Pixels = NDArray[np.uint8]
"""Images, uint8 ``[n, s, s, 3]``."""


def num_outputs(spec: LabelSpec) -> int:
    """Return the number of logits of a label: one per step of a grade, one for 0/1, else one per value."""
    return spec.num_values if is_nominal(spec) else spec.num_values - 1


class _Block(nn.Module):
    """Halve the resolution, then one residual convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(channels_out)
        self.conv = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.down_norm(self.down(x)))
        return functional.relu(x + self.conv_norm(self.conv(x)))


class Judge(nn.Module):
    """Images to label logits.

    It sees each image twice, as it is (brightness indicates readability) and standardised (for most signs brightness
    does not matter), with the coordinates of each pixel.

    Args:
        schema: The labels.
        image_size_px: Edge of the images it works on, a multiple of 4; others are resized.
    """

    def __init__(self, *, schema: LabelSchema, image_size_px: int) -> None:
        super().__init__()
        self.schema = schema
        self.image_size_px = image_size_px
        self.stem = nn.Conv2d(_INPUT_CHANNELS, _WIDTHS[0], 6, stride=4, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(_WIDTHS[0])
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in itertools.pairwise(_WIDTHS)))
        self.head = nn.Linear(2 * _WIDTHS[-1], sum(num_outputs(spec) for spec in schema.labels))
        self.coordinates: Tensor
        axis = torch.linspace(-1, 1, image_size_px)
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("coordinates", torch.stack([columns, rows]), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b o"]:
        """Return the logits of all labels.

        Args:
            images: In [0, 1], ``image_size_px`` square.
        """
        mean = images.mean(dim=(2, 3), keepdim=True)
        # torch.var over two axes is twenty times slower on a CPU than this
        variance = (images.square().mean(dim=(2, 3), keepdim=True) - mean.square()).clamp(min=0)
        standardised = (images - mean) / (variance.sqrt() + _SPREAD_FLOOR)
        place = self.coordinates.expand(len(images), -1, -1, -1)
        x = torch.cat([images * 2 - 1, standardised, place], dim=1).contiguous(memory_format=torch.channels_last)
        x = self.blocks(functional.relu(self.stem_norm(self.stem(x))))
        logits: Tensor = self.head(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))
        return logits


def build_judge(*, schema: LabelSchema, image_size_px: int, seed: int) -> Judge:
    """Build a judge whose weights depend on the seed alone.

    Source: He et al. 2015, "Delving deep into rectifiers", Eq. 10.
    """
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; replaced below
        judge = Judge(schema=schema, image_size_px=image_size_px)
    with torch.no_grad():
        for name, parameter in judge.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim >= 2:
                generator = keyed_generator(seed, f"{_PURPOSE}.weights", name)
                draws = generator.standard_normal(parameter.shape, dtype=np.float32)
                gain = _HEAD_GAIN if name.startswith("head") else 1.0
                parameter.copy_(torch.from_numpy(draws) * (gain * math.sqrt(2.0 / parameter[0].numel())))
    return judge


def _targets(states: Int[Tensor, "b k"], schema: LabelSchema) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b o"]]:
    """Return the 0/1 targets of all logits and the mask of those with a known label."""
    targets, masks = [], []
    for column, spec in enumerate(schema.labels):
        values = states[:, column : column + 1] - 1
        grades = torch.arange(num_outputs(spec))[None, :]
        targets.append((values == grades) if is_nominal(spec) else (values > grades))
        masks.append((states[:, column : column + 1] != UNKNOWN_STATE).expand(-1, num_outputs(spec)))
    return torch.cat(targets, dim=1).float(), torch.cat(masks, dim=1).float()


def _augment(images: Float[Tensor, "b 3 h w"], draws: NDArray[np.float64]) -> Float[Tensor, "b 3 h w"]:
    """Shift, rotate, zoom and change the light slightly; never mirror: that would swap the eye side."""
    signed = torch.from_numpy(draws).float() * 2 - 1
    angle = signed[:, 0] * math.radians(_ROTATION_DEG)
    zoom = 1 + signed[:, 1] * _ZOOM
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift_x, shift_y = signed[:, 2] * 2 * _SHIFT, signed[:, 3] * 2 * _SHIFT
    theta = torch.stack([torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    gain = 1 + signed[:, 4] * _CONTRAST + signed[:, 5] * _BRIGHTNESS
    colour = gain[:, None] * (1 + signed[:, 6:9] * _COLOUR)
    return (moved * colour[:, :, None, None]).clamp(0, 1)


_DRAWS_PER_IMAGE = 9


def _to_images(pixels: Pixels, image_size_px: int) -> Float[Tensor, "b 3 h w"]:
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    if images.shape[-1] != image_size_px or images.shape[-2] != image_size_px:
        images = functional.interpolate(images, size=(image_size_px, image_size_px), mode="area")
    return images


def train_judge(
    *,
    pixels: Pixels,
    reconstructions: Pixels | None,
    states: NDArray[np.int64],
    schema: LabelSchema,
    image_size_px: int,
    recipe: FitRecipe,
    seed: int,
    on_step: Callable[[int, float], None],
) -> Judge:
    """Train a judge; the same arguments give the same judge on the same machine.

    Args:
        pixels: Real images of the training split ``[n, s, s, 3]``.
        reconstructions: The same images through the autoencoder; every second image of a batch comes from these.
        states: Label states ``[n, k]``; unknown labels do not count in the loss.
        schema: The labels.
        image_size_px: Edge the judge works at.
        recipe: Images to show, batch, learning rate, weight decay.
        seed: Seed of weights, order and augmentation.
        on_step: Called after each step with (images in the step, loss).

    Raises:
        DataError: No images, or arrays that do not match.
        NumericalError: The loss is not finite.
    """
    if not len(pixels) or states.shape != (len(pixels), len(schema.labels)):
        raise DataError(f"a judge cannot be trained on images {pixels.shape} with label states {states.shape}")
    if reconstructions is not None and len(reconstructions) != len(pixels):
        raise DataError(f"{len(reconstructions)} reconstructions for {len(pixels)} images")
    judge = build_judge(schema=schema, image_size_px=image_size_px, seed=seed)
    targets, masks = _targets(torch.from_numpy(states), schema)

    def batch_loss(rows: NDArray[np.int64], positions: NDArray[np.int64]) -> Float[Tensor, ""]:
        chosen = pixels[rows]
        if reconstructions is not None:
            chosen[1::2] = reconstructions[rows[1::2]]
        draws = keyed_uniform(seed, f"{_PURPOSE}.augment", positions.tolist(), _DRAWS_PER_IMAGE)
        logits = judge(_augment(_to_images(chosen, image_size_px), draws))
        losses = functional.binary_cross_entropy_with_logits(logits, targets[rows], reduction="none")
        return (losses * masks[rows]).sum() / masks[rows].sum().clamp(min=1)

    fit(judge, batch_loss, set_size=len(pixels), recipe=recipe, seed=seed, purpose=_PURPOSE, on_step=on_step)
    return judge


@torch.no_grad()
def predict_labels(judge: Judge, pixels: Pixels) -> list[LabelPrediction]:
    """Return the judge's predictions for images ``[n, s, s, 3]``, one `LabelPrediction` per label."""
    batches = [
        torch.sigmoid(judge(_to_images(pixels[at : at + _EVALUATION_BATCH], judge.image_size_px)))
        for at in range(0, len(pixels), _EVALUATION_BATCH)
    ]
    probabilities = torch.cat(batches).double().numpy()
    predictions, first = [], 0
    for spec in judge.schema.labels:
        own = probabilities[:, first : first + num_outputs(spec)]
        predictions.append(label_prediction(own, spec))
        first += num_outputs(spec)
    return predictions


def evaluate_label_control(judge: Judge, pixels: Pixels, states: NDArray[np.int64]) -> Agreement:
    """Compare the judge's predictions with true or requested label states ``[n, k]``, label by label."""
    return label_agreement(predict_labels(judge, pixels), states, schema=judge.schema)
