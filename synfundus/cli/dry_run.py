"""What `--dry-run` prints: values with their origins, the arithmetic, the DeepSpeed dictionary, what would start."""

from __future__ import annotations

import json
from typing import Literal

from synfundus.cli.arithmetic import check_training, training_sections
from synfundus.cli.verbs import Verb
from synfundus.config.assets import find_asset
from synfundus.config.dump import dump_config
from synfundus.config.loader import LoadedConfig, fingerprint
from synfundus.launch import LaunchPlan
from synfundus.redaction import redact


def _training_text(verb: Verb, loaded: LoadedConfig, plan: LaunchPlan, device: Literal["cpu", "cuda"]) -> str:
    training = check_training(verb, loaded.config, world_size=plan.world_size, device=device)
    loop, _ = training_sections(verb, loaded.config)
    batch = training.batch
    spread = f"{batch.micro_batch_size} images x {batch.gradient_accumulation_steps} accumulation step(s)"
    if loop.micro_batch_size == "auto":
        spread = (
            f"as many images as memory holds x accumulation steps\n"
            f"the micro-batch is found at start; below all {batch.micro_batch_size} images of a rank fit at once"
        )
    return (
        f"# batch\n"
        f"global batch {batch.global_batch_size} = {batch.world_size} rank(s) x {spread}\n"
        f"{loop.budget_images} images / {batch.global_batch_size} = {training.steps} optimizer steps\n\n"
        f"# DeepSpeed ({training.ds_path})\n{json.dumps(training.ds_config, indent=2)}\n\n"
    )


def describe(verb: Verb, loaded: LoadedConfig, plan: LaunchPlan, device: Literal["cpu", "cuda"]) -> str:
    """Write everything a run would start from."""
    text = f"# synfundus {verb.name}, configuration {fingerprint(loaded.config)[:16]}, device {device}\n"
    text += dump_config(loaded, only=frozenset(verb.sections)) + "\n"
    if verb.trains is not None:
        text += _training_text(verb, loaded, plan, device)
    if verb.name == "prepare":
        from synfundus.stages.prepare.plan import describe_inputs

        text += describe_inputs(loaded.config.prepare, seed=loaded.config.seed)
    text += f"# launch\n{plan.describe()}\n"
    if plan.kind == "sbatch" and verb.script:
        script = find_asset("slurm", verb.script)
        text += f"\n# {script}\n{script.read_text(encoding='utf-8')}"
    return redact(text)
