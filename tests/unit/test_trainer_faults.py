"""What an error of torch in the middle of training is to the user."""

from __future__ import annotations

import pytest
import torch

from synfundus.errors import ConfigError, LaunchError, Stalled, SynfundusError
from synfundus.training.trainer import _explained


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (RuntimeError("[gloo] Timed out waiting 1800000ms for recv operation to complete"), Stalled, 75),
        (RuntimeError("[gloo] Connection closed by peer [10.0.0.7]:38123"), LaunchError, 7),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), ConfigError, 2),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ConfigError, 2),
    ],
)
def test_an_error_that_is_known_says_what_to_do(error: RuntimeError, kind: type[SynfundusError], code: int) -> None:
    fault = _explained(error, 1600)
    assert type(fault) is kind
    assert fault.exit_code == code, "75 is queued again: nobody knows that the silent rank is at fault"
    assert fault.hint
    assert str(error) in str(fault), "torch's own words are kept"


def test_memory_that_ran_out_names_the_option() -> None:
    fault = _explained(torch.OutOfMemoryError("CUDA out of memory"), 1600)
    assert fault is not None
    assert fault.where == "micro_batch_size"
    assert "1,600 images" in fault.message


def test_an_error_nobody_knows_keeps_its_traceback() -> None:
    assert _explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 8) is None
