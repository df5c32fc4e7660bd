"""The loop that generates a set: all ranks take parts one by one, draw them, compress them and write them.

Image ``i`` depends on the model, the seed, ``i``, its labels and the sampler. Rounding may depend on the batch that a
network computes at once, so image ``i`` is always slot ``i % B`` of batch ``i // B``, the last one padded. On a CPU, B
is constant; on a GPU it is ``sample.batch_size``. So neither the ranks nor their number, nor a stop, changes a byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus.artifacts.model import Model, generate_again, generate_batch
from synfundus.artifacts.samples.description import image_marks
from synfundus.artifacts.samples.stores import SampleStore
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.shared_work import SharedWork, share_work
from synfundus.distributed.world import World, without_timeout
from synfundus.errors import StorageError
from synfundus.evaluation.examination.ledger import Check, next_attempt
from synfundus.labels.plan import LabelRow
from synfundus.pictures.sheets import encode_png
from synfundus.stages.sample.checking import Inspector, marks_of, write_checks
from synfundus.telemetry.console import Console, Progress

COMPRESS_LEVEL = 6
_PART, _DONE = "part", "images"
_MOST_TRIES = 3


@dataclass(frozen=True)
class Work:
    """All that a rank needs to generate images.

    Attributes:
        sampling: Sampler, steps, guidance.
        seed: Seed of the noise.
        pipeline: The model.
        rows: Labels of every image.
        batch_size: Slots of a batch.
        store: Where images go.
        device: Where to compute.
        guide: The model to lead away from.
        inspector: What looks at images; None: nothing does.
        out: The folder.
    """

    sampling: SamplerSettings
    seed: int
    pipeline: Model
    rows: Sequence[LabelRow]
    batch_size: int
    store: SampleStore
    device: torch.device
    guide: Model | None
    inspector: Inspector | None
    out: str


def generate(work: Work, world: World, console: Console) -> int:
    """Generate what is missing; returns how many images were there. Collective.

    A part is compressed and written while the next one is drawn.

    Raises:
        StorageError: The disk or the store failed; what is written is kept.
    """
    parts = work.store.parts()
    standing = on_rank_0(work.store.standing, world)
    there = set(standing.finished)
    missing = [number for number in range(len(parts)) if number not in there]
    num_kept = sum(len(parts[number]) for number in there)
    at_the_end = without_timeout(world)
    shared = share_work(world)
    with (
        ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="png") as encoders,
        ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
        console.progress("sampling", total=len(work.rows), unit="images", start=num_kept) as bar,
    ):
        line = _Line(work, parts, Counter(map(work.store.shard_of, missing)), shared, encoders, console, bar)
        while (turn := shared.take("shard")) < len(standing.unmerged):
            line.merge(standing.unmerged[turn])
        unwritten: Future[int] | None = None
        while (turn := shared.take(_PART)) < len(missing):
            drawn = _look(work, parts[missing[turn]], _draw(work, parts[missing[turn]]))
            if unwritten is not None:
                line.finish(unwritten.result())
            unwritten = writer.submit(line.write, missing[turn], drawn)
        if unwritten is not None:
            line.finish(unwritten.result())
        with shared.watched(_DONE, line.show):
            at_the_end.barrier()
    return num_kept


@dataclass
class _Line:
    """What happens to a part behind the network.

    Attributes:
        work: What is generated.
        parts: Images of each part.
        awaited: By shard, how many of its parts were missing at the start.
        shared: Counts of all ranks.
        encoders: Threads that compress.
        console: Where damage is shown.
        bar: Progress of all ranks.
    """

    work: Work
    parts: Sequence[range]
    awaited: Counter[str]
    shared: SharedWork
    encoders: ThreadPoolExecutor
    console: Console
    bar: Progress
    shown: int = field(default=0, init=False)

    def write(self, part: int, drawn: _Drawn) -> int:
        """Compress and write a part; returns its number."""
        images = self.parts[part]
        encoded = self.encoders.map(lambda slot: _encode(self.work, images, drawn, slot), range(len(images)))
        if drawn.checks:
            write_checks(self.work.out, drawn.checks)
        self.work.store.write(list(zip(images, encoded, strict=True)))
        return part

    def finish(self, part: int) -> None:
        """Count a written part, and merge its shard if it was the last one."""
        self.show(self.shared.add(_DONE, len(self.parts[part])))
        shard = self.work.store.shard_of(part)
        if shard and self.shared.add(shard, 1) == self.awaited[shard]:
            self.merge(shard)

    def merge(self, shard: str) -> None:
        """Merge a shard; parts of it that are damaged are drawn again.

        Raises:
            StorageError: They are damaged again, each time they are read.
        """
        for _ in range(_MOST_TRIES):
            if not (damaged := self.work.store.merge(shard)):
                return
            named = ", ".join(f"{self.parts[part][0]} to {self.parts[part][-1]}" for part in damaged)
            self.console.warning(f"damaged on the disk before they were merged into {shard}: images {named}; redrawn")
            for part in damaged:
                images = self.parts[part]
                self.write(part, _look(self.work, images, _draw(self.work, images)))
        raise StorageError(
            f"images of {shard} are damaged each time they are read back",
            where=shard,
            hint="check the disk or the store",
        )

    def show(self, done: int) -> None:
        """Show how many images all ranks have written since the start."""
        self.bar.advance(done - self.shown)
        self.shown = done


def _draw(work: Work, images: range) -> NDArray[np.uint8]:
    """Return all slots of the batch of a part ``[B, h, w, 3]``."""
    return generate_batch(
        work.pipeline,
        work.rows,
        images[0] // work.batch_size,
        batch_size=work.batch_size,
        seed=work.seed,
        settings=work.sampling,
        device=work.device,
        guide=work.guide,
    )


@dataclass(frozen=True)
class _Drawn:
    """Images of a part ``[n, h, w, 3]``, and what was seen of each; nothing where nobody looks."""

    pixels: NDArray[np.uint8]
    checks: tuple[Check, ...] = ()


def _look(work: Work, images: range, pixels: NDArray[np.uint8]) -> _Drawn:
    """Look at the images of a part, and draw again what fails."""
    if work.inspector is None:
        return _Drawn(pixels[: len(images)])
    rows, kept, checks = [work.rows[image] for image in images], pixels[: len(images)].copy(), []
    for slot, (image, seen) in enumerate(zip(images, work.inspector.look(kept, rows), strict=True)):
        check = Check(image, 0, work.seed, seen)
        while (attempt := next_attempt(check, work.inspector.most_redraws)) is not None:
            kept[slot] = generate_again(
                work.pipeline,
                work.rows,
                image,
                attempt,
                seed=work.seed,
                settings=work.sampling,
                device=work.device,
                guide=work.guide,
            )
            refused = (*check.refused, check.examination.faults)
            (again,) = work.inspector.look(kept[slot : slot + 1], rows[slot : slot + 1])
            check = Check(image, attempt, work.seed, again, refused)
        checks.append(check)
    return _Drawn(kept, tuple(checks))


def _encode(work: Work, images: range, drawn: _Drawn, slot: int) -> bytes:
    image = images[slot]
    marks = image_marks(model=work.pipeline.fingerprint, seed=work.seed, index=image, labels=work.rows[image])
    more = marks_of(drawn.checks[slot]) if drawn.checks else {}
    return encode_png(drawn.pixels[slot], text=marks | more, compress_level=COMPRESS_LEVEL)
