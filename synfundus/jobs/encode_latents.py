"""`synfundus encode-latents`: the separate pass that stores posterior moments.

One latent shard per image shard; a rank takes every W-th shard. A finished shard leaves a record with its hashes and
statistics, so a pass that was stopped goes on where it was, and the manifest is put together from the records in shard
order: the bytes do not depend on the number of ranks.

On a CPU they do not depend on the number of cores either: how many threads share an operation changes the last bits of
its result, so each batch is computed by one thread, and several batches side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus import __version__
from synfundus.config.schema import RunConfig
from synfundus.data.images import ImageDecoder
from synfundus.data.latents import FLIPPED_MOMENTS, META, MOMENTS
from synfundus.data.reader import ShardSetReader, encode_npy
from synfundus.distributed.world import World
from synfundus.errors import ConfigError, CorruptShard, DataError
from synfundus.jobs import Summary, build
from synfundus.jobs.codec_folder import find_codec, open_codec
from synfundus.jobs.latent_sources import LatentSources, save_sources
from synfundus.jobs.pixels import pixels_to_tensor
from synfundus.models.autoencoder import LatentCodec
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import (
    REJECTS_NAME,
    SPLITS,
    ShardEntry,
    ShardSet,
    is_complete,
    load_shard_set,
    save_shard_set,
)
from synfundus.storage.tarshard import write_shard
from synfundus.telemetry.console import Console, Progress

RECORD_FORMAT = "synfundus-latent-shard"
RECORD_VERSION = 1
FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Task:
    """One image shard to encode: its split, its number within the split, its entry."""

    split: str
    number: int
    entry: ShardEntry


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Encode every shard of an image set. Collective; resumes by itself.

    Returns:
        ``num_samples``, ``rejects``, ``latent_shape``, ``identity``.

    Raises:
        ConfigError: ``--out`` holds latents of something else; the message names both sides.
        DataError: Moments that fp16 cannot hold.
    """
    section = config.encode
    image_set = load_shard_set(build.require(section.data, flag="--data", key="encode.data"), kind="images")
    out = build.require(section.out, flag="--out", key="encode.out")
    folder = find_codec(build.require(section.vae, flag="--vae", key="encode.vae"))
    device, dtype = build.torch_device(world), build.torch_dtype(section.precision)
    codec, codec_fingerprint = open_codec(folder, device=device, dtype=dtype)
    build.attention(codec.autoencoder, config.launch, dtype=dtype, device=device, console=console)
    properties = _properties(config, image_set, codec, codec_fingerprint)
    complete = _claim(out, properties, world)
    if world.rank == 0:
        save_sources(out, LatentSources(image_set_url=image_set.url, autoencoder_url=str(section.vae)))
    if complete:
        console.message(f"latents are complete: {out}")
        return _summary(load_shard_set(out, kind="latents"))
    tasks = [
        _Task(split, number, entry) for split in SPLITS for number, entry in enumerate(image_set.split_shards(split))
    ]
    mine = tasks[world.rank :: world.size]
    with (
        _lanes(device) as lanes,
        console.progress("encoding", total=sum(task.entry.num_samples for task in mine), unit="images") as bar,
    ):
        _ShardEncoder(config, image_set, codec, out, device, lanes).encode(mine, bar)
    world.barrier()
    if world.rank == 0:
        _publish(out, tasks, image_set, properties, console)
    world.barrier()
    return _summary(load_shard_set(out, kind="latents"))


def _properties(config: RunConfig, image_set: ShardSet, codec: LatentCodec, fingerprint: str) -> dict[str, Any]:
    """Return what a latent set records about how it was made."""
    size = int(image_set.properties["image_size_px"])
    edge = size // codec.downsample_factor
    return {
        "autoencoder_fingerprint": fingerprint,
        "image_set_identity": image_set.identity,
        "image_size_px": size,
        "crop": image_set.properties.get("crop"),
        "input_range": [-1.0, 1.0],
        "flip": config.encode.flip,
        "dtype": "float16",
        "moments_shape": [2 * codec.latent_channels, edge, edge],
        "encoder_precision": config.encode.precision,
        "encoder_batch_size": config.encode.batch_size,
        "encoder_version": __version__,
    }


