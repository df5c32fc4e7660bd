"""The label schema: which labels a photograph can have, as data.

Every public set has only some of the labels, so each label has an UNKNOWN state beside its values
(ADR-0009). The default schema is the fifteen annotations of SynFundus-1M (arXiv 2312.00377) plus the eye
side; users can supply another list as YAML. Rows of it are described as short captions under images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from synfundus.errors import ConfigError, DataError, suggestion

UNKNOWN_STATE = 0
"""State of an unknown label in an encoded row; value ``v`` is state ``v + 1``."""

SAME = 0.8
"""How much of two names is the same where one is offered for the other: is_pm is no misspelt is_gc."""

MAX_VALUES = 30_000
"""States are stored as int16."""

_SAME_WORDS = (
    (frozenset({"right", "r", "re", "od"}), frozenset({"left", "l", "le", "os"})),
    (frozenset({"no", "false"}), frozenset({"yes", "true"})),
)
"""What tables write for the names of two values; in a label that has one of each, all are understood."""


def canonical_cell(cell: str) -> str:
    """Strip a cell and normalise whole numbers (``1``, ``1.0``, ``1,0`` and ``01`` are one value)."""
    text = cell.strip()
    try:
        number = float(re.sub(r",(?=00?$)", ".", text))  # 1,000 may be a thousand
    except ValueError:
        return text
    if "_" in text:  # Python parses 1_0 as ten; in a table it is a name
        return text
    return str(int(number)) if abs(number) < 1e15 and number == int(number) else text


@dataclass(frozen=True)
class LabelSpec:
    """One label.

    Attributes:
        name: Column name.
        num_values: Values are the integers 0 .. num_values - 1.
        ordinal: Whether the values are ordered (a grade).
        meaning: Description, for tables and model cards.
        values: Names of the values, in order; may be empty. In requests and tables they stand for the integers.
    """

    name: str
    num_values: int
    ordinal: bool = False
    meaning: str = ""
    values: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values, as given or as known for a label of the default schema; empty if there are none."""
        return self.values or _VALUE_NAMES.get(self, ())

    @property
    def values_by_name(self) -> dict[str, int]:
        """Value by what may stand for it, in lower case: its name, and words of the same meaning.

        A label of two values without names has ``no`` and ``yes``, but not an eye.
        """
        unnamed = ("no", "yes") if self.num_values == 2 and self.name != "eye_side" else ()
        names = {name.casefold(): value for value, name in enumerate(self.names or unnamed)}
        words: dict[str, int] = {}
        for pair in _SAME_WORDS:
            own = [names.keys() & same for same in pair]
            if [len(one) for one in own] == [1, 1]:
                words |= {word: names[one] for (one,), same in zip(own, pair, strict=True) for word in same}
        return words | names

    @property
    def choices(self) -> str:
        """The values and their names, for messages."""
        return f"0..{self.num_values - 1}" + (f" ({', '.join(self.names)})" if self.names else "")


