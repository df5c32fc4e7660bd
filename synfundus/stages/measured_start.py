"""Measurements before the first step of a training run: micro-batch that fits, faster memory layout, attention kernel.

The results are written to `machine.json` of the run, because all change rounding: a resumed run uses them again, and
ends with the same bits. The micro-batch is searched again on another number of ranks or another device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.auto import definite, definite_channels_last
from synfundus.config.machine import LaunchConfig
from synfundus.config.training import LoopConfig
from synfundus.distributed.agreement import on_rank_0, together
from synfundus.distributed.world import World, torch_device
from synfundus.models.attention import AttentionShape, apply_attention, fastest_attention, measure_attention
from synfundus.stages import build, training_setup
from synfundus.storage import documents, filesystem
from synfundus.telemetry.console import Console
from synfundus.training.memory.footprint import state_bytes
from synfundus.training.memory.measuring import MemoryBudget, find_micro_batch, measure_format, timed_images
from synfundus.training.memory.rehearsal import Rehearsal, budget_bytes

NAME = "machine.json"
FORMAT_NAME = "synfundus-machine"
FORMAT_VERSION = 1

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Rehearsed(Generic[N]):
    """The training to rehearse.

    Attributes:
        network: The network for the engine, on the CPU.
        make_step: Wraps it in a step module; the second argument is True for NHWC memory.
        draw: Returns a random batch of a given size, on the device.
        num_averages: Number of averages of the weights.
    """

    network: N
    make_step: Callable[[N, bool], nn.Module]
    draw: Callable[[int], Mapping[str, Tensor]]
    num_averages: int


def settle_loop(
    loop: LoopConfig,
    launch: LaunchConfig,
    rehearsed: Rehearsed[N],
    *,
    directory: RunFolder,
    world: World,
    console: Console,
    section: str,
) -> LoopConfig:
    """Return the loop section with a definite micro-batch and layout. Collective.

    Args:
        loop: As configured.
        launch: DeepSpeed file.
        rehearsed: The training; it is not changed.
        directory: The run, which stores the results.
        world: The job.
        console: Where the results are shown.
        section: Name of the loop section (``train_vae.loop``), for messages.

    Raises:
        ConfigError: Not even one image fits.
        DataError: The stored results are damaged.
    """
    if loop.micro_batch_size != "auto" and loop.channels_last != "auto":
        return loop
    search = _Search(loop, launch, rehearsed, directory=directory, world=world, console=console, section=section)
    try:
        return search.settle()
    finally:
        search.rehearsal.close()


class _Search:
    """One search; see `settle_loop`."""

    def __init__(
        self,
        loop: LoopConfig,
        launch: LaunchConfig,
        rehearsed: Rehearsed[Any],
        *,
        directory: RunFolder,
        world: World,
        console: Console,
        section: str,
    ) -> None:
        self._loop = loop
        self._launch = launch
        self._rehearsed = rehearsed
        self._url = directory.path(NAME)
        self._world = world
        self._console = console
        self._section = section
        self._device = torch_device(world)
        self.rehearsal = Rehearsal(
            rehearsed.network,
            make_step=rehearsed.make_step,
            draw=rehearsed.draw,
            device=self._device,
            dtype=build.torch_dtype(loop.precision),
            images_seen=loop.budget_images,
        )

    def settle(self) -> LoopConfig:
        """Use the stored results, measure the missing ones and store them. Collective."""
        remembered = on_rank_0(lambda: _read(self._url), self._world)
        known = dict(remembered)
        loop = self._loop
        layout = remembered_format(known.get("channels_last"))
        if loop.channels_last == "auto" and layout is not None:
            loop = loop.model_copy(update={"channels_last": layout})
            self._say(f"channels_last {'on' if layout else 'off'}")
        if loop.micro_batch_size == "auto":
            loop = self._settle_micro_batch(loop, known)
        if loop.channels_last == "auto":
            loop = self._settle_format(loop, known)
        if known != remembered:
            on_rank_0(lambda: _write(self._url, known), self._world)
        return loop

    def _say(self, what: str) -> None:
        self._console.message(f"{what}, as this run began with ({NAME})")

    def _settle_micro_batch(self, loop: LoopConfig, known: dict[str, Any]) -> LoopConfig:
        world = self._world
        share = training_setup.rank_share(loop, world.size)
        here = {"world_size": world.size, "device": on_rank_0(lambda: _device_name(self._device), world)}
        size = remembered_size(known.get("micro_batch"), here, share=share)
        if size is not None:
            self._say(f"micro-batch {size}")
            return loop.model_copy(update={"micro_batch_size": size})
        layouts = (True, False) if loop.channels_last == "auto" else (definite_channels_last(loop),)
        finding = find_micro_batch(
            share,
            peak=lambda size: self.rehearsal.peak_bytes(size, layouts),
            budget=MemoryBudget(
                bytes=budget_bytes(self._device, world),
                fixed_bytes=self._fixed_bytes(),
                careful=self._device.type == "cpu",
            ),
            world=world,
            where=f"{self._section}.micro_batch_size",
        )
        self._console.message(finding.describe())
        known["micro_batch"] = {**here, **asdict(finding)}
        return loop.model_copy(update={"micro_batch_size": finding.size})

    def _settle_format(self, loop: LoopConfig, known: dict[str, Any]) -> LoopConfig:
        """Measure on rank 0 while the others wait, so as not to disturb it. Collective."""
        most = training_setup.batch_plan(loop, self._world.size).micro_batch_size
        rehearsal = self.rehearsal

        def work() -> dict[str, Any]:
            images = most
            if self._device.type == "cpu":
                rehearsal.seconds(1, False)
                images = timed_images(most, one_image_s=rehearsal.seconds(1, False))
            choice = measure_format(lambda layout: rehearsal.seconds(images, layout))
            self._console.message(choice.describe())
            return {**asdict(choice), "images": images}

        measured = on_rank_0(work, self._world)
        known["channels_last"] = measured
        return loop.model_copy(update={"channels_last": bool(measured["channels_last"])})

    def _fixed_bytes(self) -> int:
        """Return the memory of the engine and the averages on this rank's device."""
        weight_bytes = 2 if definite(self._loop.precision) == "bf16" else 4
        parameters = self._rehearsed.network.parameters()
        states = state_bytes(
            parameters=sum(parameter.numel() for parameter in parameters),
            ranks=self._world.size,
            weight_bytes=weight_bytes,
            num_averages=self._rehearsed.num_averages,
        )
        zero = training_setup.ds_document(self._launch, self._world.device)["zero_optimization"]
        buckets = int(zero["reduce_bucket_size"]) * weight_bytes
        offloaded = zero.get("offload_optimizer", {}).get("device") == "cpu" and self._device.type == "cuda"
        return buckets + (states.weights if offloaded else states.total)


