"""`synfundus inspect` on the command line."""

from synfundus.stages.verb import Option, Verb

VERB = Verb(
    name="inspect",
    help="Look into a shard set: counts, labels, sizes, pictures; check every byte.",
    order=130,
    options=(
        Option("--data", "inspect.data", "Set of images, latents or samples.", required=True, role="input"),
        Option("--out", "inspect.out", "Folder for inspect.json and the contact sheet; default: none.", role="output"),
        Option("--verify", "inspect.verify", "Read every byte and compare every hash.", "flag"),
        Option("--images", "inspect.contact_sheet_images", "Images on the contact sheet; 0 draws none."),
    ),
    sections=("seed", "inspect", "storage"),
    results_on_stdout=True,
)
