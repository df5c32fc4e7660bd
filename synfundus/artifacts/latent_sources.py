"""Where the images and the autoencoder of a latent set lie.

Kept beside the manifest, not in it: the manifest's hash is the set's identity, and the same latents made from a copy of
the images in another place are the same latents, read in the same order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from synfundus.storage import documents, filesystem

SOURCES_NAME = "sources.json"
FORMAT_NAME = "synfundus-latent-sources"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LatentSources:
    """Locations as they were when the latents were encoded.

    Attributes:
        image_set_url: Folder of the image set.
        autoencoder_url: Run of train-vae, or folder of the autoencoder.
    """

    image_set_url: str
    autoencoder_url: str


def save_sources(latents_url: str, sources: LatentSources) -> None:
    """Write sources.json."""
    url = filesystem.join(latents_url, SOURCES_NAME)
    documents.write_document(url, asdict(sources), format_name=FORMAT_NAME, version=FORMAT_VERSION)


def load_sources(latents_url: str) -> LatentSources:
    """Read sources.json."""
    url = filesystem.join(latents_url, SOURCES_NAME)
    document = documents.read_document(url, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    return LatentSources(str(document["image_set_url"]), str(document["autoencoder_url"]))
