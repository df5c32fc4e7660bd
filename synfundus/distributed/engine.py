"""DeepSpeed's ZeRO-2 engine with the interface a trainer needs: forward, backward, step, partitions.

The only module that imports deepspeed. One process on a CPU is a DeepSpeed world of one over gloo; there is no second
engine (ADR-0002). State is exposed as flat fp32 partitions; `training.checkpoints` writes and reads the files.

ZeRO-2 does work per tensor in every step, whatever its size, and a U-Net has hundreds of biases and norm scales: for a
small one on a CPU that took a fifth of a step. So consecutive parameters of an optimizer group share one flat parameter
up to a limit, a bundle; the module computes with views of it, and autograd joins their gradients in one copy. A tensor
above the limit is a bundle by itself, so that gradients are still reduced and freed in pieces during the backward pass.
The flat vector that ZeRO-2 partitions is the same, element by element, as without bundles.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from synfundus.distributed.flat_layout import FlatLayout, flatten, gather_named, unflatten
from synfundus.distributed.world import World, torch_device
from synfundus.errors import Interrupted, LaunchError

MOMENT_NAMES = ("exp_avg", "exp_avg_sq")
MOST_BUNDLED = 2**20
"""Most elements of a bundle of several parameters."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did.

    Attributes:
        grad_norm: Global norm of the gradient before clipping.
        skipped: The gradient was not finite, so the weights were not updated.
    """

    grad_norm: float
    skipped: bool


def _import_deepspeed(device: str) -> Any:  # noqa: ANN401 - deepspeed is untyped
    """Import deepspeed so that nothing is compiled at start-up and the logs stay quiet.

    On a CPU deepspeed would build a shared-memory extension on first use: this needs a compiler, takes a minute, and a
    kill during the build leaves a lock that every later start waits on. Marking it as unavailable avoids all of that.
    """
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    # a deprecation inside deepspeed that its users can do nothing about
    warnings.filterwarnings("ignore", message=".*_into_tensor.*is deprecated", category=FutureWarning)
    import deepspeed
    import deepspeed.ops

    _import_muon_uncompiled()
    if device == "cpu":  # a query would probe every extension, which on a GPU starts compilers and prints
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextmanager
def _timeout_of_job() -> Iterator[None]:
    """Give the process groups made inside the block the timeout of the job's own instead of torch's 30 minutes."""
    before = set(distributed_c10d._world.pg_map)
    yield
    own: Any = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    for group in set(distributed_c10d._world.pg_map) - before:
        distributed_c10d._set_pg_timeout(own.options._timeout, group)


def _import_muon_uncompiled() -> None:
    """Import deepspeed's Muon optimizer, which deepspeed imports with any optimizer, without torch's compiler.

    Its functions are decorated with `torch.compile`, which loads inductor (1.3 to 2 s and 45 MB a rank) for an
    optimizer that is not used here. While dynamo is disabled the decorator leaves the functions as they are.
    """
    previous = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    except ImportError:  # another deepspeed may keep it elsewhere
        pass
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if previous is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = previous


class ZeroEngine:
    """A module under ZeRO-2.

    Collective: all ranks build, step and save it together.

    Args:
        module: The module to train; its forward returns ``(loss, metrics)``.
        groups: Optimizer groups as lists of (name, parameter); together all trainable parameters.
        weight_decays: Decay of each group.
        ds_config: Dictionary from `ds_config.build_ds_config`.
        world: The job.
        lr: Initial learning rate; `step` sets it.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        channels_last: Keep the weights of convolutions in NHWC order, as a GPU's kernels want them.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        groups: Sequence[Sequence[tuple[str, nn.Parameter]]],
        weight_decays: Sequence[float],
        ds_config: Mapping[str, Any],
        world: World,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        channels_last: bool = False,
    ) -> None:
        deepspeed = _import_deepspeed(world.device)
        # deepspeed requires this variable and uses it as the index of the GPU
        os.environ["LOCAL_RANK"] = str(torch_device(world).index if world.device == "cuda" else world.local_rank)
        self._world = world
        shapes = [[(name, p.shape) for name, p in group] for group in groups]
        convolutions = {name for group in shapes for name, shape in group if len(shape) == 4}
        self.layout = FlatLayout.of(shapes, channels_last=convolutions if channels_last else ())
        # ZeRO builds its fp32 masters from weights already cast to bf16; keep the digits this would lose
        exact = {name: p.detach().to("cpu", torch.float32, copy=True) for group in groups for name, p in group}
        if ds_config.get("bf16", {}).get("enabled"):
            module.bfloat16()  # deepspeed casts what it sees, and it sees the bundles
        limit = min(MOST_BUNDLED, int(ds_config["zero_optimization"]["reduce_bucket_size"]))
        self._bundled = BundledModule(module, groups, max_elements=limit, channels_last=channels_last)
        optimizer = torch.optim.AdamW(
            [
                {"params": bundles, "weight_decay": decay}
                for bundles, decay in zip(self._bundled.groups, weight_decays, strict=True)
            ],
            lr=lr,
            betas=betas,
            eps=eps,
            fused=True,
        )
        deepspeed.init_distributed(
            dist_backend="nccl" if world.device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
        )
        with _timeout_of_job():
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=self._bundled, optimizer=optimizer, config=dict(ds_config), dist_init_required=False
            )
        self._check_internals(deepspeed)
        self._wait_once_for_the_norm()
        self.load_named(exact)
        self._bundled.bind()  # frees the memory of the original parameters

    def _check_internals(self, deepspeed: Any) -> None:  # noqa: ANN401
        """Check that the internals of ZeRO used here look as in the pinned version."""
        masters = self._zero.single_partition_of_fp32_groups
        expected = [group.partition_size(self._world.size) for group in self.layout.groups]
        found = [int(master.numel()) for master in masters]
        if expected != found:
            raise LaunchError(
                f"deepspeed {deepspeed.__version__} partitions the parameters differently than expected "
                f"({found} instead of {expected} elements a rank)",
                hint="install the pinned deepspeed version",
            )

    def _wait_once_for_the_norm(self) -> None:
        """Let the norm alone say whether gradients are finite, as it does, and bring it to the host in one copy."""
        norm_on_device = self._zero.scaled_global_norm
        self._zero.scaled_global_norm = lambda *given, **named: norm_on_device(*given, **named).cpu()
        if self._zero.compute_grad_norm and not self._zero.cpu_offload:
            self._zero.check_overflow = lambda *_, **__: None  # else reads all gradients once more

    @property
    def optimizer_name(self) -> str:
        """Class name of the optimizer in use (``DeepSpeedZeroOptimizer``)."""
        return type(self._zero).__name__

    @property
    def update_name(self) -> str:
        """The optimizer that updates the masters, and where they are if not on the device (``fused AdamW``)."""
        inner = self._zero.optimizer
        kind = "fused " if inner.defaults.get("fused") else ""
        elsewhere = self.masters()[0].device.type != self._world.device
        return f"{kind}{type(inner).__name__}{' in host memory' if elsewhere else ''}"

    @property
    def zero_stage(self) -> int:
        """ZeRO stage in force."""
        return int(self._engine.zero_optimization_stage())

    @property
    def module(self) -> nn.Module:
        """The module; its weights are in the working precision."""
        return self._bundled.module

    def forward(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the module returns
        """Run the module."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient; the engine averages over micro-batches."""
        self._engine.backward(loss)

    def step(self, *, lr: float) -> StepResult | None:
        """Finish a micro-batch; after the last of a global batch update the weights and return the result."""
        boundary = bool(self._engine.is_gradient_accumulation_boundary())
        if boundary:
            for group in self._zero.param_groups:
                group["lr"] = lr
        self._engine.step()
        if not boundary:
            return None
        norm = self._engine.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        return StepResult(norm, bool(self._zero.overflow))

    def masters(self) -> list[Tensor]:
        """Return this rank's live slices of the fp32 weights, one per group, padding at the end."""
        return [master.detach() for master in self._zero.single_partition_of_fp32_groups]

    def _optimizer_state(self, group: int) -> dict[str, Any]:
        state: dict[str, Any] = self._zero.optimizer.state[self._zero.single_partition_of_fp32_groups[group]]
        return state

    def moments(self) -> list[dict[str, Tensor]]:
        """Return this rank's live slices of Adam's moments; zeros before the first step."""
        slices = []
        for number, master in enumerate(self.masters()):
            state = self._optimizer_state(number)
            # allocate zeros only where moments are missing: a save must not need GPU memory for two more vectors
            slices.append({name: state[name] if name in state else torch.zeros_like(master) for name in MOMENT_NAMES})
        return slices

    def optimizer_steps(self) -> int:
        """Number of updates Adam has made (its bias correction needs it)."""
        step = self._optimizer_state(0).get("step", 0)
        return int(step.item() if isinstance(step, Tensor) else step)

    def load_partitions(
        self, masters: Sequence[Tensor], moments: Sequence[Mapping[str, Tensor]], *, optimizer_steps: int
    ) -> None:
        """Load saved slices and refresh the working weights. Collective."""
        for number, (master, saved) in enumerate(zip(self.masters(), masters, strict=True)):
            master.copy_(saved)
            state = self._optimizer_state(number)
            if optimizer_steps == 0:
                state.clear()
                continue
            for name in MOMENT_NAMES:
                state[name] = moments[number][name].to(master.device, torch.float32).clone()
            step_device = master.device if self._world.device == "cuda" else torch.device("cpu")
            state["step"] = torch.tensor(float(optimizer_steps), dtype=torch.float32, device=step_device)
        self._zero.update_lp_params()

    def load_named(self, weights: Mapping[str, Tensor]) -> None:
        """Set the fp32 masters from full weights by name and refresh the working weights. Collective."""
        for group, master in zip(self.layout.groups, self.masters(), strict=True):
            first, end = group.partition_bounds(self._world.rank, self._world.size)
            for parameter in group.parameters:
                begin, stop = max(first, parameter.offset), min(end, parameter.offset + parameter.numel)
                if begin >= stop:
                    continue
                whole = parameter.flatten(weights[parameter.name])
                flat = whole[begin - parameter.offset : stop - parameter.offset]
                master[begin - first : stop - first].copy_(flat)
        self._zero.update_lp_params()

    @contextmanager
    def holding(self, partitions: Sequence[Tensor]) -> Iterator[None]:
        """Let the module hold other weights, of which each rank gives its fp32 slices. Collective at both ends.

        After an error other than `Interrupted` they stay: it ends the run, and the other ranks may not answer.
        """
        masters = self._zero.single_partition_of_fp32_groups
        self._zero.single_partition_of_fp32_groups = list(partitions)
        self._zero.update_lp_params()
        self._zero.single_partition_of_fp32_groups = masters
        try:
            yield
        except Interrupted:
            self._zero.update_lp_params()
            raise
        self._zero.update_lp_params()

    def gather_named(self, partitions: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """Join slices of all ranks into full fp32 tensors by name on rank 0; None elsewhere. Collective.

        Args:
            partitions: This rank's slices, one per group.
        """
        named = gather_named(self.layout, partitions, self._world)
        if named is None or self._world.size > 1:
            return named
        # they may be views of the trained weights
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}


NamedParameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class _Piece:
    """A parameter in a bundle: the modules and attribute names that use it, more than one if it is shared."""

    owners: tuple[tuple[nn.Module, str], ...]
    shape: torch.Size
    size: int


def plan_bundles(sizes: Sequence[int], *, max_elements: int) -> list[range]:
    """Split parameters into consecutive runs of at most ``max_elements``; a larger parameter is a run by itself.

    Args:
        sizes: Number of elements of each parameter.
        max_elements: Limit of a bundle.
    """
    runs: list[range] = []
    first = total = 0
    for number, size in enumerate(sizes):
        if number > first and total + size > max_elements:
            runs.append(range(first, number))
            first, total = number, 0
        total += size
    return [*runs, range(first, len(sizes))] if sizes else []


class BundledModule(nn.Module):
    """A module whose trainable parameters are views of flat ones.

    The module itself is not registered as a submodule: ``parameters()`` returns the bundles alone.

    Args:
        module: What is trained.
        groups: Optimizer groups as lists of (name, parameter), together all trainable parameters of the module.
        max_elements: Most elements of a bundle of several parameters.
        channels_last: Keep the weights of convolutions in NHWC order.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[NamedParameters], *, max_elements: int, channels_last: bool = False
    ) -> None:
        super().__init__()
        self._channels_last = channels_last
        self._module = [module]  # in a list: torch would register it
        owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    owners.setdefault(parameter, []).append((part, name))
        self.bundles = nn.ParameterList()
        self._pieces: list[list[_Piece]] = []
        self.groups: list[list[nn.Parameter]] = []
        for group in groups:
            parameters = [parameter for _, parameter in group]
            bundled: list[nn.Parameter] = []
            for run in plan_bundles([p.numel() for p in parameters], max_elements=max_elements):
                members = parameters[run.start : run.stop]
                parts = [flatten(member.detach(), channels_last=channels_last) for member in members]
                flat = nn.Parameter(torch.cat(parts))
                bundled.append(flat)
                self.bundles.append(flat)
                self._pieces.append([_Piece(tuple(owners[member]), member.shape, member.numel()) for member in members])
            self.groups.append(bundled)

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self._module[0]

    def bind(self) -> None:
        """Replace the module's parameters by views of the bundles."""
        for flat, pieces in zip(self.bundles, self._pieces, strict=True):
            views: Sequence[Tensor] = flat.split([piece.size for piece in pieces])
            for view, piece in zip(views, pieces, strict=True):
                # most are vectors already; each view saved is an autograd node saved
                shaped = view
                if len(piece.shape) > 1:
                    shaped = unflatten(view, piece.shape, channels_last=self._channels_last)
                for owner, name in piece.owners:
                    owner._parameters[name] = shaped  # type: ignore[assignment]  # a view serves as a parameter

    def forward(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the module takes and returns
        """Run the module on views of the bundles."""
        self.bind()
        return self.module(*inputs)
