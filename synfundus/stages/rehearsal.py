"""What a dry run opens: inputs and output folders, refused with the errors of the run; nothing is written.

No torch, except for the errors of a folder in which there is no model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synfundus.artifacts.latent_set import load_sources, open_latent_sets, require_flip
from synfundus.errors import ConfigError
from synfundus.labels.plan import Requests, plan_requests
from synfundus.labels.schema import LabelSchema
from synfundus.labels.unseen import check_unseen
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import ShardSet, load_shard_set

if TYPE_CHECKING:
    from synfundus.config.generation import SampleConfig

RUN_BESIDE = r"submissions(/.*)?"


def described(found: ShardSet) -> str:
    """Describe a set in a line."""
    return f"# {found.kind}\n{found.url}: {found.num_samples():,} samples, identity {found.identity[:12]}\n\n"


def has_autoencoder(url: str) -> bool:
    """Whether an autoencoder is in a folder."""
    places = (("export", "vae"), ("vae",), ())
    return any(filesystem.exists(filesystem.join(url, *place, "config.json")) for place in places)


def require_autoencoder(url: str) -> None:
    """Require an autoencoder in a folder.

    Raises:
        CheckpointError: There is none.
    """
    if not has_autoencoder(url):
        from synfundus.artifacts.autoencoder_folder import find_autoencoder

        find_autoencoder(url)


def require_model(url: str) -> str:
    """Return the document of a model.

    Raises:
        CheckpointError: There is none.
    """
    for place in (("export",), ()):
        if filesystem.exists(found := filesystem.join(url, *place, "synfundus.json")):
            return found
    from synfundus.artifacts.model_folder import find_pipeline

    return find_pipeline(url)


_OF_A_RUN = frozenset({"run.json", "metrics.jsonl", "checkpoints", "submissions"})


def is_run(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is a run, or one that has been submitted."""
    return not _OF_A_RUN.isdisjoint(names)


def require_run(url: str) -> None:
    """Require the folder of a run.

    Raises:
        ConfigError: There is no such folder, or something else in it.
    """
    if not filesystem.is_dir(url) or not is_run(filesystem.list_names(url)):
        hint = "--run-dir takes the folder of a run of train or train-vae"
        raise ConfigError("there is no run", where=url, hint=hint)


def open_inputs(inputs: Sequence[tuple[str, Sequence[str]]], *, flip: bool) -> str:
    """Open what options name, in their order, and describe the sets.

    Args:
        inputs: What each holds (`Option.holds`), and where.
        flip: Whether latents must have mirrored moments.

    Raises:
        SynfundusError: As the run.
    """
    given = dict(inputs)
    found: list[ShardSet] = []
    mixture = ""
    for holds, urls in inputs:
        if holds == "latents":
            sets = open_latent_sets(urls)
            require_flip(sets.combined, wanted=flip)
            found += sets.sets
            mixture += sets.shares_text()
            if "autoencoder" not in given:
                require_autoencoder(load_sources(sets.combined.url).autoencoder_url)
        elif holds == "images":
            found.append(load_shard_set(urls[0], kind="images"))
        else:
            {"autoencoder": require_autoencoder, "model": require_model, "run": require_run}[holds](urls[0])
    return "".join(map(described, found)) + (f"# mixture\n{mixture}\n\n" if mixture else "")


def require_sampler(sampler: str | None, model: Mapping[str, Any]) -> None:
    """Require a sampler that can draw from a model; only a flow is particular, and torch is needed to say so.

    Args:
        sampler: As configured; None for what the model recommends.
        model: Its document.

    Raises:
        ConfigError: It cannot.
    """
    if sampler is not None and model["schedule"]["prediction_type"] == "flow_velocity":
        from synfundus.diffusion.sampling import scheduler_for

        scheduler_for(sampler, model["schedule"])  # type: ignore[arg-type]


def read_model(url: str) -> documents.Document:
    """Return the document of a run or of an exported model.

    Raises:
        CheckpointError: There is none.
    """
    return documents.read_document(require_model(url), format_name="synfundus-pipeline", version=1)


def read_requests(section: SampleConfig, schema: LabelSchema) -> Requests:
    """Return the labels that `sample` is asked for.

    Raises:
        SynfundusError: See `plan_requests`.
    """
    return plan_requests(
        plan=None if section.labels is None else filesystem.read_bytes(section.labels),
        labels=section.label,
        num_images=section.num_images,
        schema=schema,
        where=section.labels or "sample.labels",
    )


def rehearse_sampling(section: SampleConfig) -> str:
    """Open a model and plan the labels of the images.

    Raises:
        SynfundusError: As the run.
    """
    model = str(section.model)
    document = read_model(model)
    require_sampler(section.sampler, document)
    requests = read_requests(section, LabelSchema.from_document(document["label_schema"], where=require_model(model)))
    where, training = section.labels or "sample.label", document.get("training") or {}
    doubts = check_unseen(requests, training, allowed=section.allow_unseen, where=where)
    told = "".join(f"warning: {doubt}\n" for doubt in doubts)
    return f"# images\n{len(requests.index):,} images of {model}\n{told}\n"
