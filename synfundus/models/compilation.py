"""`torch.compile` for the blocks a network repeats, not for the network: minutes of compiling become the first step's.

Residual and transformer blocks are nearly all of a U-Net or an autoencoder, and many share their shapes: each shape is
compiled once. `compile_repeated_blocks` of diffusers does the same for the transformer blocks alone, and for nothing in
an autoencoder. A block is compiled in place, so its parameters keep their names, and whoever copies the network
or saves its weights sees nothing of it.
"""

from __future__ import annotations

import os

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from synfundus.errors import ConfigError
from synfundus.models.compiler import missing_for_compilation

REPEATED_BLOCKS = (ResnetBlock2D, BasicTransformerBlock)
_SPARE_RECOMPILATIONS = 8


def compile_blocks(network: nn.Module, *, backend: str) -> int:
    """Have the repeated blocks of a network compiled when they first run; returns how many there are.

    Args:
        network: Its parameters may be replaced by views of others later on.
        backend: What compiles them (``inductor``).
    """
    blocks = [block for block in network.modules() if isinstance(block, REPEATED_BLOCKS)]
    # all blocks of a kind share their code, for which torch counts compilations: beyond the limit it would silently
    # go on without compiling
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, len(blocks) + _SPARE_RECOMPILATIONS)
    for block in blocks:
        # sizes never change in training: kernels are made for them
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


def require_compilation(device: torch.device) -> None:
    """Compile and run a few operations, forward and backward, so that a run fails before it begins or not for this.

    Raises:
        ConfigError: There is no compiler, or what it makes does not run.
    """
    hint = "install it, or leave compile off"
    missing = missing_for_compilation("cuda" if device.type == "cuda" else "cpu", os.environ)
    if missing is not None:
        raise ConfigError(f"torch.compile needs {missing}, which is not here", where="compile=true", hint=hint)
    values = torch.linspace(-1.0, 1.0, 64, device=device).requires_grad_()
    try:
        result = torch.compile(_few_operations, dynamic=False)(values)
        torch.autograd.backward(result)
    except Exception as error:  # whatever a compiler, its headers or a cache folder may do
        raise ConfigError(
            f"torch.compile does not work here: {str(error).strip().splitlines()[0]}",
            where="compile=true",
            hint="the compiler and Python's headers must be there, and the temporary folder writable; or leave it off",
        ) from error


def _few_operations(values: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.silu(values) * 2.0).sum()
