"""The window of SSIM: two ways to the same numbers, one of which a GPU cannot round."""

from __future__ import annotations

import pytest
import torch

from synfundus.errors import ConfigError
from synfundus.models import reconstruction_metrics
from synfundus.models.reconstruction_metrics import ssim


def test_sums_of_shifted_images_blur_as_the_products_do(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    reference = torch.rand(2, 3, 24, 33, generator=generator) * 2 - 1
    changed = (reference + 0.2 * torch.randn(reference.shape, generator=generator)).requires_grad_()
    by_products = ssim(changed, reference, data_range=2.0)
    (gradient,) = torch.autograd.grad(by_products.sum(), changed)
    monkeypatch.setattr(reconstruction_metrics, "_blur", reconstruction_metrics._blur_by_sums)
    by_sums = ssim(changed, reference, data_range=2.0)
    torch.testing.assert_close(by_sums, by_products, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(by_sums.sum(), changed)[0], gradient, rtol=1e-3, atol=1e-6)


def test_images_smaller_than_the_window_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction_metrics, "_blur", reconstruction_metrics._blur_by_sums)
    with pytest.raises(ConfigError, match="at least 11 px"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20), data_range=2.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_does_not_reach_the_ssim_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    bright = torch.full((1, 3, 64, 64), 0.9) + 0.01 * torch.randn(
        1, 3, 64, 64, generator=torch.Generator().manual_seed(1)
    )
    shifted = bright + 0.005
    on_gpu = ssim(bright.cuda(), shifted.cuda(), data_range=2.0).cpu()
    torch.testing.assert_close(on_gpu, ssim(bright, shifted, data_range=2.0), rtol=1e-4, atol=1e-5)
