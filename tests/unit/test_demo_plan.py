from __future__ import annotations

import numpy as np
import pytest

from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.seeding import keyed_generator
from synfundus.stages.demo.conditions import conditions_of, matching_rows
from synfundus.stages.demo.plan import (
    IMAGES_PER_CONDITION,
    REFERENCE_MINUTES,
    REFERENCE_PACE,
    pace_gain,
    place_stages,
    plan_generation,
    scale_budgets,
)


def _config(minutes: float) -> RunConfig:
    preset = load_config(preset="demo-cpu", file=None, settings=[], flags=[]).config
    document = preset.model_dump()
    document["demo"].update(minutes=minutes, out="somewhere")
    return RunConfig.model_validate(document)


def _states(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    draws = keyed_generator(0, "states").integers(0, 3, size=(count, len(DEFAULT_LABEL_SCHEMA.labels)))
    return np.asarray(draws, dtype=np.int64)


def _scaled(config: RunConfig, *, pace: float) -> RunConfig:
    document = config.model_dump()
    scale_budgets(document, pace=pace)
    return RunConfig.model_validate(document)


def _placed(config: RunConfig) -> RunConfig:
    document = config.model_dump()
    place_stages(document)
    return RunConfig.model_validate(document)


def test_the_reference_minutes_on_the_reference_machine_are_the_preset_as_it_stands() -> None:
    config = _config(REFERENCE_MINUTES)
    assert _scaled(config, pace=REFERENCE_PACE) == config


@pytest.mark.parametrize("minutes", [0.05, 0.5, 3, 60])
def test_budgets_follow_the_minutes_and_stay_valid(minutes: float) -> None:
    before, after = _config(minutes), _scaled(_config(minutes), pace=REFERENCE_PACE)
    scale = minutes / REFERENCE_MINUTES
    for old, new in ((before.train.loop, after.train.loop), (before.train_vae.loop, after.train_vae.loop)):
        assert new.budget_images % new.global_batch_size == 0
        assert abs(new.budget_images - old.budget_images * scale) <= new.global_batch_size
    assert after.demo.num_generated <= before.demo.num_generated
    assert after.train.optim.warmup_images < after.train.loop.budget_images
    assert after.train.optim.lr == before.train.optim.lr


def test_own_photographs_take_the_place_of_phantoms() -> None:
    document = _config(1).model_dump()
    document["demo"].update(source="photos", labels="table.csv", mapping="map.yaml")
    prepare = _placed(RunConfig.model_validate(document)).prepare
    assert (prepare.source, prepare.labels, prepare.mapping) == ("photos", "table.csv", "map.yaml")
    assert _placed(_config(1)).prepare.source == "somewhere/phantoms"
    document["demo"].update(labels=None, mapping=None, importer="idrid")
    prepare = _placed(RunConfig.model_validate(document)).prepare
    assert (prepare.labels, prepare.mapping, prepare.importer) == (None, None, "idrid")


def test_photographs_get_the_channels_that_their_vessels_need_and_phantoms_those_of_the_preset() -> None:
    document = _config(1).model_dump()
    preset = document["train_vae"]["autoencoder"]["latent_channels"]
    document["demo"].update(source="photos", labels="table.csv", source_latent_channels=preset + 12)
    channels = [preset + 12, preset, preset]
    for changes in ({}, {"source_latent_channels": None}, {"source": None, "source_latent_channels": preset + 12}):
        document["demo"].update(changes)
        placed = _placed(RunConfig.model_validate(document))
        assert placed.train_vae.autoencoder.latent_channels == channels.pop(0)


def test_every_stage_reads_what_the_one_before_writes() -> None:
    config = _placed(_config(1))
    assert config.prepare.source == config.phantoms.out
    assert config.train_vae.data == config.encode_latents.data == config.prepare.out
    assert config.encode_latents.vae == config.train_vae.run_dir
    assert config.train.latents == (config.encode_latents.out,)
    assert config.sample.model == config.train.run_dir


def test_control_rows_are_rows_of_held_out_photographs() -> None:
    held_out = _states(20)
    plan = plan_generation(
        held_out_states=held_out, known_states=_states(50), schema=DEFAULT_LABEL_SCHEMA, num_control=64, seed=0
    )
    known = {tuple(row) for row in held_out.tolist()}
    assert {tuple(DEFAULT_LABEL_SCHEMA.encode(row)) for row in plan.rows[:64]} <= known


def test_the_plan_is_keyed_by_the_seed_alone() -> None:
    plans = [
        plan_generation(
            held_out_states=_states(20),
            known_states=_states(50),
            schema=DEFAULT_LABEL_SCHEMA,
            num_control=32,
            seed=seed,
        )
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1]
    assert plans[0].rows != plans[2].rows


def test_conditions_nobody_has_are_left_out_and_the_others_have_their_images() -> None:
    states = np.ones((6, len(DEFAULT_LABEL_SCHEMA.labels)), dtype=np.int64)
    names = DEFAULT_LABEL_SCHEMA.names
    states[:, names.index("is_fundus")] = 2
    states[2, names.index("is_gc")] = 2
    plan = plan_generation(
        held_out_states=states, known_states=states, schema=DEFAULT_LABEL_SCHEMA, num_control=3, seed=0
    )
    assert [condition.title for condition in plan.conditions] == ["glaucoma"]
    rows = [plan.rows[image] for image in plan.condition_images(0)]
    assert len(rows) == IMAGES_PER_CONDITION
    assert len(plan.rows) == 3 + IMAGES_PER_CONDITION
    assert all(row["is_gc"] == 1 and row["is_pm"] == 0 for row in rows)
    assert {row["eye_side"] for row in rows} == {0, 1}


def test_matching_photographs_have_the_labels_and_the_cleanest_come_first() -> None:
    names = DEFAULT_LABEL_SCHEMA.names
    states = np.ones((4, len(names)), dtype=np.int64)
    states[:3, names.index("is_gc")] = 2
    states[0, names.index("is_pm")] = 2
    for name in ("is_fundus", "is_optic_disc_readable", "is_macular_readable", "is_retinal_region_readable"):
        states[:, names.index(name)] = 2
    states[1, names.index("is_macular_readable")] = 1
    states[1, names.index("is_amd")] = 2
    assert matching_rows({"is_gc": 1}, states, DEFAULT_LABEL_SCHEMA).tolist() == [2, 0, 1]


def test_every_named_condition_can_be_asked_of_the_default_schema() -> None:
    conditions = conditions_of(DEFAULT_LABEL_SCHEMA)
    assert len(conditions) == 17
    for condition in conditions:
        assert set(condition.defining.items()) <= set(condition.requested.items())
        DEFAULT_LABEL_SCHEMA.encode(dict(condition.requested))


def test_a_foreign_schema_gets_a_row_for_each_value() -> None:
    schema = LabelSchema((LabelSpec("cataract", 3, ordinal=True), LabelSpec("is_child", 2, meaning="a child")))
    titles = [condition.title for condition in conditions_of(schema)]
    assert titles == ["cataract = 0", "cataract = 1", "cataract = 2", "a child = 1"]


def test_a_faster_machine_trains_on_more_images_in_the_same_minutes() -> None:
    plain = _config(REFERENCE_MINUTES)
    faster = _scaled(plain, pace=2.5 * REFERENCE_PACE)
    for old, new in ((plain.train.loop, faster.train.loop), (plain.train_vae.loop, faster.train_vae.loop)):
        assert abs(new.budget_images - 2.5 * old.budget_images) <= new.global_batch_size
    assert plain.phantoms.num_images < faster.phantoms.num_images < 2 * plain.phantoms.num_images
    assert faster.demo.num_generated == plain.demo.num_generated


@pytest.mark.parametrize(("pace", "gain"), [(1e-3, 1.0), (0.9, 1.0), (1.0, 1.0), (3.0, 3.0), (1e9, 4.0)])
def test_the_pace_is_followed_within_bounds(pace: float, gain: float) -> None:
    assert pace_gain(pace * REFERENCE_PACE) == pytest.approx(gain)
