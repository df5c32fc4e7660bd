"""Sets with a column per finding: AIROGS, RFMiD, BRSET, mBRSET, SynFundus-1M."""

from __future__ import annotations

from collections.abc import Sequence

from synfundus.labels.schema import DISEASES, READABLE, canonical_cell
from synfundus.photographs.importers.importer import (
    FINDING,
    GRADE,
    ONLY_ABSENCE,
    SIDE,
    Cells,
    Column,
    Doubt,
    Importer,
    words,
)

AIROGS = Importer(
    collection="AIROGS",
    file="challenge_id",
    suffix=".jpg",
    labels={"is_gc": (Column("class", {"RG": 1, "NRG": 0}),)},
    constants={"is_fundus": 1},
    notes=(
        (
            (),
            "AIROGS and EyePACS come from the same screening programme: compare the sets (--compare-with) before "
            "using one of them as a test set for the other",
        ),
    ),
)
"""AIROGS (Rotterdam EyePACS), ``train_labels.csv``: ``challenge_id,class``.

RG is referable glaucoma, NRG is not; an early, not referable case is NRG. Ungradable photographs were removed from the
training set, so all of it is readable. Retinopathy was not graded. Patients are not given.
"""

_OPTIC_NERVE = ("ODP", "ODE", "AION")
_OTHER_DISC_SIGNS = ("ODC", "TD", "ODPM", "CB")

RFMID = Importer(
    collection="RFMiD",
    file="ID",
    suffix=".png",
    labels={
        "dr_grade": (Column("DR", ONLY_ABSENCE),),
        "is_amd": (Column("ARMD", FINDING),),
        "is_em": (Column("ERM", FINDING),),
        "is_rvo": (Column("BRVO", FINDING), Column("CRVO", FINDING)),
        "is_aon": (
            *(Column(code, FINDING) for code in _OPTIC_NERVE),
            *(Column(code, ONLY_ABSENCE) for code in _OTHER_DISC_SIGNS),
        ),
        **{name: (Column("MYA", ONLY_ABSENCE),) for name in ("is_dm", "is_pm")},
        **{name: (Column("Disease_Risk", ONLY_ABSENCE),) for name in ("is_crp", "is_dme", "is_gc", "is_htr")},
    },
    optional=frozenset({"TD", "ODPM", "CB"}),
)
"""RFMiD, ``a. RFMiD_Training_Labels.csv`` and the other parts: ``ID,Disease_Risk`` and 45 codes of 0 and 1.

All codes were searched for in every photograph, so 0 is an absence:

- `DR` has no grade: 0 is grade 0, with 1 the grade is unknown;
- `ODC` is a cupped disc, a sign and not glaucoma; `HR` is hemorrhagic, not hypertensive retinopathy;
- `MYA` is any myopia: with 1, degenerative and pathologic myopia are unknown;
- with a cupped, tilted, pitted or colobomatous disc, or in a release without these codes, anomalies of the optic nerve
  are unknown;
- glaucoma, hypertensive retinopathy, diabetic macular edema and chorioretinal pathology have no code: they are 0 if
  `Disease_Risk` is 0, which means a normal fundus, and otherwise unknown.

All three parts number their photographs from 1: ``--source`` must be the folder of this table. Patients are not given.
"""

