"""What an error of a collective says about the other ranks."""

from __future__ import annotations

import pytest
import torch

from synfundus.distributed.lost_ranks import device_fault, join_error, lost_rank_error
from synfundus.errors import DeviceFault, ErrorReport, LaunchError, PortTaken, Stalled, SynfundusError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation", Stalled),
        ("wait timeout after 1000ms, keys: /default_pg/0//1//cpu//1/1", Stalled),
        ("Connection closed by peer [127.0.0.1]:41234", LaunchError),
    ],
)
def test_a_rank_that_is_silent_is_told_from_one_that_has_gone(text: str, kind: type[SynfundusError]) -> None:
    found = lost_rank_error(RuntimeError(text), hint="start it again")
    assert type(found) is kind
    assert text in str(found)
    assert "start it again" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        TimeoutError("Timed out"),
        ErrorReport.of(ValueError("Timed out")).to_error(source="rank 3"),
    ],
)
def test_other_errors_are_none_of_them(error: Exception) -> None:
    """The last is what another rank has met: its text is a traceback, whatever that quotes."""
    assert lost_rank_error(error, hint="") is None


@pytest.mark.parametrize(
    ("rank", "text", "kind"),
    [
        (0, "The server socket has failed to listen on any local network address. name: EADDRINUSE", PortTaken),
        (1, "Ping failed, invalid value returned from server. Expected: 1, Got: 7", PortTaken),
        (0, "Timed out after 1801 seconds waiting for clients. 1/2 clients joined.", Stalled),
        (1, "hostname cannot be retrieved", LaunchError),
    ],
)
def test_ranks_that_do_not_meet_say_why(rank: int, text: str, kind: type[SynfundusError]) -> None:
    found = join_error(RuntimeError(text), rank=rank, master="tcp://node7:16711")
    assert type(found) is kind
    assert kind is Stalled or "tcp://node7:16711" in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        "NCCL error in: NCCLUtils.cpp:94, unhandled system error",
        "NCCL error in: NCCLUtils.cpp:94, internal error - please report this issue to the NCCL developers",
    ],
)
def test_a_failed_gpu_is_told_from_a_bug(text: str) -> None:
    found = device_fault(RuntimeError(text), rank=3)
    assert type(found) is DeviceFault
    assert found.exit_code == 71
    assert text.splitlines()[0] in found.message
    assert "rank 3" in found.message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA error: invalid device ordinal"),
        RuntimeError("CUDA error: invalid argument"),
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("Connection closed by peer [127.0.0.1]:41234"),
        ValueError("CUDA error: unspecified launch failure"),
        ErrorReport.of(RuntimeError("CUDA error: unspecified launch failure")).to_error(source="rank 3"),
    ],
)
def test_what_every_gpu_would_repeat_is_no_failed_gpu(error: Exception) -> None:
    """The last is what another rank has met, and reports itself."""
    assert device_fault(error, rank=0) is None
