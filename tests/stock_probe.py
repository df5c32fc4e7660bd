"""Run by another interpreter, without synfundus: what the card of a stock pipeline shows, then each sampler.

``python -I stock_probe.py REQUEST.npz ANSWER.npz``, in the folder of the card. The request: ``rows`` (JSON, the labels
of each image), ``noise`` ``[b, c, lh, lw]``, ``samplers`` (names of classes of diffusers), ``num_steps``,
``guidance_scale``, ``guidance_rescale``. The answer: ``latents`` and ``pixels``, both ``[samplers, b, ...]``, and
``shown``, the images of the card's own call after ``torch.manual_seed(0)``.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch


def main(request: str, answer: str) -> None:
    """Answer a request."""
    assert importlib.util.find_spec("synfundus") is None
    given = np.load(request)
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(next(block for block in blocks if "DiffusionPipeline" in block), names)
    pipe, rows = names["pipe"], json.loads(str(given["rows"]))
    (tokens, pooled), (unknown, no_labels) = names["embed"](rows), names["embed"]([{}] * len(rows))
    settings = {
        "prompt_embeds": tokens,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": unknown,
        "negative_pooled_prompt_embeds": no_labels,
        "latents": torch.from_numpy(given["noise"]),
        "num_inference_steps": int(given["num_steps"]),
        "guidance_scale": float(given["guidance_scale"]),
        "guidance_rescale": float(given["guidance_rescale"]),
    }
    latents, pixels = [], []
    for name in given["samplers"]:
        pipe.scheduler = getattr(diffusers, str(name)).from_config(pipe.scheduler.config)
        latents.append(pipe(**settings, output_type="latent").images.numpy())
        pixels.append(np.stack([np.asarray(image) for image in pipe(**settings).images]))
    shown = np.stack([np.asarray(image) for image in names["images"]])
    np.savez(answer, latents=np.stack(latents), pixels=np.stack(pixels), shown=shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