def settle_attention(
    backbone: nn.Module,
    loop: LoopConfig,
    launch: LaunchConfig,
    shapes: Sequence[AttentionShape],
    *,
    directory: RunFolder,
    world: World,
    console: Console,
) -> None:
    """Choose, install and report the attention kernel of a training, the same on all ranks. Collective.

    ``auto`` measures on a GPU, on the shapes of this run, unless the bits have to be the same every time.

    Args:
        backbone: The network.
        loop: Precision, micro-batch.
        launch: The configured kernel.
        shapes: Its attention layers, on rank 0.
        directory: The run, which stores the result.
        world: The job.
        console: Where the result is shown.

    Raises:
        ConfigError: On every rank when one cannot use the configured kernel.
    """
    device, dtype = torch_device(world), build.torch_dtype(loop.precision)
    shapes = on_rank_0(lambda: shapes, world)
    measures = launch.attention == "auto" and device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    if not measures or not shapes:
        build.attention(backbone, launch, dtype=dtype, world=world, console=console)
        return
    url, images = directory.path(NAME), loop.micro_batch_size
    known = on_rank_0(lambda: _read(url), world)
    stored = known.get("attention")
    with together(world):
        measured = measure_attention(
            shapes, batch_size=images if isinstance(images, int) else 8, dtype=dtype, device=device
        )
    choice = fastest_attention(
        world.all_gather(measured), stored=stored.get("backend") if isinstance(stored, dict) else None
    )
    apply_attention(backbone, choice)
    console.message(f"attention: {choice.backend} ({choice.reason})")
    found = {"backend": choice.backend, "device": _device_name(device), **asdict(measured)}
    on_rank_0(lambda: _write(url, {**known, "attention": found}), world)


def _read(url: str) -> dict[str, Any]:
    if not filesystem.exists(url):
        return {}
    document = documents.read_document(url, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    return {name: document[name] for name in ("micro_batch", "channels_last", "attention") if name in document}


def _write(url: str, known: Mapping[str, Any]) -> None:
    documents.write_document(url, known, format_name=FORMAT_NAME, version=FORMAT_VERSION)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def remembered_format(found: object) -> bool | None:
    """Return the stored layout of a run, None if it has to be measured.

    Args:
        found: The entry of `machine.json`.
    """
    layout = found.get("channels_last") if isinstance(found, dict) else None
    return layout if isinstance(layout, bool) else None


def remembered_size(found: object, here: Mapping[str, Any], *, share: int) -> int | None:
    """Return the stored micro-batch of a run, None if it has to be searched (again).

    Args:
        found: The entry of `machine.json`.
        here: Current world size and device.
        share: Images of a global batch on a rank.
    """
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in here.items()):
        return None
    size = found.get("size")
    return size if isinstance(size, int) and size > 0 and share % size == 0 else None
