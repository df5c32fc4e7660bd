"""Phantoms: drawn fundus photographs with known truth, the data set that is always at hand.

``draw_phantom(seed=.., index=.., image_size_px=..)`` is the ``index``-th photograph of an endless clinic: a pure
function of its arguments. Patients have two eyes and one to three visits; an eye keeps its vessel tree, disc and
lesions from visit to visit. Every one of the sixteen labels has a visible sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.phantoms import background, circulation, diabetic, exposure, macular, optic_disc, vascular
from synfundus.phantoms.camera import Camera, CameraKind, camera_of, expose
from synfundus.phantoms.clinic import LABEL_NAMES, Sitting, recorded_labels_of, sitting_of, true_labels_of
from synfundus.phantoms.eye import EyeAnatomy, anatomy_of
from synfundus.phantoms.scene import Scene

__all__ = ["LABEL_NAMES", "SMALLEST_SIZE_PX", "CameraKind", "Phantom", "PhantomTruth", "draw_phantom", "draw_sitting"]

SMALLEST_SIZE_PX = 64
"""Below this no lesion would survive."""


@dataclass(frozen=True)
class PhantomTruth:
    """Where things are in the picture. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).

    Attributes:
        center_x_px: Centre of the field-of-view circle.
        center_y_px: Centre of the field-of-view circle.
        radius_px: Radius of the field-of-view circle.
        camera: ``full`` disc, ``cut`` at top and bottom, or ``framed`` slide.
        cut_half_height_px: Half height of the visible disc; equals the radius where it is not cut.
        disc_x_px: Centre of the optic disc; may lie outside the field.
        disc_y_px: Centre of the optic disc.
        disc_radius_px: Mean radius of the healthy disc.
        fovea_x_px: Centre of the fovea.
        fovea_y_px: Centre of the fovea.
        has_notch: Whether the rim has a registration notch.
        burned_in_text: What is written into the margin; None without any.
    """

    center_x_px: float
    center_y_px: float
    radius_px: float
    camera: CameraKind
    cut_half_height_px: float
    disc_x_px: float
    disc_y_px: float
    disc_radius_px: float
    fovea_x_px: float
    fovea_y_px: float
    has_notch: bool
    burned_in_text: str | None


@dataclass(frozen=True)
class Phantom:
    """One drawn photograph.

    Attributes:
        pixels: uint8 ``[h, w, 3]``, RGB.
        labels: The labels as the clinic's table has them; None = unknown.
        true_labels: The labels as they are.
        patient_id: Name of the patient, e.g. ``P000123``.
        visit: Visit number, from 0.
        truth: Where things are.
    """

    pixels: NDArray[np.uint8]
    labels: dict[str, int | None]
    true_labels: dict[str, int]
    patient_id: str
    visit: int
    truth: PhantomTruth


def draw_phantom(*, seed: int, index: int, image_size_px: int) -> Phantom:
    """Draw the ``index``-th photograph of the clinic ``seed``.

    Args:
        seed: Which clinic.
        index: Which photograph, from 0; any order, constant time.
        image_size_px: Side of the square picture.

    Raises:
        ConfigError: ``index`` is negative or the size below ``SMALLEST_SIZE_PX``.
    """
    if index < 0:
        raise ConfigError(f"phantom index {index} is negative", hint="photographs are counted from 0")
    sitting = sitting_of(seed, index)
    true_labels = true_labels_of(seed, sitting)
    pixels, truth = draw_sitting(seed=seed, sitting=sitting, labels=true_labels, image_size_px=image_size_px)
    return Phantom(
        pixels=pixels,
        labels=recorded_labels_of(seed, sitting, true_labels),
        true_labels=true_labels,
        patient_id=f"P{sitting.patient:06d}",
        visit=sitting.visit,
        truth=truth,
    )


def draw_sitting(
    *, seed: int, sitting: Sitting, labels: Mapping[str, int], image_size_px: int
) -> tuple[NDArray[np.uint8], PhantomTruth]:
    """Draw one photograph of one eye as if ``labels`` (all sixteen) were true of it.

    Each sign has its own stream of draws, so that two label sets give the same picture but for the signs they
    differ in. Returns uint8 ``[h, w, 3]`` and the truth.

    Raises:
        ConfigError: The size is below ``SMALLEST_SIZE_PX``.
    """
    if image_size_px < SMALLEST_SIZE_PX:
        raise ConfigError(f"phantom size {image_size_px} px is too small", hint=f"use {SMALLEST_SIZE_PX} px or more")
    eye = anatomy_of(seed, sitting)
    camera = camera_of(
        seed,
        sitting,
        eye,
        disc_readable=bool(labels["is_optic_disc_readable"] or not labels["is_fundus"]),
        image_size_px=image_size_px,
    )
    x, y = camera.view.eye_grid()
    scene = Scene(
        seed=seed,
        sitting=sitting,
        labels=labels,
        eye=eye,
        view=camera.view,
        x=x,
        y=y,
        image=np.empty((3, image_size_px, image_size_px), dtype=np.float32),
    )
    _paint(scene)
    truth = _truth_of(camera, eye)
    away = np.hypot(truth.disc_x_px - truth.center_x_px, truth.disc_y_px - truth.center_y_px)
    exposure.illuminate(scene, camera.cast)
    exposure.spoil(scene, disc_in_field=bool(away < 1.05 * truth.radius_px))
    exposure.focus(scene)
    return expose(scene, camera), truth


def _paint(scene: Scene) -> None:
    """Paint the eye from back to front."""
    background.paint_fundus(scene)
    macular.paint_chorioretinal_scars(scene)
    macular.paint_myopic_atrophy(scene)
    optic_disc.paint_crescent(scene)
    background.paint_macula(scene)
    macular.paint_macular_degeneration(scene)
    background.paint_nerve_fibres(scene)
    optic_disc.paint_disc(scene)
    diabetic.paint_macular_edema(scene)
    circulation.paint_vessels(scene)
    diabetic.paint_diabetic_blood(scene)
    vascular.paint_occlusion(scene)
    vascular.paint_hypertensive_lesions(scene)
    circulation.look_through_blood(scene)
    diabetic.paint_diabetic_exudates(scene)
    diabetic.paint_preretinal_haemorrhage(scene)
    macular.paint_epiretinal_membrane(scene)


def _truth_of(camera: Camera, eye: EyeAnatomy) -> PhantomTruth:
    """Collect where things are in the picture."""
    view = camera.view
    disc, fovea = view.to_pixels(np.array([eye.disc_center, eye.fovea_center])).tolist()
    return PhantomTruth(
        center_x_px=view.center_px[0],
        center_y_px=view.center_px[1],
        radius_px=view.radius_px,
        camera=camera.kind,
        cut_half_height_px=camera.cut * view.radius_px,
        disc_x_px=disc[0],
        disc_y_px=disc[1],
        disc_radius_px=sum(eye.disc_axes) / 2 * view.zoom * view.radius_px,
        fovea_x_px=fovea[0],
        fovea_y_px=fovea[1],
        has_notch=camera.notch_angle is not None,
        burned_in_text=camera.burned_in_text,
    )
