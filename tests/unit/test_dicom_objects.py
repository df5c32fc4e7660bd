"""Generated images as DICOM files: what is in them, and that our own importer takes them for what they are."""

from __future__ import annotations

import builtins
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageCms

from synfundus.artifacts.samples.dicom_objects import (
    GeneratedImage,
    dicom_file,
    generated_uid,
    require_pydicom,
    srgb_profile,
)
from synfundus.errors import ConfigError
from synfundus.photographs.decode import decode_photograph
from synfundus.photographs.decoding.synthetic_marks import is_marked_synthetic
from synfundus.photographs.dicom import dicom_eye_side

PIXELS = np.random.Generator(np.random.Philox(1)).integers(0, 255, (15, 21, 3), dtype=np.uint8)
IMAGE = GeneratedImage(
    pixels=PIXELS,
    labels={"dr_grade": 3, "is_gc": None, "eye_side": 1},
    side="L",
    image=12,
    model="ab" * 32,
    seed=2**63 - 1,
    version="0.1.0",
    date="20261130",
)
PARTS = ("study", "series", "synchronization", "instance")


def test_the_attributes_say_that_it_is_synthetic_and_what_made_it() -> None:
    found = pydicom.dcmread(io.BytesIO(dicom_file(IMAGE)))
    assert found.SOPClassUID == "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    assert found[0x0008, 0x001C].value == "YES"
    (equipment,) = found.ContributingEquipmentSequence
    (purpose,) = equipment.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert (equipment.Manufacturer, equipment.SoftwareVersions) == ("synfundus", "0.1.0")
    assert IMAGE.model in equipment.ContributionDescription
    assert list(found.ImageType)[:2] == ["DERIVED", "PRIMARY"]
    assert (found.ImageLaterality, found.Modality) == ("L", "OP")
    assert str(found.PatientName).startswith("SYNTHETIC^")
    assert found.PatientID.startswith("SYNTHETIC-")
    assert "dr_grade=3, eye_side=1" in found.ImageComments
    assert found.ImageComments.startswith("Requested labels")
    assert "is_gc" not in found.ImageComments
    assert np.array_equal(found.pixel_array, PIXELS)
    assert found.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_attributes_keep_the_lengths_that_their_kinds_have() -> None:
    """A reader that is strict warns, and warnings are errors here."""
    longest = replace(IMAGE, image=10**9, labels={f"label_{number}": 1 for number in range(40)})
    found = pydicom.dcmread(io.BytesIO(dicom_file(longest)))
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    try:
        for element in found.iterall():
            assert element.value is not Ellipsis
    finally:
        pydicom.config.settings.reading_validation_mode = pydicom.config.WARN


def test_uids_are_derived_from_what_made_the_image_and_from_its_pixels() -> None:
    changed = PIXELS.copy()
    changed[0, 0, 0] ^= 1
    others = [IMAGE, replace(IMAGE, image=13), replace(IMAGE, seed=0), replace(IMAGE, model="c")]
    others.append(replace(IMAGE, pixels=changed))
    uids = [generated_uid(one, part) for one in others for part in PARTS]
    assert len(set(uids)) == len(others) * len(PARTS)
    assert all(pydicom.uid.UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)
    assert dicom_file(IMAGE) == dicom_file(replace(IMAGE, pixels=PIXELS.copy()))


def test_our_own_importer_reads_the_same_pixels_and_side_and_knows_that_they_are_synthetic() -> None:
    data = dicom_file(IMAGE)
    assert np.array_equal(decode_photograph(data, max_pixels=10_000), PIXELS)
    assert (dicom_eye_side(data), dicom_eye_side(dicom_file(replace(IMAGE, side="R")))) == (1, 0)
    assert is_marked_synthetic(data)


def test_the_colour_profile_is_that_of_srgb_and_has_no_time() -> None:
    profile = srgb_profile()
    assert profile == srgb_profile.__wrapped__()
    assert profile[24:36] == bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    ours, plain = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    image = Image.fromarray(PIXELS)
    assert np.array_equal(np.asarray(ImageCms.profileToProfile(image, ours, plain)), PIXELS)


def test_without_pydicom_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_pydicom(name: str, *rest: Any) -> Any:
        if name.startswith("pydicom"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_pydicom)
    with pytest.raises(ConfigError) as refused:
        require_pydicom()
    assert refused.value.hint == "pip install 'synfundus[dicom]'"
