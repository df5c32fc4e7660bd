"""What every section of the configuration is built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
ImageSizePx = Annotated[int, Field(ge=32, le=4096)]

PARTITIONS = r"^[A-Za-z0-9_.-]{1,64}(,[A-Za-z0-9_.-]{1,64}){0,15}$"
ACCOUNT = r"^[A-Za-z0-9_.-]{1,64}$"
TIME_LIMIT = r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$"
CHECKPOINT = r"^images-\d{12}$"
PNG_FILE = r"(?i)\.png$"
NAME_OF_VALUE = r"^[^\W\d_]"
FORMS = {
    PARTITIONS: "should be names of letters, digits, _ . or -, such as gpu or gpu,long",
    ACCOUNT: "should be a name of letters, digits, _ . or -, such as eyelab",
    TIME_LIMIT: "should be a time limit of SLURM, such as 24:00:00 (hours), 2-00:00:00 (days) or 90 (minutes)",
    CHECKPOINT: "should be a checkpoint's name, such as images-000001280000",
    PNG_FILE: "should end in .png",
    NAME_OF_VALUE: "should begin with a letter if it is the name of a value",
}
"""What is asked for, in words, by pattern of a text."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, documented fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def value_at(section: Section, path: str) -> object:
    """Return the value at a dotted path."""
    value: object = section
    for part in path.split("."):
        value = getattr(value, part)
    return value
