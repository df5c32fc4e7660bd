"""From image shards to latent shards: decode, encode, gather statistics, write.

On a CPU the bytes do not depend on the number of cores: the number of threads of an operation changes its last bits,
so each batch is computed by one thread, and several batches in parallel.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus.artifacts.shard_records import ShardRecords
from synfundus.config.generation import EncodeLatentsConfig
from synfundus.errors import CorruptShard, DataError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor
from synfundus.processes.daemon_threads import DaemonThreads
from synfundus.shards.members import META
from synfundus.shards.reader import ShardSetReader, encode_npy
from synfundus.shards.source import FLIPPED_MOMENTS, MOMENTS, ImageDecoder
from synfundus.storage import filesystem
from synfundus.storage.manifest import SPLITS, ShardEntry, ShardSet
from synfundus.storage.tarshard import write_shard
from synfundus.telemetry.console import Progress
from synfundus.training.staging import staging_for

_PASSING = frozenset({"missing", "unreadable"})
"""Kinds of rejects that may be temporary: such shards are read twice."""
_REQUESTS_AT_ONCE = 8
FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class EncodeTask:
    """One image shard to encode: its split, its number within the split, its entry."""

    split: str
    number: int
    entry: ShardEntry


@dataclass(frozen=True)
class _Batch:
    """Consecutive samples of a shard, on their way through the encoder.

    Attributes:
        task: The shard.
        samples: Their numbers within the shard.
        read: Key and members of each; an error where the shard is damaged there.
        last: Whether the shard ends with this batch.
    """

    task: EncodeTask
    samples: range
    read: list[tuple[str, dict[str, bytes]] | CorruptShard]
    last: bool


@dataclass(frozen=True)
class _Decoded:
    """A batch's readable samples, pixels uint8 ``[s, s, 3]`` each, and its unreadable samples."""

    keys: list[str]
    metas: list[bytes]
    states: list[NDArray[np.int16]]
    pixels: list[NDArray[np.uint8]]
    rejects: list[dict[str, str]]
    kinds: list[str]


@dataclass(frozen=True)
class _Encoded:
    """A batch's readable samples and their moments.

    Attributes:
        keys: Sample keys, ``[b]``.
        metas: Their JSON members, ``[b]``.
        states: Their label states, ``[b][k]``.
        moments: fp16 ``[b, 2c, lh, lw]``.
        mirrored: Moments of the mirrored images, if configured.
        rejects: The unreadable samples.
        kinds: Kind of each reject, one word.
    """

    keys: list[str]
    metas: list[bytes]
    states: list[NDArray[np.int16]]
    moments: NDArray[np.float16]
    mirrored: NDArray[np.float16] | None
    rejects: list[dict[str, str]]
    kinds: list[str]


@dataclass(frozen=True)
class Lanes:
    """Threads that compute batches: one per core on a CPU, where each also decodes its images; two for a GPU.

    Of those one waits for its moments while the other launches the next batch.

    Attributes:
        encoders: Run the autoencoder.
        decoders: Decode images for a GPU.
        depth: Maximum number of batches in flight.
    """

    encoders: ThreadPoolExecutor
    decoders: ThreadPoolExecutor | None
    depth: int


@contextmanager
def open_lanes(device: torch.device) -> Iterator[Lanes]:
    """Open the lanes; restores torch's number of threads at the end."""
    threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    count = threads if on_cpu else 2
    with (
        ThreadPoolExecutor(count, initializer=_begin_lane, initargs=(device,)) as encoders,
        ThreadPoolExecutor(threads) as decoders,
    ):
        try:
            yield Lanes(encoders, None if on_cpu else decoders, depth=count + 1 if on_cpu else threads + 2)
        finally:
            encoders.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _begin_lane(device: torch.device) -> None:
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # each thread has a current device of its own


