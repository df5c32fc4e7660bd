"""Print, as one line of JSON, which attention kernels a GPU gets for given shapes: SDPA's choice, xformers' operators.

``python attention_kernels.py QUERY_TOKENSxKEY_TOKENSxHEAD_DIM ...`` on the stand-in GPU. Each kernel the product
knows is tried as a training tries it, forward and backward.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from stand_in_gpu import MARK
from synfundus.models.attention import AttentionShape, measure_attention

CUDA = torch.device("cuda")


def sdpa_choice(shape: AttentionShape) -> str:
    """Return the kernel that torch chooses for bf16."""
    query, key = (
        torch.zeros(2, shape.heads, tokens, shape.head_dim, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        for tokens in (shape.query_tokens, shape.key_tokens)
    )
    return SDPBackend(torch._fused_sdp_choice(query, key, key)).name


def xformers_operators(shape: AttentionShape) -> list[str] | None:
    """Return the operators that xformers dispatches to, forward and backward; None without a fitting xformers."""
    try:
        fmha: Any = importlib.import_module("xformers.ops.fmha")
        dispatch: Any = importlib.import_module("xformers.ops.fmha.dispatch")
        query, key = (
            torch.zeros(2, tokens, shape.heads, shape.head_dim, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
            for tokens in (shape.query_tokens, shape.key_tokens)
        )
        inputs = fmha.Inputs(query=query, key=key, value=key)
        forward = dispatch._dispatch_fw(inputs, needs_gradient=True)
        return [forward.NAME, dispatch._dispatch_bw(inputs, varlen_lse_packed=None).NAME]
    except (ImportError, OSError, NotImplementedError):
        return None


def main(texts: list[str]) -> None:
    """Try the kernels on every shape."""
    found = {}
    for text in texts:
        query_tokens, key_tokens, head_dim = map(int, text.split("x"))
        shape = AttentionShape(query_tokens, key_tokens, heads=2, head_dim=head_dim)
        measured = measure_attention([shape], batch_size=2, dtype=torch.bfloat16, device=CUDA)
        found[text] = {
            "sdpa": sdpa_choice(shape),
            "xformers": xformers_operators(shape),
            "passed": sorted(measured.ms),
            "obstacles": dict(measured.obstacles),
        }
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