@dataclass(frozen=True)
class LabelSchema:
    """An ordered list of labels; the order is the order of the encoded states."""

    labels: tuple[LabelSpec, ...]

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise ConfigError("a label schema needs at least one label")
        if len(set(names)) != len(names):
            raise ConfigError(f"a label schema must not contain a label twice: {', '.join(names)}")
        for spec in self.labels:
            if spec.num_values < 2:
                raise ConfigError(f"label {spec.name!r} has {spec.num_values} values, needs 2 or more")
            if spec.num_values > MAX_VALUES:
                raise ConfigError(f"label {spec.name!r} has {spec.num_values} values, more than {MAX_VALUES}")
            if spec.values and len({name.casefold() for name in spec.values}) != spec.num_values:
                raise ConfigError(f"label {spec.name!r} has {spec.num_values} values, but other names: {spec.values}")
            if any(re.fullmatch(r"[-+.\d]*|unknown|null", name, re.IGNORECASE) for name in spec.values):
                raise ConfigError(f"label {spec.name!r}: a name of a value is a word, not a number: {spec.values}")

    @property
    def names(self) -> tuple[str, ...]:
        """Label names in order."""
        return tuple(spec.name for spec in self.labels)

    @property
    def num_values(self) -> tuple[int, ...]:
        """Number of values of each label, in order."""
        return tuple(spec.num_values for spec in self.labels)

    @property
    def ordinal(self) -> tuple[bool, ...]:
        """Whether each label is a grade, in order."""
        return tuple(spec.ordinal for spec in self.labels)

    def __getitem__(self, name: str) -> LabelSpec:
        for spec in self.labels:
            if spec.name == name:
                return spec
        said = f"unknown label {name!r}{suggestion(name, self.names, cutoff=SAME)}"
        raise ConfigError(said, hint=f"labels of this schema: {', '.join(self.names)}")

    def check_value(self, name: str, value: int | str | None) -> int | None:
        """Return a value that is valid for the label, given as an integer or by its name.

        Raises:
            ConfigError: Unknown label name.
            DataError: A value the label does not have.
        """
        spec = self[name]
        if isinstance(value, str):
            text = canonical_cell(value).casefold()
            number = spec.values_by_name.get(text, int(text) if re.fullmatch(r"\d{1,9}", text) else -1)
            if not 0 <= number < spec.num_values:
                raise DataError(f"label {name} = {value!r} is not one of {spec.choices}")
            return number
        if value is not None and not 0 <= value < spec.num_values:
            raise DataError(f"label {name} = {value} is not one of {spec.choices}")
        return value

    def encode(self, labels: Mapping[str, int | None]) -> list[int]:
        """Encode values as states, in schema order; a label that is missing or None is UNKNOWN."""
        states = []
        named = 0
        for spec in self.labels:
            value = labels.get(spec.name)
            named += spec.name in labels
            if value is None:
                states.append(UNKNOWN_STATE)
            elif 0 <= value < spec.num_values:
                states.append(value + 1)
            else:
                self.check_value(spec.name, value)
        if named < len(labels):
            for name in labels:
                self[name]
        return states

    def decode(self, states: Sequence[int]) -> dict[str, int | None]:
        """Decode states into values; inverse of `encode`."""
        if len(states) != len(self.labels):
            raise DataError(f"{len(states)} label states for a schema of {len(self.labels)} labels")
        return {
            spec.name: None if state == UNKNOWN_STATE else int(state) - 1
            for spec, state in zip(self.labels, states, strict=True)
        }

    def to_document(self) -> list[dict[str, object]]:
        """Return the schema as written to manifests and YAML files."""
        return [
            {"name": s.name, "num_values": s.num_values, "ordinal": s.ordinal, "meaning": s.meaning}
            | ({"values": list(s.values)} if s.values else {})
            for s in self.labels
        ]

    def to_yaml(self) -> str:
        """Return the schema as YAML with the names of all values, to be copied and changed."""
        lines = []
        for entry, spec in zip(self.to_document(), self.labels, strict=True):
            named = {**entry, "values": list(spec.names)} if spec.names else entry
            lines.append(", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in named.items()))
        return "".join(f"- {{{line}}}\n" for line in lines)

    @classmethod
    def from_document(cls, document: object, *, where: str = "") -> LabelSchema:
        """Read a schema from the parsed YAML or JSON list.

        Raises:
            ConfigError: The document is not a list of ``{name, num_values[, ordinal, meaning, values]}``.
        """
        if not isinstance(document, list):
            raise ConfigError("a label schema is a list of {name, num_values, ordinal, meaning, values}", where=where)
        specs = []
        for entry in document:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ConfigError(f"label schema entry without a name: {entry!r}", where=where)
            extra = set(entry) - {"name", "num_values", "ordinal", "meaning", "values"}
            if extra:
                raise ConfigError(
                    f"label schema entry {entry['name']!r} has unknown keys: {sorted(extra)}", where=where
                )
            values = entry.get("values") or []
            if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
                raise ConfigError(f"label {entry['name']!r}: values must be a list of names", where=where)
            num_values = entry.get("num_values", len(values) or 2)
            if not isinstance(num_values, int) or isinstance(num_values, bool):
                raise ConfigError(f"label {entry['name']!r}: num_values must be an integer", where=where)
            specs.append(
                LabelSpec(
                    name=entry["name"],
                    num_values=num_values,
                    ordinal=bool(entry.get("ordinal", False)),
                    meaning=str(entry.get("meaning", "")),
                    values=tuple(values),
                )
            )
        return cls(tuple(specs))


def _order(spec: LabelSpec) -> str:
    return "ordinal" if spec.ordinal else "nominal"


def label_differences(left: LabelSchema, right: LabelSchema) -> list[str]:
    """Describe how the labels that both schemas have differ: their number of values, or what a value means.

    Names of values count where both sides have some.
    """
    return [text for spec in left.labels if spec.name in right.names and (text := _differs(spec, right[spec.name]))]


def _differs(one: LabelSpec, two: LabelSpec) -> str:
    if one.num_values != two.num_values:
        return f"{one.name} has {one.num_values} values in the first, {two.num_values} in the second"
    if one.ordinal != two.ordinal:
        return f"{one.name} is {_order(one)} in the first, {_order(two)} in the second"
    for value, (left, right) in enumerate(zip(one.names, two.names, strict=False)):
        if left.casefold() != right.casefold():
            return f"{one.name} = {value} is {left} in the first, {right} in the second"
    return ""


def difference(left: LabelSchema, right: LabelSchema) -> str:
    """Describe in one line how two schemas differ; empty if a row of states means the same in both."""
    sides = (("first", left, right), ("second", right, left))
    parts = [
        f"only in the {which}: {', '.join(only)}"
        for which, one, other in sides
        if (only := sorted(set(one.names) - set(other.names)))
    ]
    parts += label_differences(left, right)
    if not parts and left.names != right.names:
        parts = [f"another order: {', '.join(left.names)} in the first, {', '.join(right.names)} in the second"]
    return "; ".join(parts)


_BINARY_MEANINGS = {
    "is_amd": "age-related macular degeneration",
    "is_aon": "anomalies of the optic nerve",
    "is_crp": "choroidal retinal pathology",
    "is_dm": "degenerative myopia",
    "is_dme": "diabetic macular edema",
    "is_em": "epiretinal membrane",
    "is_gc": "glaucoma",
    "is_htr": "hypertensive retinopathy",
    "is_pm": "pathologic myopia",
    "is_rvo": "retinal vein occlusion",
    "is_fundus": "the photograph as a whole is readable",
    "is_optic_disc_readable": "the optic disc is readable",
    "is_macular_readable": "the macula is readable",
    "is_retinal_region_readable": "the retina outside disc and macula is readable",
}

DEFAULT_LABEL_SCHEMA = LabelSchema(
    (
        LabelSpec(
            "dr_grade", 5, ordinal=True, meaning="diabetic retinopathy: none, mild, moderate, severe, proliferative"
        ),
        *(LabelSpec(name, 2, meaning=meaning) for name, meaning in _BINARY_MEANINGS.items()),
        LabelSpec("eye_side", 2, meaning="0 right eye (OD), 1 left eye (OS)"),
    )
)
"""The fifteen annotations of SynFundus-1M plus the eye side (source: arXiv 2312.00377, table of annotations)."""

_VALUE_NAMES = {
    **dict.fromkeys(DEFAULT_LABEL_SCHEMA.labels, ("no", "yes")),
    DEFAULT_LABEL_SCHEMA["dr_grade"]: ("none", "mild", "moderate", "severe", "proliferative"),
    DEFAULT_LABEL_SCHEMA["eye_side"]: ("right", "left"),
}
"""Names of the default schema's values; not in its document, which older sets and models have without them."""


def moved_values(schema: LabelSchema, names: Collection[str]) -> list[str]:
    """Describe those of some labels whose values have names of the default schema, but not its numbers.

    Importers, DICOM headers and mirrored images know the default numbers alone.
    """
    found = []
    for spec in (one for one in schema.labels if one.name in names and one.name in DEFAULT_LABEL_SCHEMA.names):
        numbers = DEFAULT_LABEL_SCHEMA[spec.name].values_by_name
        moved = [(v, name) for v, name in enumerate(spec.names) if numbers.get(name.casefold(), v) != v]
        found += [f"{spec.name} = {v} is {name}, which is {numbers[name.casefold()]}" for v, name in moved[:1]]
    return found


_FINDINGS = {
    "is_amd": "AMD",
    "is_aon": "optic nerve anomaly",
    "is_crp": "choroidal pathology",
    "is_dm": "degenerative myopia",
    "is_dme": "macular edema",
    "is_em": "epiretinal membrane",
    "is_gc": "glaucoma",
    "is_htr": "hypertensive",
    "is_pm": "pathologic myopia",
    "is_rvo": "vein occlusion",
}
_UNREADABLE = {
    "is_fundus": "unreadable",
    "is_optic_disc_readable": "disc unreadable",
    "is_macular_readable": "macula unreadable",
    "is_retinal_region_readable": "retina unreadable",
}
_SIDES = {0: "right", 1: "left"}

DISEASES = ("dr_grade", *_FINDINGS)
"""Labels that are 0 in a healthy eye."""
READABLE = tuple(_UNREADABLE)
"""Labels that are 0 where a photograph cannot be judged."""


_MAX_ABSENT = 2


def label_caption(labels: Mapping[str, int | None]) -> str:
    """Describe a label row: the side, the grade, findings that are present, parts that are unreadable.

    Where no grade and no finding is present, the findings known to be absent are named, or counted. ``no findings``
    says that all are known to be absent. A label outside the default schema is written ``name=value``; its 0 only
    where nothing else is known. A row without known labels gives ``no labels``.
    """
    known = {name: value for name, value in labels.items() if value is not None}
    if not known:
        return "no labels"
    words = [f"DR {known['dr_grade']}"] if "dr_grade" in known else []
    words += [text for name, text in _FINDINGS.items() if known.get(name)]
    if not words:
        words = _absent_findings([text for name, text in _FINDINGS.items() if known.get(name) == 0])
    if all(known.get(name) == 0 for name in DISEASES):
        words = ["no findings"]
    if "eye_side" in known:
        words.insert(0, _SIDES.get(known["eye_side"], f"side {known['eye_side']}"))
    words += [text for name, text in _UNREADABLE.items() if known.get(name) == 0]
    own = {name: value for name, value in known.items() if name not in {"eye_side", *DISEASES, *READABLE}}
    words += [f"{name}={value}" for name, value in own.items() if value or not words]
    return ", ".join(words) or "readable"


def _absent_findings(names: Sequence[str]) -> list[str]:
    return [f"no {name}" for name in names] if len(names) <= _MAX_ABSENT else [f"{len(names)} findings absent"]