def _claim(out: str, properties: dict[str, Any], world: World) -> bool:
    """Make the folder ours; returns whether it is complete already. Collective."""
    problem, complete = "", False
    if world.rank == 0:
        request_url = filesystem.join(out, "request.json")
        wanted = documents.plain(properties)
        if is_complete(out):
            found = dict(load_shard_set(out, kind="latents").properties)
            complete = True
        elif filesystem.exists(request_url):
            found = documents.read_document(request_url, format_name=RECORD_FORMAT, version=RECORD_VERSION)
        else:
            found = wanted
            documents.write_document(request_url, wanted, format_name=RECORD_FORMAT, version=RECORD_VERSION)
        changed = [
            f"{key} is {found.get(key)!r} there, {wanted[key]!r} here"
            for key in wanted
            if found.get(key) != wanted[key]
        ]
        problem = "; ".join(changed)
    problem, complete = world.all_gather((problem, complete))[0]
    if problem:
        raise ConfigError(
            f"this folder holds latents of something else: {problem}", where=out, hint="use another --out"
        )
    return complete


@dataclass(frozen=True)
class _Batch:
    """Samples as they lie in a shard, on their way through the encoder.

    Attributes:
        task: The shard.
        samples: Their numbers within the shard.
        read: Key and members of each; an error where the shard is damaged there.
        last: Whether the shard ends with this batch.
    """

    task: _Task
    samples: range
    read: list[tuple[str, dict[str, bytes]] | CorruptShard]
    last: bool


@dataclass(frozen=True)
class _Decoded:
    """A batch's readable samples, pixels uint8 ``[s, s, 3]`` each, and the samples that could not be read."""

    keys: list[str]
    metas: list[bytes]
    pixels: list[NDArray[np.uint8]]
    rejects: list[dict[str, str]]


@dataclass(frozen=True)
class _Encoded:
    """A batch's readable samples and their moments.

    Attributes:
        keys: Sample keys, ``[b]``.
        metas: Their JSON members, ``[b]``.
        moments: fp16 ``[b, 2c, lh, lw]``.
        mirrored: The same of the mirrored images, where they are asked for.
        rejects: The samples that could not be read.
    """

    keys: list[str]
    metas: list[bytes]
    moments: NDArray[np.float16]
    mirrored: NDArray[np.float16] | None
    rejects: list[dict[str, str]]


@dataclass(frozen=True)
class _Lanes:
    """Threads that compute batches: one a core on a CPU, where each decodes its images too; one for a GPU.

    Attributes:
        encoders: Run the autoencoder.
        decoders: Decode images for a GPU meanwhile.
        depth: Batches that may be under way.
    """

    encoders: ThreadPoolExecutor
    decoders: ThreadPoolExecutor | None
    depth: int


@contextmanager
def _lanes(device: torch.device) -> Iterator[_Lanes]:
    """Open the lanes; torch's own threads are as before at the end."""
    threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    count = threads if on_cpu else 1
    with (
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as encoders,
        ThreadPoolExecutor(threads) as decoders,
    ):
        try:
            yield _Lanes(encoders, None if on_cpu else decoders, depth=count + 1 if on_cpu else threads + 2)
        finally:
            encoders.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


