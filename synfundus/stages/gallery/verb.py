"""`synfundus gallery` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.sample_sets import GalleryConfig


def _dry_run(section: GalleryConfig, seed: int) -> str:
    from synfundus.stages.gallery.job import rehearse

    del seed
    return rehearse(section)


def _compare(section: GalleryConfig, seed: int) -> None:
    from synfundus.stages.gallery.job import compare_claim

    del seed
    compare_claim(section)


VERB = Verb(
    name="gallery",
    help="Make a page on which to look through generated images.",
    order=416,
    example="synfundus gallery --samples samples --real images --out gallery",
    options=(
        Option(
            "--samples",
            "gallery.samples",
            "Images to show: a folder written by `sample`; also given as --set FOLDER.",
            required=True,
            role="input",
        ),
        Option(
            "--real",
            "gallery.real",
            "Image set (written by `prepare`) to show beside them.",
            role="input",
            holds="images",
        ),
        Option("--out", "gallery.out", "Folder of the gallery.", required=True, role="output", proof=("request.json",)),
        Option("--full-images", "gallery.full_images", "Copy every image as it is, too.", "flag"),
        Option("--workers", "gallery.workers", "Worker processes that shrink images; 0: the main process."),
    ),
    sections=("gallery", "storage"),
    dry_run=_dry_run,
    compare=_compare,
    closing=("open it in a browser, no server is needed: {out}/index.html",),
)
