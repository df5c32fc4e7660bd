"""Builds DeepSpeed's configuration from a ds_configs file and the run's values. Pure.

A ds_configs file holds settings of ZeRO and communication only. Batch, accumulation, precision and clipping are derived
here, and a file that sets them, or leaves anything at ``"auto"``, is refused: with two sources for
one number, training goes wrong silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from synfundus.errors import ConfigError

OWNED_KEYS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "fp16",
        "bf16",
        "amp",
        "torch_autocast",
        "optimizer",
        "scheduler",
        "steps_per_print",
        "timers",
    }
)
"""Keys this module derives."""

ALLOWED_KEYS = frozenset(
    {
        "zero_optimization",
        "data_types",
        "communication_data_type",
        "zero_force_ds_cpu_optimizer",
        "zero_allow_untested_optimizer",
        "prescale_gradients",
        "wall_clock_breakdown",
        "comms_logger",
        "comment",
    }
)
"""Keys a ds_configs file may hold."""

ALLOWED_ZERO_KEYS = frozenset(
    {
        "stage",
        "contiguous_gradients",
        "overlap_comm",
        "round_robin_gradients",
        "reduce_scatter",
        "use_multi_rank_bucket_allreduce",
        "reduce_bucket_size",
        "allgather_bucket_size",
        "allgather_partitions",
        "offload_optimizer",
    }
)
"""Keys its ``zero_optimization`` may hold; others belong to stage 3, or change what our partitions assume."""
_MUST_BE_OFF = {
    "overlap_comm": "it has corrupted gradients in several releases of DeepSpeed",
    "round_robin_gradients": "it orders the weights differently from checkpoints and exports",
}


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is split.

    Attributes:
        global_batch_size: Images per optimizer step over all ranks.
        micro_batch_size: Images per rank and forward pass.
        gradient_accumulation_steps: Forward passes per optimizer step.
        world_size: Ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    world_size: int


def plan_batch(*, global_batch_size: int, max_micro_batch_size: int, world_size: int) -> BatchPlan:
    """Split a global batch over ranks and accumulation steps.

    The micro-batch is the largest divisor of a rank's share that does not exceed ``max_micro_batch_size``.

    Raises:
        ConfigError: The global batch is not a multiple of the number of ranks.
    """
    if global_batch_size % world_size:
        below = global_batch_size // world_size * world_size
        nearest = [str(value) for value in (below, below + world_size) if value > 0]
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not a multiple of {world_size} ranks",
            hint=f"nearest: {' or '.join(nearest)}",
        )
    share = global_batch_size // world_size
    micro = next(size for size in range(min(share, max_micro_batch_size), 0, -1) if share % size == 0)
    return BatchPlan(global_batch_size, micro, share // micro, world_size)


def _refuse_auto(node: object, path: str) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            _refuse_auto(value, f"{path}.{key}" if path else str(key))
    elif node == "auto":
        raise ConfigError(f'{path} is "auto": DeepSpeed would drop it silently', hint="set a value or remove the key")


def _refuse_unknown(section: Mapping[str, Any], allowed: frozenset[str], name: str, where: str) -> None:
    unknown = sorted(set(section) - allowed)
    if unknown:
        hint = f"allowed: {', '.join(sorted(allowed))}"
        raise ConfigError(f"unknown keys in {name}: {', '.join(unknown)}", where=where, hint=hint)


def check_ds_file(document: object, *, where: str) -> dict[str, Any]:
    """Check the content of a ds_configs file.

    Raises:
        ConfigError: Not an object, derived or unknown keys, ``"auto"``, a ZeRO stage other than 2, buckets without a
            size, or a setting that would make the training wrong silently.
    """
    if not isinstance(document, dict):
        raise ConfigError("a DeepSpeed config is a JSON object", where=where)
    owned = sorted(OWNED_KEYS & set(document))
    if owned:
        raise ConfigError(
            f"a DeepSpeed config must not set {', '.join(owned)}: synfundus derives them",
            where=where,
            hint="use global_batch_size, micro_batch_size and precision of the loop section, and the optim section",
        )
    _refuse_unknown(document, ALLOWED_KEYS, "a DeepSpeed config", where)
    _refuse_auto(document, "")
    zero = document.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") != 2:
        raise ConfigError("zero_optimization.stage must be 2", where=where)
    _check_zero(zero, where)
    types = document.get("data_types", {})
    if not isinstance(types, dict) or types not in ({}, {"grad_accum_dtype": "fp32"}):
        raise ConfigError(
            f"data_types is {types!r}: gradients are accumulated in fp32",
            where=where,
            hint='remove the key, or set it to {"grad_accum_dtype": "fp32"}',
        )
    return document


def _check_zero(zero: Mapping[str, Any], where: str) -> None:
    _refuse_unknown(zero, ALLOWED_ZERO_KEYS, "zero_optimization", where)
    for key, reason in _MUST_BE_OFF.items():
        if zero.get(key, False) is not False:
            raise ConfigError(f"zero_optimization.{key} must be false: {reason}", where=where)
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        size = zero.get(key)
        if isinstance(size, bool) or not isinstance(size, int | float) or not 1 <= size < 2**53 or size != int(size):
            raise ConfigError(
                f"zero_optimization.{key} is {size!r}; it must be a number of elements above 0",
                where=where,
                hint="zero2.json uses 200000000 on GPUs, zero2_cpu.json less",
            )
        if key == "allgather_bucket_size" and size % 2:
            raise ConfigError(
                f"zero_optimization.{key} is {size:g}; DeepSpeed wants an even number",
                where=where,
                hint=f"take {int(size) + 1}",
            )
    offload = zero.get("offload_optimizer", {"device": "none"})
    if not isinstance(offload, dict) or offload.get("device") not in {"cpu", "none"}:
        raise ConfigError(
            f"zero_optimization.offload_optimizer is {offload!r}",
            where=where,
            hint='remove the key, or set it to {"device": "cpu"} as in zero2_offload.json',
        )


def build_ds_config(
    document: Mapping[str, Any], *, batch: BatchPlan, precision: Literal["fp32", "bf16"], max_grad_norm: float
) -> dict[str, Any]:
    """Return the dictionary for ``deepspeed.initialize``.

    Gradients are accumulated over micro-batches in fp32 whatever the precision of the weights (bf16 sums lose small
    terms). DeepSpeed sums them over ranks in the weights' precision, unless the file sets ``communication_data_type``.
    """
    config = {key: value for key, value in document.items() if key != "comment"}
    config.update(
        train_batch_size=batch.global_batch_size,
        train_micro_batch_size_per_gpu=batch.micro_batch_size,
        gradient_accumulation_steps=batch.gradient_accumulation_steps,
        gradient_clipping=max_grad_norm,
        steps_per_print=2**31 - 1,
        timers={"throughput": {"enabled": False, "synchronized": False}},  # they would synchronise the GPU
        zero_force_ds_cpu_optimizer=False,
        zero_allow_untested_optimizer=True,
    )
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32", **config.get("data_types", {})}
    return config
