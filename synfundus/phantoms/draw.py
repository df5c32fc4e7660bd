"""Phantoms: drawn fundus photographs with known ground truth.

``draw_phantom(seed=.., index=.., image_size_px=..)`` is the ``index``-th photograph of an unlimited clinic: a pure
function of its arguments. Patients have two eyes and one to three visits; an eye has the same vessel tree, disc and
lesions at every visit. Each of the sixteen labels has a visible sign.

The distance of fovea and disc in disc diameters is that of people in both varieties: 2.65 +- 0.30.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.phantoms import background, circulation, exposure, macular, optic_disc, retinopathies
from synfundus.phantoms.camera import Camera, CameraKind, camera_of, expose
from synfundus.phantoms.clinic import LABEL_NAMES, Exam, exam_of, recorded_labels_of, true_labels_of
from synfundus.phantoms.scene import EyeAnatomy, Scene, Variety, anatomy_of
from synfundus.phantoms.tissue import Tissue
from synfundus.phantoms.wide import capture, eyes, retina

__all__ = [
    "LABEL_NAMES",
    "SMALLEST_SIZE_PX",
    "CameraKind",
    "Phantom",
    "PhantomTruth",
    "Variety",
    "draw_exam",
    "draw_phantom",
]

SMALLEST_SIZE_PX = 64
"""Below this no lesion is visible."""


@dataclass(frozen=True)
class PhantomTruth:
    """Positions in the picture. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).

    Attributes:
        center_x_px: Centre of the field-of-view circle.
        center_y_px: Centre of the field-of-view circle.
        radius_px: Radius of the field-of-view circle.
        camera: ``full`` disc, ``cut`` at top and bottom, or ``framed`` slide.
        cut_half_height_px: Half height of the visible disc; equals the radius if it is not cut.
        disc_x_px: Centre of the optic disc; may be outside the field.
        disc_y_px: Centre of the optic disc.
        disc_radius_px: Mean radius of the healthy disc.
        fovea_x_px: Centre of the fovea.
        fovea_y_px: Centre of the fovea.
        has_notch: Whether the rim has a registration notch.
        burned_in_text: Text in the margin; None without text.
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
        labels: The labels as recorded by the clinic; None = unknown.
        true_labels: The true labels.
        patient_id: Id of the patient, e.g. ``P000123``.
        visit: Visit number, from 0.
        truth: Positions in the picture.
    """

    pixels: NDArray[np.uint8]
    labels: dict[str, int | None]
    true_labels: dict[str, int]
    patient_id: str
    visit: int
    truth: PhantomTruth


def draw_phantom(*, seed: int, index: int, image_size_px: int, variety: Variety = "demo") -> Phantom:
    """Draw the ``index``-th photograph of the clinic ``seed``.

    Args:
        seed: Seed of the clinic.
        index: Number of the photograph, from 0; any order, constant time.
        image_size_px: Side of the square picture.
        variety: ``demo``: clear pictures, alike enough for a network trained in minutes. ``wide``: as different as
            photographs of many clinics and cameras. Labels and positions of the lesions are the same.

    Raises:
        ConfigError: ``index`` is negative or the size below ``SMALLEST_SIZE_PX``.
    """
    if index < 0:
        raise ConfigError(f"phantom index {index} is negative", hint="photographs are counted from 0")
    exam = exam_of(seed, index)
    true_labels = true_labels_of(seed, exam)
    pixels, truth = draw_exam(seed=seed, exam=exam, labels=true_labels, image_size_px=image_size_px, variety=variety)
    return Phantom(
        pixels=pixels,
        labels=recorded_labels_of(seed, exam, true_labels),
        true_labels=true_labels,
        patient_id=f"P{exam.patient:06d}",
        visit=exam.visit,
        truth=truth,
    )


def draw_exam(
    *, seed: int, exam: Exam, labels: Mapping[str, int], image_size_px: int, variety: Variety = "demo"
) -> tuple[NDArray[np.uint8], PhantomTruth]:
    """Draw one photograph of one eye with the given ``labels`` (all sixteen).

    Each sign has its own stream of draws, so the pictures of two label sets differ only in the signs of the labels that
    differ. Returns uint8 ``[h, w, 3]`` and the truth.

    Raises:
        ConfigError: The size is below ``SMALLEST_SIZE_PX``.
    """
    if image_size_px < SMALLEST_SIZE_PX:
        raise ConfigError(f"phantom size {image_size_px} px is too small", hint=f"use {SMALLEST_SIZE_PX} px or more")
    eye, is_wide = anatomy_of(seed, exam), variety == "wide"
    disc_readable = bool(labels["is_optic_disc_readable"] or not labels["is_fundus"])
    camera = camera_of(seed, exam, eye, disc_readable=disc_readable, image_size_px=image_size_px)
    if is_wide:
        eye = eyes.widened_eye(seed, exam, eye)
        camera = capture.widened_camera(seed, exam, eye, camera, disc_readable=disc_readable)
    x, y = camera.view.eye_grid()
    scene = Scene(
        seed=seed,
        exam=exam,
        labels=labels,
        eye=eye,
        view=camera.view,
        x=x,
        y=y,
        image=np.empty((3, image_size_px, image_size_px), dtype=np.float32),
        variety=variety,
        tissue=eyes.tissue_of(seed, exam, eye) if is_wide else Tissue(),
    )
    _paint(scene)
    truth = _truth_of(camera, eye)
    away = np.hypot(truth.disc_x_px - truth.center_x_px, truth.disc_y_px - truth.center_y_px)
    disc_in_field = bool(away < 1.05 * truth.radius_px)
    if not is_wide:
        exposure.illuminate(scene, camera.cast)
        exposure.degrade(scene, disc_in_field=disc_in_field)
        exposure.focus(scene)
        return expose(scene, camera), truth
    shot = capture.capture_of(seed, exam)
    capture.illuminate(scene, shot)
    capture.cloud(scene, shot)
    exposure.degrade(scene, disc_in_field=disc_in_field)
    capture.focus(scene, shot)
    return capture.develop(scene, camera, shot), truth


def _paint(scene: Scene) -> None:
    """Paint the eye from back to front."""
    background.paint_fundus(scene)
    if scene.variety == "wide":
        retina.paint_texture(scene)
    macular.paint_chorioretinal_scars(scene)
    macular.paint_myopic_atrophy(scene)
    optic_disc.paint_crescent(scene)
    background.paint_macula(scene)
    macular.paint_macular_degeneration(scene)
    background.paint_nerve_fibres(scene)
    optic_disc.paint_disc(scene)
    retinopathies.paint_macular_edema(scene)
    circulation.paint_vessels(scene)
    retinopathies.paint_diabetic_blood(scene)
    retinopathies.paint_occlusion(scene)
    retinopathies.paint_hypertensive_lesions(scene)
    circulation.absorb_blood(scene)
    if scene.variety == "wide":
        retina.paint_reflections(scene)
    retinopathies.paint_diabetic_exudates(scene)
    retinopathies.paint_preretinal_haemorrhage(scene)
    macular.paint_epiretinal_membrane(scene)


def _truth_of(camera: Camera, eye: EyeAnatomy) -> PhantomTruth:
    """Return the positions in the picture."""
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