BRSET = Importer(
    collection="BRSET",
    file="image_id",
    suffix=".jpg",
    patient="patient_id",
    aliases={"illumination": ("Illuminaton", "iluminaton", "ilumination", "Illumination"), "drusen": ("drusens",)},
    optional=frozenset({"illumination", "drusen"}),
    labels={
        "dr_grade": (Column("DR_ICDR", GRADE),),
        "is_amd": (Column("amd", FINDING),),
        "is_dme": (Column("macular_edema", FINDING),),
        "is_htr": (Column("hypertensive_retinopathy", FINDING),),
        "is_rvo": (Column("vascular_occlusion", ONLY_ABSENCE),),
        **{name: (Column("myopic_fundus", ONLY_ABSENCE),) for name in ("is_dm", "is_pm")},
        "is_fundus": (Column("quality", words({"adequate": 1, "inadequate": None})),),
        "eye_side": (Column("exam_eye", {"1": 0, "2": 1, **SIDE}),),
    },
    doubts=(Doubt("DR_ICDR", ("", "0"), ("is_dme",), values=(1,)),),
    notes=(
        (
            ("Illuminaton", "ilumination", "Illumination", "drusens"),
            "this BRSET table is older than 1.0.2, which revised exam_eye: eye sides may be wrong, use 1.0.2",
        ),
    ),
)
"""BRSET, ``labels.csv`` (also ``labels_brset.csv``) of versions 1.0.0 to 1.0.2, on PhysioNet.

Version 1.0.2 renamed three columns and revised `exam_eye`. All versions code 1 as right and 2 as left; names of
sides are accepted too, anything else is a reject. Findings were searched for in every photograph, so 0 is an absence:

- `vascular_occlusion` is of arteries or veins and `myopic_fundus` is any myopia, so with 1 the label is unknown;
- `macular_edema` without retinopathy need not be diabetic, so 1 counts only with a grade above 0;
- `increased_cup_disc`, in a fifth of the photographs, is a sign and not glaucoma: glaucoma is unknown;
- `quality` is inadequate if one of four criteria fails, also on photographs that were graded: only "adequate" means
  that the photograph is readable;
- `optic_disc`, `vessels` and `macula` mean disease, not readability: not used.
"""

MBRSET = Importer(
    collection="mBRSET",
    file="file",
    suffix=".jpg",
    patient="patient",
    labels={
        "dr_grade": (Column("final_icdr", GRADE),),
        "is_dme": (Column("final_edema", {**FINDING, **words({"yes": 1, "no": 0})}),),
        "is_fundus": (Column("final_quality", words({"yes": 1, "no": 0})),),
        "eye_side": (Column("laterality", SIDE),),
    },
)
"""mBRSET, ``labels_mbrset.csv``, on PhysioNet: photographs of a handheld camera, all of patients with diabetes.

Therefore an edema counts as diabetic. `final_quality` is about the whole photograph. Photographs without a grade have
an empty cell. No other disease was recorded.
"""

_SYNFUNDUS_PARTS, _SYNFUNDUS_PART_IMAGES = 20, 50_000


def _synfundus_photographs(cells: Cells) -> Sequence[Cells]:
    """Convert a number into the path of the image in the release; keep a file name."""
    number = canonical_cell(cells["idx"])
    if number.isascii() and number.isdigit():
        part = min(_SYNFUNDUS_PARTS - 1, int(number) // _SYNFUNDUS_PART_IMAGES)
        return ({**cells, "image": f"Part{part}/{number}.png"},)
    return ({**cells, "image": cells["idx"]},)


SYNFUNDUS_1M = Importer(
    collection="SynFundus-1M",
    file="image",
    suffix=".png",
    aliases={"idx": ("file_name",)},
    labels={
        "dr_grade": (Column("dr_grade", GRADE),),
        **{name: (Column(name, FINDING),) for name in (*DISEASES[1:], *READABLE, "eye_side")},
    },
    required=("idx",),
    optional=frozenset({*READABLE, "eye_side"}),
    derived=frozenset({"image"}),
    photographs=_synfundus_photographs,
)
"""SynFundus-1M, images of the original generator: ``*_gen_cond.csv`` (`idx`) or ``*_annotation*.csv`` (`file_name`).

Columns have the names of the labels of the default schema, and are the conditions of the generated image: 0 means that
absence was requested. Image i is ``Part{min(19, i // 50000)}/{i}.png``. Some copies lack
readability columns. The images are synthetic; there are no patients.
"""
