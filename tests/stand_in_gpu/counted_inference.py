"""Run a command line that encodes or samples; print which 3x3 convolutions got NHWC memory, and counts.

``python counted_inference.py sample --model ...`` on the stand-in GPU, in one process. What is printed for each network
is of its last call, as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from conv_layouts import ConvLayouts
from torch import nn

from stand_in_gpu import MARK, counters
from synfundus.artifacts import model
from synfundus.cli.app import run_command
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.unet import ConditionalDenoiser

counted: dict[str, Any] = {}


def watched(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, or a method, whose first argument is a module, that also notes what it asked the GPU for."""

    def call(module: nn.Module, *arguments: Any, **named: Any) -> Any:
        before = counters.read()
        with ConvLayouts(module) as layouts:
            result = compute(module, *arguments, **named)
        counts = counters.difference(before, counters.read())
        counted[name] = {"layouts": layouts.counted, "others": layouts.others, "counts": counts}
        return result

    return call


if __name__ == "__main__":
    owners: list[tuple[Any, str]] = [
        *((LatentAutoencoder, "encode"), (LatentAutoencoder, "decode")),
        *((ConditionalDenoiser, "forward"), (model, "sample_latents")),
    ]
    for owner, name in owners:
        setattr(owner, name, watched(name, getattr(owner, name)))
    code = run_command(sys.argv[1:])
    print(MARK + json.dumps(counted), flush=True)
    raise SystemExit(code)
