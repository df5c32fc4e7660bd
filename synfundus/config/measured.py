"""Options that say `auto` and are measured when a run starts: what stands for them before, and afterwards."""

from __future__ import annotations

from synfundus.config.training import LoopConfig
from synfundus.errors import ConfigError


def assumed_micro_batch(loop: LoopConfig) -> int:
    """Return the most images per rank and forward pass, where nothing can be measured: for `auto` no limit."""
    return loop.global_batch_size if loop.micro_batch_size == "auto" else loop.micro_batch_size


def assumed_channels_last(loop: LoopConfig) -> bool:
    """Return whether memory is NHWC, where nothing can be measured: for `auto` it is."""
    return loop.channels_last is not False


def definite_micro_batch(loop: LoopConfig) -> int:
    """Return a micro-batch that is settled.

    Raises:
        ConfigError: It is not.
    """
    if loop.micro_batch_size == "auto":
        raise ConfigError("micro_batch_size 'auto' is settled when a training run starts; this needs a number")
    return loop.micro_batch_size


def definite_channels_last(loop: LoopConfig) -> bool:
    """Return a memory layout that is settled.

    Raises:
        ConfigError: It is not.
    """
    if loop.channels_last == "auto":
        raise ConfigError("channels_last 'auto' is settled when a training run starts; this needs true or false")
    return loop.channels_last