class _ShardEncoder:
    """Encodes image shards one after the other; the next one's batches are under way while a shard is written."""

    def __init__(
        self,
        config: RunConfig,
        image_set: ShardSet,
        codec: LatentCodec,
        out: str,
        device: torch.device,
        lanes: _Lanes,
    ) -> None:
        self._lanes = lanes
        self._batch_size = config.encode.batch_size
        self._flip = config.encode.flip
        self._set = image_set
        self._codec = codec
        self._out = out
        self._device = device
        self._readers = {split: ShardSetReader(image_set, split=split) for split in SPLITS}
        self._decode_image = ImageDecoder(
            schema=image_set.label_schema, image_size_px=int(image_set.properties["image_size_px"])
        )

    def encode(self, tasks: list[_Task], bar: Progress) -> None:
        """Encode shards, except those whose record says that they are done."""
        todo = []
        for task in tasks:
            if _read_record(self._out, task) is None:
                todo.append(task)
            else:
                bar.advance(task.entry.num_samples)
        parts: list[_Encoded] = []
        for batch, encoded in self._encoded(self._batches(todo)):
            parts.append(encoded)
            bar.advance(len(batch.samples))
            if batch.last:
                self._write(batch.task, parts)
                parts = []

    def _write(self, task: _Task, parts: list[_Encoded]) -> None:
        """Write a latent shard, then the record that says so."""
        statistics = _Statistics(self._codec.latent_channels)
        samples: list[tuple[str, dict[str, bytes]]] = []
        for part in parts:
            statistics.add(part.moments)
            for row, key in enumerate(part.keys):
                members = {META: part.metas[row], MOMENTS: encode_npy(part.moments[row])}
                if part.mirrored is not None:
                    members[FLIPPED_MOMENTS] = encode_npy(part.mirrored[row])
                samples.append((key, members))
        extensions = (META, MOMENTS, FLIPPED_MOMENTS) if self._flip else (META, MOMENTS)
        files = write_shard(filesystem.join(self._out, task.entry.name), samples, extensions=extensions)
        record = {
            "entry": asdict(ShardEntry.of(task.entry.name, task.split, files)),
            "rejects": [reject for part in parts for reject in part.rejects],
            "statistics": statistics.to_document(),
        }
        documents.write_document(
            _record_url(self._out, task), record, format_name=RECORD_FORMAT, version=RECORD_VERSION
        )

    def _batches(self, tasks: list[_Task]) -> Iterator[_Batch]:
        """Yield the shards' samples in order, as read; a shard without samples is one empty batch."""
        for task in tasks:
            size, reader = task.entry.num_samples, self._readers[task.split]
            for first in range(0, max(1, size), self._batch_size):
                samples = range(first, min(size, first + self._batch_size))
                read: list[tuple[str, dict[str, bytes]] | CorruptShard] = []
                for sample in samples:
                    try:
                        read.append(reader.read(task.number, sample))
                    except CorruptShard as error:
                        read.append(error)
                yield _Batch(task, samples, read, last=samples.stop == size)

    def _encoded(self, batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, _Encoded]]:
        """Yield batches with their moments, in order; no more than the lanes can take are held in memory."""
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
        """Decode a batch's images; name those that cannot be."""
        decoded = _Decoded([], [], [], [])
        for sample, read in zip(batch.samples, batch.read, strict=True):
            try:
                if isinstance(read, CorruptShard):
                    raise read
                key, members = read
                place = self._readers[batch.task.split].place_name(batch.task.number, sample)
                pixels = self._decode_image(key, members, place)["pixels"]
            except CorruptShard as error:
                name = f"{batch.task.entry.name}#{sample}"
                decoded.rejects.append({"name": name, "stage": "encode", "reason": error.message})
                continue
            decoded.keys.append(key)
            decoded.metas.append(members[META])
            decoded.pixels.append(pixels)
        return decoded

    @torch.no_grad()
    def _encode(self, decoded: _Decoded) -> _Encoded:
        """Encode a batch; runs in a lane, where gradients have to be turned off again."""
        if not decoded.keys:
            edge = int(self._set.properties["image_size_px"]) // self._codec.downsample_factor
            nothing = np.empty((0, 2 * self._codec.latent_channels, edge, edge), dtype=np.float16)
            return _Encoded([], [], nothing, nothing if self._flip else None, decoded.rejects)
        pixels = np.stack(decoded.pixels)
        mirrored = self._moments(np.ascontiguousarray(pixels[:, :, ::-1])) if self._flip else None
        return _Encoded(decoded.keys, decoded.metas, self._moments(pixels), mirrored, decoded.rejects)

    def _moments(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return the moments of a batch in fp16.

        Raises:
            DataError: A value that fp16 cannot hold.
        """
        moments = self._codec.encode(pixels_to_tensor(pixels).to(self._device)).float().cpu().numpy()
        if not np.isfinite(moments).all() or np.abs(moments).max() > FP16_MAX:
            raise DataError(
                f"moments up to {np.abs(moments).max():.3g} do not fit fp16", hint="the autoencoder has diverged"
            )
        return moments.astype(np.float16)


class _Statistics:
    """Sums over the moments of a shard, per channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = np.zeros((3, channels), dtype=np.float64)

    def add(self, moments: NDArray[np.float16]) -> None:
        """Add a batch of stored moments ``[b, 2c, lh, lw]``."""
        mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
        axes = (0, 2, 3)
        self.count += mean.shape[0] * mean.shape[2] * mean.shape[3]
        self.sums += np.stack([mean.sum(axes), np.square(mean).sum(axes), np.exp(logvar).sum(axes)])

    def to_document(self) -> dict[str, Any]:
        """Return count, sum of means, sum of squared means, sum of variances."""
        return {"count": self.count, "sums": self.sums.tolist()}


def _record_url(out: str, task: _Task) -> str:
    return filesystem.join(out, task.entry.name.removesuffix(".tar") + ".done.json")


def _read_record(out: str, task: _Task) -> dict[str, Any] | None:
    """Return the record of a finished shard; None if it is not finished or its tar has another size."""
    url = _record_url(out, task)
    if not filesystem.exists(url):
        return None
    record = documents.read_document(url, format_name=RECORD_FORMAT, version=RECORD_VERSION)
    tar = filesystem.join(out, task.entry.name)
    if not filesystem.exists(tar) or filesystem.file_size(tar) != record["entry"]["bytes"]:
        return None
    return record


def _channel_statistics(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Combine the train shards' sums into mean and standard deviation of the latents, sampling noise included."""
    train = [record["statistics"] for record in records if record["entry"]["split"] == "train"]
    count = sum(statistics["count"] for statistics in train)
    if count == 0:
        raise DataError("the train split holds no readable image")
    first, second, variance = np.sum([np.asarray(statistics["sums"]) for statistics in train], axis=0) / count
    return {
        "latent_mean": first.tolist(),
        "latent_std": np.sqrt(np.maximum(second - first**2 + variance, 1e-12)).tolist(),
    }


def _publish(out: str, tasks: list[_Task], image_set: ShardSet, properties: dict[str, Any], console: Console) -> None:
    """Put the manifest together, check that in = out + rejects, publish, clean up."""
    records = []
    for task in tasks:
        record = _read_record(out, task)
        if record is None:
            raise DataError(f"shard {task.entry.name} was not encoded", where=out, hint="run the command again")
        records.append(record)
    rejects = [reject for record in records for reject in record["rejects"]]
    entries = tuple(ShardEntry(**record["entry"]) for record in records)
    encoded = sum(entry.num_samples for entry in entries)
    if encoded + len(rejects) != image_set.num_samples():
        raise DataError(
            f"{encoded} encoded + {len(rejects)} rejected is not {image_set.num_samples()} images", where=out
        )
    documents.write_lines(filesystem.join(out, REJECTS_NAME), rejects)
    save_shard_set(
        ShardSet(
            url=out,
            kind="latents",
            label_schema=image_set.label_schema,
            shards=entries,
            rejects={"damaged": len(rejects)} if rejects else {},
            properties={**properties, **_channel_statistics(records)},
        )
    )
    for task in tasks:
        filesystem.remove(_record_url(out, task))
    filesystem.remove(filesystem.join(out, "request.json"))
    console.message(f"{encoded:,} images encoded, {len(rejects)} rejected; latents in {out}")


def _summary(latents: ShardSet) -> Summary:
    return {
        "num_samples": latents.num_samples(),
        "rejects": dict(latents.rejects),
        "moments_shape": latents.properties["moments_shape"],
        "identity": latents.identity,
    }
