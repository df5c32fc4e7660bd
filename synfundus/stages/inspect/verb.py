"""`synfundus inspect` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.photographs import InspectConfig


def _dry_run(section: InspectConfig, seed: int) -> str:
    from synfundus.stages.inspect.job import check_out
    from synfundus.stages.inspect.png_folder import is_png_folder, open_png_folder
    from synfundus.stages.rehearsal import described
    from synfundus.storage.manifest import open_set

    del seed
    url = str(section.data)
    if is_png_folder(url):
        text = f"# samples\n{url}: {len(open_png_folder(url).rows):,} PNG files\n\n"
    else:
        text = described(open_set(url))
    if section.out is not None:
        check_out(section.out)
    return text


VERB = Verb(
    name="inspect",
    help="Show what a shard set holds: counts, labels, sizes, images; check every byte.",
    order=130,
    example="synfundus inspect --data images --out looked-at --verify",
    options=(
        Option("--data", "inspect.data", "Image set, latent set or sample set.", required=True, role="input"),
        Option("--out", "inspect.out", "Folder for inspect.json and the contact sheet; default: none.", role="output"),
        Option("--verify", "inspect.verify", "Read every byte and check every hash.", "flag"),
        Option("--images", "inspect.contact_sheet_images", "Images on the contact sheet; 0: none."),
    ),
    sections=("seed", "inspect", "storage"),
    results_on_stdout=True,
    dry_run=_dry_run,
)
