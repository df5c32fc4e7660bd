"""The inputs of `synfundus prepare`, planned from table and folder before any photograph is read."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from synfundus.config.photographs import PrepareConfig
from synfundus.config.yaml_text import parse_yaml
from synfundus.errors import ConfigError, DataError, StorageError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, moved_values
from synfundus.photographs.crosswalk import withdrawal_token
from synfundus.photographs.importers import read_with_importer
from synfundus.photographs.importers.file_names import complete_names
from synfundus.photographs.ingest import Photograph, PlannedSample, Reject, match_files, plan_samples, sample_key
from synfundus.photographs.label_mapping import TableMapping, parse_table_mapping
from synfundus.photographs.label_table import LabelTable, read_label_table
from synfundus.photographs.preparation import CROP, FIRST_CROP
from synfundus.photographs.transforms import EYE_SIDE
from synfundus.stages.prepare.table_notes import early_warnings, is_misread, looks_like, no_input, passed_over
from synfundus.storage import documents, filesystem
from synfundus.storage.safe_files import is_hidden

_BYTES_PER_PIXEL = {"png": 1.7, "webp": 1.2}  # measured on photographs and phantoms, rounded up
_BYTES_PER_SAMPLE = 2048
_CHUNKS, _LEAST_CHUNK, _MOST_CHUNK = 64, 8, 256  # about so many, of at least and at most so many photographs


@dataclass(frozen=True)
class InputPlan:
    """Everything that is decided before the first photograph is read.

    Attributes:
        schema: Labels of the set.
        collection: Name of the collection.
        samples: Photographs to prepare, in table order.
        rejects: Inputs that are already rejected.
        num_inputs: Rows of the table + pictures without a row.
        properties: Properties for the manifest.
        warnings: Warnings for the user.
        same_person: Pairs of patient groups that the table gives for one photograph.
    """

    schema: LabelSchema
    collection: str
    samples: tuple[PlannedSample, ...]
    rejects: tuple[Reject, ...]
    num_inputs: int
    properties: dict[str, Any]
    warnings: tuple[str, ...]
    same_person: tuple[tuple[str, str], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the content of the set."""
        return str(self.properties["inputs_sha256"])

    @property
    def num_chunks(self) -> int:
        """Number of chunks, the units of work for ranks and for resuming."""
        return -(-len(self.samples) // self._chunk_samples)

    def chunk(self, number: int) -> tuple[PlannedSample, ...]:
        """Return the samples of a chunk."""
        return self.samples[number * self._chunk_samples : (number + 1) * self._chunk_samples]

    @property
    def _chunk_samples(self) -> int:
        """Depends only on the inputs, not on the number of ranks or processes."""
        return min(max(-(-len(self.samples) // _CHUNKS), _LEAST_CHUNK), _MOST_CHUNK)


def _read_text(url: str, what: str, key: str) -> str:
    """Read a small text file given by the user.

    Raises:
        ConfigError: It is missing or not UTF-8.
    """
    if not filesystem.exists(url) or filesystem.is_dir(url):
        raise ConfigError(f"the {what} does not exist: {url}", where=key)
    try:
        return filesystem.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {what} is not UTF-8 text: {url}", where=key) from error


def load_schema(url: str | None) -> LabelSchema:
    """Read a label schema, or return the default one.

    Raises:
        ConfigError: It is missing, or no label schema.
    """
    if url is None:
        return DEFAULT_LABEL_SCHEMA
    text = _read_text(url, "label schema", "prepare.label_schema")
    words: Any = parse_yaml(text, where=url)  # bounded, no duplicate keys; `no` and `yes` are text
    document = yaml.safe_load(text)
    for entry, plain in zip(document, words, strict=True) if isinstance(document, list) else ():
        if isinstance(entry, dict) and "values" in entry:
            entry["values"] = plain["values"]
    return LabelSchema.from_document(document, where=url)


def _load_mapping(url: str | None, schema: LabelSchema) -> TableMapping | None:
    if url is None:
        return None
    document = parse_yaml(_read_text(url, "mapping", "prepare.mapping"), where=url)
    return parse_table_mapping(document, schema, where=url)


def _read_table(section: PrepareConfig, schema: LabelSchema, files: Mapping[str, int]) -> LabelTable:
    """Read the label table, with an importer if one is given.

    Raises:
        ConfigError: It is missing, or the mapping or importer does not match.
        DataError: A table that cannot be read.
    """
    mapping = _load_mapping(section.mapping, schema)
    if moved := moved_values(schema, schema.names if section.importer else (EYE_SIDE,)):
        raise ConfigError(
            f"values have other numbers than here: {'; '.join(moved)}",
            where="prepare.label_schema",
            hint="number them as `synfundus config show label-schema` does, or give the label another name",
        )
    labels = section.labels
    if labels is not None and filesystem.is_dir(labels):
        raise ConfigError(f"the label table is a folder: {labels}", where="prepare.labels")
    if labels is not None and not filesystem.exists(labels):
        raise ConfigError(f"the label table does not exist: {labels}", where="prepare.labels")
    data = None if labels is None else filesystem.read_bytes(labels)
    where = labels or str(section.source)
    if section.importer is not None:
        return read_with_importer(
            section.importer, data, schema, files=files.keys(), where=where, name_sides=section.name_sides
        )
    guess = "" if mapping or data is None else looks_like(data, where=where)
    try:
        read = read_label_table(data or b"", schema, mapping, where=where, requested=section.allow_synthetic)
        table = complete_names(read, files.keys())
    except DataError as error:
        error.hint = guess or error.hint
        raise
    if guess and not (table.rows and table.mapping.labels):
        table = replace(table, warnings=(*table.warnings, f"no label is read from the table: {guess}"))
    return table


def _named(refusal: DataError, labels: str | None) -> DataError:
    """Return a refusal with the hint that the table is of a known set, if it is."""
    guess = looks_like(filesystem.read_bytes(labels), where=labels) if labels else ""
    refusal.hint = guess or refusal.hint
    return refusal


def samples_per_shard(section: PrepareConfig) -> int:
    """Return the maximum samples per shard, by number and estimated size."""
    size = section.image_size_px**2 * _BYTES_PER_PIXEL[section.image_format] + _BYTES_PER_SAMPLE
    return max(1, min(section.shard_max_samples, int(section.shard_max_bytes / size)))


def plan_inputs(
    section: PrepareConfig,
    *,
    source: str,
    compared_with: Sequence[str],
    open_secret: Callable[[], bytes],
    withdrawn: Callable[[], Mapping[str, Collection[str]]],
    seed: int,
) -> InputPlan:
    """Read table and folder and determine the inputs.

    Args:
        section: Options of `prepare`.
        source: Folder of the photographs.
        compared_with: Hashes of the sets to compare with.
        open_secret: Returns the secret for keys; called after everything has been read.
        withdrawn: Returns the tokens of patients who have withdrawn, with the keys of their photographs; called after
            the secret is there.
        seed: Seed of the split.

    Raises:
        ConfigError: A missing file or folder, a mapping that does not match.
        DataError: A table that cannot be read, of which most rows have no meaning, or no photographs.
    """
    schema = load_schema(section.label_schema)
    if not filesystem.is_dir(source):
        found = "is a file" if filesystem.exists(source) else "does not exist"
        raise ConfigError(f"the folder of photographs {found}: {source}", where="prepare.source")
    listed = filesystem.list_files(source, everything=True)
    files = {name: size for name, size in listed.items() if not is_hidden(name)}
    table = _read_table(section, schema, files)
    matched, rejects = match_files(table, files)
    if not matched or is_misread(table):
        place = section.labels or source
        refusal = no_input(table, rejects, files.keys(), usable=len(matched), importer=section.importer, where=place)
        raise refusal if section.mapping or section.importer else _named(refusal, section.labels)
    secret = open_secret()
    matched, rejects = _without_withdrawn(matched, rejects, secret, withdrawn())
    samples = tuple(plan_samples(matched, secret))
    properties: dict[str, Any] = {
        "image_size_px": section.image_size_px,
        "image_format": section.image_format,
        "crop": CROP,
        "max_pixels": section.max_pixels,
        "source": table.mapping.source,
        "importer": section.importer,
        "burned_text": section.burned_text,
        "near_duplicates": {"kept_together": section.near_duplicates, "compared_with": list(compared_with)},
        "splits": list(section.splits),
        "split_seed": seed,
        "num_inputs": len(matched) + len(rejects),
    }
    fixed = {**properties, "crop": FIRST_CROP} | ({"allow_synthetic": True} if section.allow_synthetic else {})
    properties["inputs_sha256"] = _fingerprint(schema, fixed, samples, rejects, secret)
    if _are_drawn(source):
        properties["drawn"] = True  # after the fingerprint: preparations that were begun before are resumed
    same_person = tuple(
        (sample.patient_group, f"patient:{other}")
        for photograph, sample in zip(matched, samples, strict=True)
        for other in photograph.also_patients
    )
    return InputPlan(
        schema=schema,
        collection=table.mapping.source,
        samples=samples,
        rejects=tuple(rejects),
        num_inputs=properties["num_inputs"],
        properties=properties,
        warnings=(
            *table.warnings,
            *early_warnings(table, rejects, properties["num_inputs"], files.keys()),
            *passed_over(listed),
        ),
        same_person=same_person,
    )


def _without_withdrawn(
    matched: list[Photograph], rejects: list[Reject], secret: bytes, withdrawn: Mapping[str, Collection[str]]
) -> tuple[list[Photograph], list[Reject]]:
    """Turn the inputs of patients who have withdrawn into rejects that name nobody: by patient, and by file."""
    keys = {key for theirs in withdrawn.values() for key in theirs}

    def left(one: Photograph | Reject) -> bool:
        if sample_key(secret, one.source) in keys:
            return False
        patients = (one.patient, *(one.also_patients if isinstance(one, Photograph) else ()))
        groups = [f"patient:{patient}" for patient in patients if patient] or [f"photograph:{one.source}"]
        return not any(withdrawal_token(secret, group) in withdrawn for group in groups)

    if not withdrawn:
        return matched, rejects
    kept = [one for one in matched if left(one)]
    others = [one for one in rejects if left(one)]
    number = len(matched) + len(rejects) - len(kept) - len(others)
    return kept, others + [Reject(f"withdrawn {at + 1}", "", "table", "withdrawn") for at in range(number)]


def _are_drawn(source: str) -> bool:
    """Whether a folder of photographs was drawn by `phantoms`."""
    url = filesystem.join(source, "phantoms.json")
    try:
        return bool(documents.read_document(url, format_name="synfundus-phantoms", version=1))
    except (DataError, StorageError):
        return False


def describe_inputs(section: PrepareConfig, *, seed: int) -> str:
    """Describe the inputs of a run, for a dry run. Writes nothing and reads no photographs.

    Raises:
        SynfundusError: As `plan_inputs`.
    """
    source = str(section.source)
    plan = plan_inputs(
        section, source=source, compared_with=(), open_secret=lambda: bytes(32), withdrawn=dict, seed=seed
    )
    patients = len({sample.patient_group for sample in plan.samples})
    reasons = sorted(Counter(reject.reason for reject in plan.rejects).items())
    rejects = ", ".join(f"{number} {reason}" for reason, number in reasons) or "none"
    return (
        f"# photographs\n{plan.num_inputs} inputs, {len(plan.samples)} of them photographs to read, of {patients} "
        f"patients\nrejects so far: {rejects}\n{plan.num_chunks} chunks for the ranks, shards of at most "
        f"{samples_per_shard(section)} images\n{''.join(f'warning: {text}' + chr(10) for text in plan.warnings)}\n"
    )


def _fingerprint(
    schema: LabelSchema,
    properties: dict[str, Any],
    samples: Sequence[PlannedSample],
    rejects: Sequence[Reject],
    secret: bytes,
) -> str:
    """Return a keyed hash of everything that determines the content of the set; it reveals no names or patients."""
    digest = hmac.new(secret, json.dumps([schema.to_document(), properties], sort_keys=True).encode(), hashlib.sha256)
    for sample in samples:
        row = [sample.key, sample.patient_group, dict(sample.labels), sample.size_bytes]
        digest.update(json.dumps(row, sort_keys=True).encode())
    for reject in rejects:
        digest.update(json.dumps(asdict(reject), sort_keys=True).encode())
    return digest.hexdigest()
