"""Encode images on the second of two GPUs, in the threads that `encode-latents` does it in; print who launched where.

Triton launches on the current device of a thread, wherever its arguments are: both have to be the same.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from tiny_sets import tiny_config
from triton.runtime.jit import JITFunction

from stand_in_gpu import MARK
from synfundus.models.nhwc.networks import keep_channels_last, kernels_for
from synfundus.stages import build
from synfundus.stages.encode_latents.shard_encoder import open_lanes

launched: set[tuple[int, int]] = set()
_launch = JITFunction.run


def launch(kernel: Any, *arguments: Any, **named: Any) -> Any:
    """Take the place of triton's launch; note the current device and the one of the arguments."""
    launched.add((torch.cuda.current_device(), arguments[0].get_device()))
    return _launch(kernel, *arguments, **named)


if __name__ == "__main__":
    JITFunction.run = launch
    device = torch.device("cuda", 1)
    network = build.autoencoder(tiny_config().train_vae.autoencoder, image_size_px=64, seed=0).to(device)
    keep_channels_last(network, kernels_for(device, torch.float32))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.zeros(2, 3, 64, 64, device=device)
    elsewhere = torch.cuda.current_device()
    with open_lanes(device) as lanes:
        current = lanes.encoders.submit(torch.cuda.current_device).result()
        lanes.encoders.submit(network.encode, pixels).result()
    network.encode(pixels)  # here, where the current device is another one
    print(MARK + json.dumps({"threads": current, "here": elsewhere, "launched": sorted(launched)}), flush=True)