class ShardEncoder:
    """Encodes image shards one after the other; the next shard is computed while one is written."""

    def __init__(
        self,
        section: EncodeLatentsConfig,
        image_set: ShardSet,
        autoencoder: LatentAutoencoder,
        records: ShardRecords,
        device: torch.device,
        lanes: Lanes,
    ) -> None:
        self._lanes = lanes
        self._batch_size = section.batch_size
        self._flip = section.flip
        self._max_bad_fraction = section.max_bad_fraction
        self._set = image_set
        self._autoencoder = autoencoder
        self._records = records
        self._stage = staging_for(device)
        self._launching: AbstractContextManager[object] = threading.Lock() if device.type == "cuda" else nullcontext()
        self._readers = _readers(image_set)
        self._decode_image = ImageDecoder(
            schema=image_set.label_schema, image_size_px=int(image_set.properties["image_size_px"])
        )

    def encode(self, tasks: Sequence[EncodeTask], bar: Progress) -> None:
        """Encode shards, except those with a record.

        Those with rejects are encoded again: missing images may exist now.

        Raises:
            DataError: More images are unusable than ``max_bad_fraction`` allows.
        """
        todo = []
        for task in tasks:
            record = self._records.read(task.entry.name)
            if record is None or record["rejects"]:
                todo.append(task)
            else:
                bar.advance(task.entry.num_samples)
        lost = self._encode_in_turn(todo, bar.advance)
        if lost:
            self._readers = _readers(self._set)  # new readers, without a memory of lost shards
            self._encode_in_turn(list(lost), lambda _: None, better_than=lost)

    def _encode_in_turn(
        self,
        tasks: list[EncodeTask],
        advance: Callable[[int], None],
        *,
        better_than: Mapping[EncodeTask, int] | None = None,
    ) -> dict[EncodeTask, int]:
        """Encode shards; returns those with rejects that may be temporary, and how many rejects they have.

        Args:
            tasks: The shards.
            advance: Called with the number of finished images.
            better_than: Rejects of the first pass: a shard is written only with fewer.
        """
        lost: dict[EncodeTask, int] = {}
        parts: list[_Encoded] = []
        damaged: list[dict[str, str]] = []
        with closing(self._batches(tasks)) as batches:
            for batch, encoded in self._encoded(batches):
                parts.append(encoded)
                advance(len(batch.samples))
                damaged += [
                    reject for reject, kind in zip(encoded.rejects, encoded.kinds, strict=True) if kind not in _PASSING
                ]
                if not batch.last:
                    continue
                num_rejects = sum(len(part.rejects) for part in parts)
                if better_than is None or num_rejects < better_than[batch.task]:
                    self._write(batch.task, parts)
                check_rejects(damaged, self._set, self._max_bad_fraction)  # counted again over all ranks at the end
                if any(_PASSING.intersection(part.kinds) for part in parts):
                    lost[batch.task] = num_rejects
                parts = []
        return lost

    def _write(self, task: EncodeTask, parts: list[_Encoded]) -> None:
        """Write a latent shard, then its record."""
        samples: list[tuple[str, dict[str, bytes]]] = []
        states = [row for part in parts for row in part.states]
        for part in parts:
            for row, key in enumerate(part.keys):
                members = {META: part.metas[row], MOMENTS: encode_npy(part.moments[row])}
                if part.mirrored is not None:
                    members[FLIPPED_MOMENTS] = encode_npy(part.mirrored[row])
                samples.append((key, members))
        extensions = (META, MOMENTS, FLIPPED_MOMENTS) if self._flip else (META, MOMENTS)
        files = write_shard(
            filesystem.join(self._records.out, task.entry.name),
            samples,
            extensions=extensions,
            states=np.reshape(states, (len(states), len(self._set.label_schema.labels))).astype(np.int16),
        )
        self._records.write(
            ShardEntry.of(task.entry.name, task.split, files),
            rejects=[reject for part in parts for reject in part.rejects],
            kinds=[kind for part in parts for kind in part.kinds],
            statistics=_statistics([part.moments for part in parts]),
        )

    def _batches(self, tasks: list[EncodeTask]) -> Generator[_Batch]:
        """Yield the shards' samples in order, as read; a shard without samples is one empty batch."""
        requests = DaemonThreads(_REQUESTS_AT_ONCE, name="images")
        each = map if filesystem.is_local(self._set.url) else requests.map
        try:
            for task in tasks:
                size, reader = task.entry.num_samples, self._readers[task.split]
                for first in range(0, max(1, size), self._batch_size):
                    samples = range(first, min(size, first + self._batch_size))
                    read = list(each(partial(_read, reader, task.number), samples))
                    yield _Batch(task, samples, read, last=samples.stop == size)
        finally:
            requests.close()
            for reader in self._readers.values():
                reader.close()

    def _encoded(self, batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, _Encoded]]:
        """Yield batches with their moments, in order; at most ``depth`` of them are in memory."""
        waiting: deque[tuple[_Batch, Future[_Encoded]]] = deque()
        for batch in batches:
            waiting.append((batch, self._submit(batch)))
            if len(waiting) > self._lanes.depth:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()

    def _submit(self, batch: _Batch) -> Future[_Encoded]:
        encoders, decoders = self._lanes.encoders, self._lanes.decoders
        if decoders is None:
            return encoders.submit(lambda: self._encode(self._decode(batch)))
        decoded = decoders.submit(self._decode, batch)
        return encoders.submit(lambda: self._encode(decoded.result()))

    def _decode(self, batch: _Batch) -> _Decoded:
        """Decode a batch's images; name those that cannot be decoded."""
        decoded = _Decoded([], [], [], [], [], [])
        for sample, read in zip(batch.samples, batch.read, strict=True):
            try:
                if isinstance(read, CorruptShard):
                    raise read
                key, members = read
                place = self._readers[batch.task.split].sample_name(batch.task.number, sample)
                arrays = self._decode_image(key, members, place)
            except CorruptShard as error:
                name = f"{batch.task.entry.name}#{sample}"
                decoded.rejects.append({"name": name, "stage": "encode", "reason": error.message})
                decoded.kinds.append(error.reason)
                continue
            decoded.keys.append(key)
            decoded.metas.append(members[META])
            decoded.states.append(arrays["states"].astype(np.int16))
            decoded.pixels.append(arrays["pixels"])
        return decoded

    @torch.no_grad()
    def _encode(self, decoded: _Decoded) -> _Encoded:
        """Encode a batch, in a thread of a lane, where gradients must be turned off again."""
        mirrored: NDArray[np.float16] | None
        if decoded.keys:
            pixels = np.stack(decoded.pixels)
            mirrored = self._moments(np.ascontiguousarray(pixels[:, :, ::-1])) if self._flip else None
            moments = self._moments(pixels)
        else:
            edge = int(self._set.properties["image_size_px"]) // self._autoencoder.downsample_factor
            moments = np.empty((0, 2 * self._autoencoder.latent_channels, edge, edge), dtype=np.float16)
            mirrored = moments if self._flip else None
        return _Encoded(decoded.keys, decoded.metas, decoded.states, moments, mirrored, decoded.rejects, decoded.kinds)

    def _moments(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return the moments of a batch in fp16.

        Raises:
            DataError: A value that fp16 cannot hold.
        """
        with self._launching:  # batches on a GPU one after the other, as its memory allows
            stored = self._stage({"pixels": pixels})["pixels"]
            moments = self._autoencoder.encode(pixels_to_tensor(stored))
            largest, halves = moments.abs().max(), moments.half()
        found: NDArray[np.float16] = halves.cpu().numpy()
        if not float(largest) <= FP16_MAX:  # neither is a NaN
            raise DataError(
                f"moments up to {float(largest):.3g} do not fit fp16",
                where=self._records.out,
                hint="the autoencoder has diverged",
            )
        return found


def _readers(image_set: ShardSet) -> dict[str, ShardSetReader]:
    return {split: ShardSetReader(image_set, split=split) for split in SPLITS}


def _read(reader: ShardSetReader, shard: int, sample: int) -> tuple[str, dict[str, bytes]] | CorruptShard:
    """Return key and members of a sample, or its problem."""
    try:
        return reader.read(shard, sample)
    except CorruptShard as error:
        return error


def check_rejects(rejects: Sequence[Mapping[str, str]], image_set: ShardSet, max_bad_fraction: float) -> None:
    """Stop when too many images are unusable, e.g. because a shard has not been copied yet.

    Raises:
        DataError: They exceed the limit.
    """
    total = image_set.num_samples()
    if len(rejects) > max_bad_fraction * total:
        raise DataError(
            f"{len(rejects)} of {total} images cannot be used, more than encode_latents.max_bad_fraction = "
            f"{max_bad_fraction:g}; the first, {rejects[0]['name']}: {rejects[0]['reason']}",
            where=image_set.url,
            hint="`synfundus inspect --verify` names the damage; after its repair the same command resumes, and reads "
            "shards with rejects again",
        )


def _statistics(moments: Sequence[NDArray[np.float16]]) -> dict[str, Any]:
    """Return float64 sums over stored moments ``[b, 2c, lh, lw]``: of means, their squares, variances ``[3, c]``."""
    count, sums = 0, np.zeros(())
    for batch in moments:
        mean, logvar = np.split(batch.astype(np.float64), 2, axis=1)
        axes = (0, 2, 3)
        count += mean.size // mean.shape[1]
        sums = sums + np.stack([mean.sum(axes), np.square(mean).sum(axes), np.exp(logvar).sum(axes)])
    return {"count": count, "sums": sums.tolist()}
