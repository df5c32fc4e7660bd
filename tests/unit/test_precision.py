"""What `auto` means, and that nobody waits for an emulated bf16 without having been told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from synfundus.cli import run
from synfundus.cli.request import Request
from synfundus.cli.verbs import VERBS
from synfundus.config.auto import PRECISION_KEYS, definite, settle_precision, slow_precisions
from synfundus.config.base import value_at
from synfundus.config.diffusion import TrainConfig
from synfundus.config.loader import LoadedConfig
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig
from synfundus.distributed.rank_info import processor_has_bf16
from synfundus.distributed.world import Device, LocalWorld, has_native_bf16
from synfundus.errors import ConfigError
from synfundus.stages import build, training_plan
from synfundus.storage import documents
from synfundus.telemetry.console import SilentConsole

TRAIN = next(verb for verb in VERBS if verb.name == "train")


def precisions(config: RunConfig) -> dict[str, str]:
    document = config.model_dump()
    return {
        "train_vae.loop.precision": document["train_vae"]["loop"]["precision"],
        "encode_latents.precision": document["encode_latents"]["precision"],
        "train.loop.precision": document["train"]["loop"]["precision"],
        "sample.precision": document["sample"]["precision"],
    }


def config_of(precision: str) -> RunConfig:
    section = {"precision": precision}
    training = {"loop": section}
    sections = {"train_vae": training, "encode_latents": section, "train": training, "sample": section}
    return RunConfig.model_validate(sections)


@dataclass
class Listening(SilentConsole):
    """Remembers warnings."""

    warnings: list[str] = field(default_factory=list)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@dataclass(frozen=True)
class WorldWithAnOldRank(LocalWorld):
    """One of the other ranks has no instructions for bf16."""

    def any(self, flag: bool) -> bool:
        del flag
        return True


def test_every_precision_of_the_schema_is_known_here() -> None:
    from synfundus.config.loader import leaf_fields

    assert {name for name in leaf_fields() if name.endswith("precision")} == set(PRECISION_KEYS)


@pytest.mark.parametrize(("native", "meaning"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_there_are_instructions_for_it(native: bool, meaning: str) -> None:
    assert set(precisions(settle_precision(config_of("auto"), native_bf16=native)).values()) == {meaning}
    for precision in ("bf16", "fp32"):
        config = config_of(precision)
        assert settle_precision(config, native_bf16=native) == config


def test_a_job_started_from_a_program_must_choose() -> None:
    assert LoopConfig().precision == "auto"
    with pytest.raises(ConfigError, match="settle_precision"):
        build.torch_dtype("auto")
    assert definite("bf16") == "bf16"
    assert build.torch_dtype("fp32") == torch.float32


CASCADE_LAKE = "fpu sse4_2 fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu sse4_2 fma avx2", False),
        (CASCADE_LAKE, False),
        (f"{CASCADE_LAKE} avx512_bf16 flush_l1d", True),
        (f"{CASCADE_LAKE} amx_bf16", True),
    ],
)
def test_a_processor_has_bf16_with_its_instructions_alone(tmp_path: Path, flags: str, native: bool) -> None:
    """AVX-512 is not enough: there bf16 is emulated, and training takes twice as long as in fp32."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: with avx512_bf16 in its name\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert processor_has_bf16(cpuinfo) is native


def test_a_processor_of_another_system_is_taken_to_have_no_bf16(tmp_path: Path) -> None:
    assert not processor_has_bf16(tmp_path / "none")


def test_what_linux_says_of_bf16_is_what_torch_says() -> None:
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None:
        pytest.skip("torch before 2.11 does not say")
    capabilities = ask()
    torch_says = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    assert has_native_bf16("cpu") is torch_says


def test_a_gpu_that_emulates_bf16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_native_bf16("cuda")


def settled(monkeypatch: pytest.MonkeyPatch, config: RunConfig, world: LocalWorld, *, native: bool) -> Listening:
    def answer(device: Device) -> bool:
        del device
        return native

    monkeypatch.setattr(run, "has_native_bf16", answer)
    console = Listening()
    found = run._with_precision(Request(TRAIN, LoadedConfig(config, {})), world, console)
    assert "auto" not in precisions(found).values()
    console.warnings.append(found.train.loop.precision)
    return console


def test_an_emulated_bf16_is_warned_of_and_auto_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    *warned, precision = settled(monkeypatch, config_of("bf16"), LocalWorld(), native=False).warnings
    assert precision == "bf16", "what the user asks for is done"
    assert len(warned) == 1
    assert warned[0].startswith("train.loop.precision: bf16, for which this cpu has no instructions"), (
        "of this verb's options"
    )
    assert settled(monkeypatch, config_of("auto"), LocalWorld(), native=False).warnings == ["fp32"]
    assert settled(monkeypatch, config_of("bf16"), LocalWorld(), native=True).warnings == ["bf16"]


def test_one_rank_without_bf16_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, config_of("auto"), WorldWithAnOldRank(), native=True).warnings == ["fp32"]


def precisions_of(precision: str) -> dict[str, object]:
    return {key: value_at(config_of(precision), key) for key in PRECISION_KEYS}


def test_bf16_options_are_named_by_section() -> None:
    assert slow_precisions(precisions_of("bf16"), sections=("encode_latents", "train_vae")) == [
        "train_vae.loop.precision",
        "encode_latents.precision",
    ]
    assert slow_precisions(precisions_of("auto"), sections=("encode_latents", "train_vae", "train", "sample")) == []


def test_a_dry_run_guesses_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for likely in (True, False):
        monkeypatch.setattr(training_plan, "_likely_bf16", lambda device, likely=likely: likely)
        plan = training_plan.plan_training(TrainConfig(), None, world_size=1, device="cpu")
        assert ("bf16" in plan.ds_config) is likely


def begun_in(folder: Path, precision: str) -> RunConfig:
    document = {"kind": "diffusion", "identity": {"seed": 0, "precision": precision}}
    documents.write_document(str(folder / "run.json"), document, format_name="synfundus-run", version=1)
    return RunConfig.model_validate({"train": {"run_dir": str(folder)}})


@pytest.mark.parametrize(("begun", "native"), [("bf16", False), ("fp32", True)])
def test_a_run_that_goes_on_on_another_processor_computes_as_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: str, native: bool
) -> None:
    """A job that is queued again may come back on a node of another kind."""
    *warned, precision = settled(monkeypatch, begun_in(tmp_path, begun), LocalWorld(), native=native).warnings
    assert precision == begun
    assert len(warned) == (0 if native else 1)


def test_what_the_user_asks_for_is_compared_with_the_run_that_is_there(tmp_path: Path) -> None:
    explicit = RunConfig.model_validate({"train": {"loop": {"precision": "bf16"}}})
    for config, precision in ((begun_in(tmp_path, "bf16"), "fp32"), (explicit, "bf16")):
        settled_config = settle_precision(config, native_bf16=True, begun={"train.loop.precision": "fp32"})
        assert settled_config.train.loop.precision == precision
