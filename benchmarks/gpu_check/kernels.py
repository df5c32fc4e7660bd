"""Step 2: attention kernels on the layers of the presets: which may be used, what they take, what SDPA chooses."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.verdicts import NOTHING_COMPUTED, Report
from synfundus.models.attention import AttentionShape, MeasuredAttention, measure_attention

SHAPES = (
    AttentionShape(4096, 4096, 5, 64),  # fundus512, at 64 x 64
    AttentionShape(1024, 1024, 10, 64),  # at 32 x 32
    AttentionShape(4096, 16, 5, 64),  # to the tokens of the labels
    AttentionShape(4096, 4096, 1, 512),  # the autoencoder's middle
)
REQUIRED = ("sdpa",)
"""What every training takes when nothing is faster."""
_IMAGES = 8


def run(setting: Setting, report: Report) -> None:
    """Compare all kernels with plain products on each shape, forward and backward, and time those that agree."""
    device, dtype = torch.device("cuda", 0), torch.bfloat16
    for shape in SHAPES:
        size = shape
        if setting.small:
            size = shape._replace(query_tokens=shape.query_tokens // 64, key_tokens=max(16, shape.key_tokens // 64))
        measured = measure_attention([size], batch_size=1 if setting.small else _IMAGES, dtype=dtype, device=device)
        say(report, shape, measured, choice_of_sdpa(size, dtype=dtype, device=device))


def say(report: Report, shape: AttentionShape, measured: MeasuredAttention, choice: str) -> None:
    """Report a shape: a line for each kernel. One that this GPU or build lacks is skipped, one that errs fails."""
    for backend, ms in measured.ms.items():
        more = f"; it chose {choice}" if backend == "sdpa" else ""
        text = f"agrees with plain products; {ms:.3g} ms forward and backward, {_IMAGES} images{more}"
        report.computed(f"{backend}, {shape}", True, text, ms=ms, **({"choice": choice} if more else {}))
    for backend, why in measured.obstacles.items():
        name = f"{backend}, {shape}"
        if backend in REQUIRED or "off by" in why:
            report.computed(name, False, why)
        else:
            report.skip(name, NOTHING_COMPUTED if "off by" in why else why)


def choice_of_sdpa(shape: AttentionShape, *, dtype: torch.dtype, device: torch.device) -> str:
    """Return the kernel that PyTorch chooses for a shape with gradients."""
    query, key, value = (
        torch.zeros(1, shape.heads, tokens, shape.head_dim, dtype=dtype, device=device, requires_grad=True)
        for tokens in (shape.query_tokens, shape.key_tokens, shape.key_tokens)
    )
    return SDPBackend(torch._fused_sdp_choice(query, key, value)).name.removesuffix("_ATTENTION").lower()
