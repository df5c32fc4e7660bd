"""What `auto` resolves to: before anything can be measured, and once the device is known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import getitem
from typing import Literal

from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig, Precision
from synfundus.errors import ConfigError

WorkingPrecision = Literal["fp32", "bf16"]
WORKING_PRECISIONS: tuple[WorkingPrecision, ...] = ("fp32", "bf16")

PRECISION_KEYS = ("train_vae.loop.precision", "encode_latents.precision", "train.loop.precision", "sample.precision")
"""Every option that holds a precision."""


def working_precision(precision: Precision, *, native_bf16: bool) -> WorkingPrecision:
    """Return the precision of the computation.

    Args:
        precision: As configured.
        native_bf16: Whether the device has instructions for bf16. Without them bf16 still runs, on a CPU two to sixty
            times slower than fp32.
    """
    if precision == "auto":
        return "bf16" if native_bf16 else "fp32"
    return precision


def settle_precision(
    config: RunConfig, *, native_bf16: bool, begun: Mapping[str, WorkingPrecision] | None = None
) -> RunConfig:
    """Return the config with every precision resolved, as a run's identity records it.

    Args:
        config: As configured.
        native_bf16: Whether the device has instructions for bf16.
        begun: Options whose ``auto`` was resolved at the start: a resumed run keeps its precision on any node.
    """
    document = config.model_dump()
    for key in PRECISION_KEYS:
        *path, name = key.split(".")
        section = reduce(getitem, path, document)
        section[name] = (begun or {}).get(key, "auto") if section[name] == "auto" else section[name]
        section[name] = working_precision(section[name], native_bf16=native_bf16)
    return RunConfig.model_validate(document)


def slow_precisions(precisions: Mapping[str, object], *, sections: tuple[str, ...]) -> list[str]:
    """Return those of `PRECISION_KEYS`, in the given sections, that ask for bf16."""
    return [key for key, value in precisions.items() if value == "bf16" and key.partition(".")[0] in sections]


def definite(precision: Precision) -> WorkingPrecision:
    """Return a precision that must be resolved.

    Raises:
        ConfigError: It is still ``auto``: a program that starts a job has to choose.
    """
    if precision == "auto":
        raise ConfigError(
            "precision 'auto' is settled by the command line; a job started from a program needs bf16 or fp32",
            hint="use synfundus.config.auto.settle_precision",
        )
    return precision


def assumed_micro_batch(loop: LoopConfig) -> int:
    """Return the micro-batch size where nothing can be measured: for `auto` no limit."""
    return loop.global_batch_size if loop.micro_batch_size == "auto" else loop.micro_batch_size


def assumed_channels_last(loop: LoopConfig) -> bool:
    """Return whether the layout is NHWC where nothing can be measured: for `auto` it is."""
    return loop.channels_last is not False


def assumed_compile(loop: LoopConfig, *, device: Literal["cpu", "cuda"]) -> bool:
    """Return whether a run compiles, if the compiler works: ``auto`` does on a GPU."""
    return device == "cuda" if loop.compile == "auto" else loop.compile


def definite_micro_batch(loop: LoopConfig) -> int:
    """Return a micro-batch size that must be resolved.

    Raises:
        ConfigError: It is still ``auto``.
    """
    if loop.micro_batch_size == "auto":
        raise ConfigError("micro_batch_size 'auto' is settled when a training run starts; this needs a number")
    return loop.micro_batch_size


def definite_channels_last(loop: LoopConfig) -> bool:
    """Return a memory layout that must be resolved.

    Raises:
        ConfigError: It is still ``auto``.
    """
    if loop.channels_last == "auto":
        raise ConfigError("channels_last 'auto' is settled when a training run starts; this needs true or false")
    return loop.channels_last
