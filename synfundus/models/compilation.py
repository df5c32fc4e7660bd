"""`torch.compile` for the repeated blocks of a network instead of the whole network, which saves minutes.

A U-Net or an autoencoder consists mostly of residual and transformer blocks, and many share their shapes: each shape is
compiled once. `compile_repeated_blocks` of diffusers does the same for transformer blocks alone, and for nothing in an
autoencoder. A block is compiled in place: its parameters keep their names, and copies and saved weights are not
affected.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from synfundus.errors import ConfigError
from synfundus.models.compiler import missing_for_compilation
from synfundus.models.diffusers_classes import BasicTransformerBlock, ResnetBlock2D

REPEATED_BLOCKS = (ResnetBlock2D, BasicTransformerBlock)
_SPARE_RECOMPILATIONS = 8


def compile_blocks(network: nn.Module, *, backend: str) -> int:
    """Have the repeated blocks of a network compiled when they first run; returns how many there are.

    Args:
        network: Its parameters may later be replaced by views of others.
        backend: Compiler backend (``inductor``).
    """
    blocks = [block for block in network.modules() if isinstance(block, REPEATED_BLOCKS)]
    # all blocks of a class share their code, and torch limits compilations per code: beyond the limit it would
    # silently stop compiling
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, len(blocks) + _SPARE_RECOMPILATIONS)
    for block in blocks:
        # sizes never change in training, so kernels can be specialised
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


def require_compilation(device: torch.device) -> None:
    """Compile and run a few operations, forward and backward, so that a broken compiler is found at start.

    Raises:
        ConfigError: There is no compiler, or its output does not run.
    """
    hint = "install it, or leave compile off"
    missing = missing_for_compilation("cuda" if device.type == "cuda" else "cpu", os.environ)
    if missing is not None:
        raise ConfigError(f"torch.compile needs {missing}, which is not here", where="compile=true", hint=hint)
    values = torch.linspace(-1.0, 1.0, 64, device=device).requires_grad_()
    try:
        result = torch.compile(_few_operations, dynamic=False)(values)
        torch.autograd.backward(result)
    except Exception as error:  # whatever a compiler, its headers or a cache folder may raise
        raise ConfigError(
            f"torch.compile does not work here: {str(error).strip().splitlines()[0]}",
            where="compile=true",
            hint="install the compiler and Python's headers and make the temporary folder writable, or turn it off",
        ) from error


def _few_operations(values: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.silu(values) * 2.0).sum()
