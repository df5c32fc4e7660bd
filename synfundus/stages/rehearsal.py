"""What a dry run opens: inputs and output folders, refused with the errors of the run; nothing is written.

No torch, except for the errors of a folder in which there is no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synfundus.errors import ConfigError
from synfundus.labels.plan import plan_labels
from synfundus.labels.schema import LabelSchema
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import holds_ours
from synfundus.storage.manifest import MANIFEST_NAME, SetKind, ShardSet, load_shard_set

RUN_BESIDE = r"submissions(/.*)?"


def open_set(url: str, kind: SetKind) -> str:
    """Open a set and describe it in a line.

    Raises:
        DataError: It is none, or of another kind.
    """
    return described(load_shard_set(url, kind=kind))


def described(found: ShardSet) -> str:
    """Describe a set in a line."""
    return f"# {found.kind}\n{found.url}: {found.num_samples():,} samples, identity {found.identity[:12]}\n\n"


def require_autoencoder(url: str) -> None:
    """Require an autoencoder in a folder.

    Raises:
        CheckpointError: There is none.
    """
    places = (("export", "vae"), ("vae",), ())
    if not any(filesystem.exists(filesystem.join(url, *place, "config.json")) for place in places):
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


def require_free(url: str | None, *proof: str, beside: str = "", flag: str = "--out") -> None:
    """Require that a folder to write holds nothing, or what the verb began there.

    Raises:
        ConfigError: It holds something else.
    """
    if url is not None:
        holds_ours(url, proof=proof, beside=beside, flag=flag)


def require_run(url: str) -> None:
    """Require the folder of a run.

    Raises:
        ConfigError: There is no such folder.
    """
    if not filesystem.is_dir(url):
        hint = "--run-dir takes the folder of a run of train or train-vae"
        raise ConfigError("there is no run", where=url, hint=hint)


def rehearse_train(latents: Sequence[str], *, vae: str | None, flip: bool, run_dir: str | None) -> str:
    """Open what `train` reads.

    Raises:
        SynfundusError: As the run.
    """
    from synfundus.artifacts.latent_set import load_sources, open_latent_sets, require_flip

    sets = open_latent_sets(latents)
    require_flip(sets.combined, wanted=flip)
    require_autoencoder(vae or load_sources(sets.combined.url).autoencoder_url)
    require_free(run_dir, "run.json", beside=RUN_BESIDE, flag="--run-dir")
    return "".join(described(one) for one in sets.sets)


def rehearse_encoding(data: str, vae: str, out: str | None) -> str:
    """Open what `encode-latents` reads.

    Raises:
        SynfundusError: As the run.
    """
    text = open_set(data, "images")
    require_autoencoder(vae)
    require_free(out, "request.json", MANIFEST_NAME)
    return text


def rehearse_sampling(
    model: str, plan: str | None, labels: Mapping[str, int | None], *, num_images: int | None, out: str | None
) -> str:
    """Open a model and plan the labels of the images.

    Raises:
        SynfundusError: As the run.
    """
    where = require_model(model)
    schema = LabelSchema.from_document(
        documents.read_document(where, format_name="synfundus-pipeline", version=1)["label_schema"], where=where
    )
    rows = plan_labels(
        plan=None if plan is None else filesystem.read_bytes(plan),
        labels=labels,
        num_images=num_images,
        schema=schema,
        where=plan or "sample.labels",
    )
    require_free(out, "request.json")
    return f"# images\n{len(rows):,} images of {model}\n\n"
