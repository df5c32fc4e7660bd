"""Precedence, origins, coercion by field type, and messages of the configuration loader."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from synfundus.config import base, loader
from synfundus.config.assets import find_asset, list_assets, read_ds_file
from synfundus.config.base import FORMS
from synfundus.config.dump import dump_config, format_value
from synfundus.config.loader import Assignment, LoadedConfig, fingerprint, leaf_fields, list_presets, load_config
from synfundus.config.schema import RunConfig
from synfundus.config.yaml_text import parse_flow
from synfundus.errors import ConfigError

SINCE = frozenset(
    {"ema.run_dir", "train.ema.sigma_rel", "train.loop.profile_steps", "train_vae.loop.profile_steps"}
    | {"encode_latents.tf32", "train.optim.decay_fraction", "train_vae.optim.decay_fraction"}
)
"""Keys that version 0.1 had not, or not with today's meaning."""


def old_leaves() -> dict[str, str]:
    """Return every key of version 0.1 that is called otherwise today, with its name of today."""
    found = {}
    for leaf in leaf_fields():
        moved = [(new, old) for old, new in loader.RENAMED.items() if f"{leaf}.".startswith(f"{new}.")]
        if moved and leaf not in SINCE:
            new, old = max(moved, key=lambda names: len(names[0]))
            found[old + leaf.removeprefix(new)] = leaf
    return found


OLD_LEAVES = old_leaves()


def load(
    text: str | None = None,
    *settings: str,
    preset: str | None = None,
    flags: tuple[Assignment, ...] = (),
    folder: Path | None = None,
) -> LoadedConfig:
    file = None
    if text is not None:
        assert folder is not None
        file = folder / "run.yaml"
        file.write_text(text, encoding="utf-8")
    return load_config(preset=preset, file=str(file) if file else None, settings=settings, flags=flags)


def message_of(text: str | None = None, *settings: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *settings, folder=folder)
    return str(caught.value)


def test_nothing_given_yields_the_schema_defaults() -> None:
    loaded = load()
    assert loaded.config == RunConfig()
    assert set(loaded.provenance.values()) == {"default"}
    assert set(loaded.provenance) == set(leaf_fields())


def test_each_source_overrides_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loader,
        "preset_text",
        lambda name: "seed: 1\nsample: {num_steps: 1, batch_size: 1}\ntrain: {loop: {keep_checkpoints: 4}}",
    )
    flags = (Assignment("seed", "4", "--seed"),)
    text = "seed: 2\nsample:\n  num_steps: 2\n  batch_size: 2\n"
    loaded = load(text, "seed=3", "sample.num_steps=3", preset="mine", flags=flags, folder=tmp_path)
    config, origin = loaded.config, loaded.provenance
    assert (config.seed, config.sample.num_steps, config.sample.batch_size) == (4, 3, 2)
    assert config.train.loop.keep_checkpoints == 4
    assert origin["seed"] == "--seed"
    assert origin["sample.num_steps"] == "--set"
    assert origin["sample.batch_size"] == f"{tmp_path / 'run.yaml'}:4"
    assert origin["train.loop.keep_checkpoints"] == "preset mine"
    assert origin["train.loop.precision"] == "default"


def test_the_last_of_two_settings_wins() -> None:
    assert load(None, "seed=1", "seed=2").config.seed == 2


def test_scalars_take_the_type_of_their_field_and_nothing_is_guessed(tmp_path: Path) -> None:
    text = "launch:\n  time_limit: 24:00:00\n  account: 012\ntrain: {optim: {lr: 1e-4}}\n"
    text += "encode_latents: {flip: yes}\nseed: 012\n"
    config = load(text, folder=tmp_path).config
    assert config.launch.time_limit == "24:00:00"
    assert config.launch.account == "012"
    assert config.train.optim.lr == 1e-4
    assert config.encode_latents.flip is True
    assert config.seed == 12


def _patterns(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_patterns, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
    return own.union(*map(_patterns, schema.values()))


def test_what_a_text_must_look_like_is_said_in_words() -> None:
    assert _patterns(RunConfig.model_json_schema()) == set(FORMS)
    told = {base.PARTITIONS: ("gpu", "gpu,long"), base.ACCOUNT: ("eyelab",), base.PNG_FILE: (".png",)}
    told |= {base.TIME_LIMIT: ("24:00:00", "2-00:00:00", "90"), base.CHECKPOINT: ("images-000001280000",)}
    for pattern, examples in told.items():
        assert all(example in FORMS[pattern] and re.search(pattern, example) for example in examples)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("launch.time_limit=2days", "should be a time limit of SLURM, such as 24:00:00"),
        ("launch.account=my acc", "should be a name of letters"),
        ("plot.out=curves.pdf", "should end in .png"),
        ('sample.label={"dr_grade": "3x"}', "should begin with a letter if it is the name of a value"),
    ],
)
def test_a_text_of_another_form_is_answered_in_words(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load(None, setting)
    assert "^" not in str(caught.value)
    assert "pattern" not in str(caught.value)


@pytest.mark.parametrize("value", ["32,64,96,128", "[32, 64, 96, 128]", " 32, 64,96 ,128 "])
def test_lists_are_written_by_comma_or_in_brackets(value: str) -> None:
    config = load(None, f"train_vae.autoencoder.block_out_channels={value}").config
    assert config.train_vae.autoencoder.block_out_channels == (32, 64, 96, 128)


def test_mappings_are_written_in_braces_or_key_by_key() -> None:
    config = load(None, "sample.label={dr_grade: 3, is_gc: null}", "sample.label.eye_side=1").config
    assert config.sample.label == {"dr_grade": 3, "is_gc": None, "eye_side": 1}


def test_null_means_none_and_quoted_null_means_the_text(tmp_path: Path) -> None:
    config = load("prepare: {source: 'null', labels: null, out: ~}\n", "train_vae.data=null", folder=tmp_path).config
    assert config.prepare.source == "null"
    assert config.prepare.labels is None
    assert config.prepare.out is None
    assert config.train_vae.data is None


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load("# nothing\n", folder=tmp_path).config == RunConfig()
    assert load("train_vae:\n", folder=tmp_path).config == RunConfig()


def test_all_problems_are_reported_at_once_with_path_value_and_origin(tmp_path: Path) -> None:
    text = "train:\n  loop:\n    precision: fp16\n    budget_images: many\n  lop: {}\n"
    message = message_of(text, "launch.nodes=0", folder=tmp_path)
    file = tmp_path / "run.yaml"
    assert message.startswith("4 problems:")
    assert f"train.loop.precision = 'fp16' ({file}:3): Input should be 'auto', 'bf16' or 'fp32'" in message
    assert f"train.loop.budget_images = 'many' ({file}:4)" in message
    assert f"unknown key 'lop' in train ({file}:5) (did you mean loop?)" in message
    assert "launch.nodes = '0' (--set): Input should be greater than or equal to 1" in message


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("train.loop.budget_image=1", "did you mean budget_images?"),
        ("lr=1", "did you mean train_vae.optim.lr or train.optim.lr?"),
        ("train.optimizer.lr=1", "did you mean optim?"),
        ("sample.steps=1", "did you mean num_steps?"),
    ],
)
def test_unknown_keys_come_with_the_closest_known_ones(setting: str, suggestion: str) -> None:
    assert suggestion in message_of(None, setting)


def test_an_unknown_key_without_a_likeness_lists_the_known_ones() -> None:
    assert "known: half_life_images, rampup_ratio" in message_of(None, "train.ema.zzz=1")


def test_todays_names_of_old_keys_exist() -> None:
    assert all(any(f"{leaf}.".startswith(f"{new}.") for leaf in leaf_fields()) for new in loader.RENAMED.values())


def test_the_list_of_old_keys_is_whole() -> None:
    """As many in each section as version 0.1 had, but for `ema.sigma_rel`, which is a key of another meaning today."""
    assert Counter(old.split(".")[0] for old in OLD_LEAVES) == {
        **{"vae": 55, "encode": 9, "unet": 9, "diffusion": 15, "loop": 28, "optim": 9, "ema": 3, "post_hoc": 3}
    }


@pytest.mark.parametrize("old", OLD_LEAVES)
def test_a_key_of_version_0_1_is_refused_with_todays_name(old: str, tmp_path: Path) -> None:
    new = OLD_LEAVES[old]
    assert f"unknown key '{old}' (--set): it is called {new} now" in message_of(None, f"{old}=1")
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(old.split(".")))
    said = re.search(
        r"unknown key '(\S+)' \(.*\): it is called (\S+) now", message_of(f"{text[:-1]} 1", folder=tmp_path)
    )
    assert said is not None
    below = old.removeprefix(said[1])
    assert (said[1] + below, said[2] + below) == (old, new), "of a section that moved as a whole the section is named"


@pytest.mark.parametrize("value", ["0.05,0.1", "[0.05, 0.1]", "[]"])
def test_widths_that_training_tracks_are_told_from_the_one_to_make(value: str, tmp_path: Path) -> None:
    said = "takes one width; those that training tracks are train.ema.sigma_rel"
    assert said in message_of(None, f"ema.sigma_rel={value}")
    assert value == "0.05,0.1" or said in message_of(f"ema: {{sigma_rel: {value}}}", folder=tmp_path)


def test_an_old_section_does_not_vouch_for_a_key_it_never_had() -> None:
    assert message_of(None, "loop.\x1b[31m=1").startswith("unknown key 'loop' (--set): it is called train.loop now")


def test_a_rule_over_several_fields_names_where_they_were_set(tmp_path: Path) -> None:
    message = message_of("train:\n  diffusion:\n    zero_terminal_snr: true\n", folder=tmp_path)
    assert "zero_terminal_snr cannot be trained with prediction_type epsilon" in message
    assert f"train.diffusion.zero_terminal_snr ({tmp_path / 'run.yaml'}:3)" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n\tvae: a\n", "a tab is used for indentation"),
        ("seed: 1\nseed: 2\n", "the key 'seed' occurs twice, in lines 1 and 2"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases"),
        ("- 1\n", "a list, not a mapping"),
        ("just words\n", "the text 'just words', not a mapping"),
        ("seed: !!python/object/apply:os.system [ls]\n", "is not read"),
        ("seed: 1\n---\nseed: 2\n", "more than one document"),
        ("a: [1, 2\n", "not valid YAML"),
        ("{" * 50 + "\n", "nested deeper"),
        ("? [1]\n: 2\n", "a key must be a word"),
        ("train_vae: 3\n", "is a section"),
        ("seed: {a: 1}\n", "is a mapping where a value belongs"),
        ('train_vae: {data: "a\\nb"}\n', "control character or a line break"),
    ],
)
def test_files_that_are_not_a_config_are_refused_with_the_line(text: str, expected: str, tmp_path: Path) -> None:
    message = message_of(text, folder=tmp_path)
    assert expected in message
    assert "run.yaml" in message


def test_an_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 9)}]" for index in range(1, 12)]
    assert "anchors and aliases" in message_of("\n".join(lines), folder=tmp_path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xfe\x00\x01", "not UTF-8"),
        (b"seed: 1\0\n", "binary"),
        (b"# " + b"x" * 300_000, "more than"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    ],
)
def test_files_that_are_not_text_are_refused(data: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=expected):
        load_config(preset=None, file=str(file), settings=[], flags=[])


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(preset=None, file=str(tmp_path / "none.yaml"), settings=[], flags=[])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(preset=None, file=str(tmp_path), settings=[], flags=[])


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load(preset="fundus-256")
    assert "did you mean fundus256" in str(caught.value)
    assert all(name in caught.value.hint for name in list_presets())


def test_a_resolved_dump_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    settings = [
        "sample.label={dr_grade: 3, is_gc: null}",
        "prepare.source=a dir: with #odd 'names'",
        "train_vae.data=null",
    ]
    loaded = load(None, *settings, "train.run_dir=true", "seed=9", preset="demo-cpu")
    again = load(dump_config(loaded), folder=tmp_path)
    assert again.config == loaded.config
    assert fingerprint(again.config) == fingerprint(loaded.config)


def test_a_dump_names_the_origin_of_each_value() -> None:
    lines = dump_config(load(None, "train.loop.budget_images=77"), only=frozenset({"train"})).splitlines()
    assert "    budget_images: 77                         # --set" in lines
    assert all(line.endswith(("  # default", "  # --set", ":")) for line in lines)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example("a\x85seed: 1")
@example("a\u2028seed: 1")
@example("\x00\x7f\x9f\ufeff\ufffe\U0001f441\U0010ffff")
def test_any_text_written_as_a_value_reads_back_as_itself(text: str) -> None:
    assert parse_flow(f"[{format_value(text)}]", where="test") == [text]


@pytest.mark.parametrize("line_break", ["\x85", "\u2028", "\u2029"])
def test_the_name_of_a_file_cannot_add_values_to_a_dump(tmp_path: Path, line_break: str) -> None:
    odd = tmp_path / f"a{line_break}seed: 5"
    odd.write_text("train: {loop: {budget_images: 77}}\n")
    loaded = load_config(preset=None, file=str(odd), settings=[], flags=[])
    assert load(dump_config(loaded), folder=tmp_path).config == loaded.config


def test_the_fingerprint_changes_with_any_value_and_only_with_values() -> None:
    plain = fingerprint(load().config)
    assert fingerprint(load(None, "seed=0").config) == plain
    assert fingerprint(load(None, "seed=1").config) != plain
    assert len(plain) == 64


def test_a_loaded_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().config.seed = 3  # type: ignore[misc]


def test_a_given_file_is_taken_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "zero2.json" in list_assets("ds_configs")
    shipped = find_asset("ds_configs", "zero2.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero2.json").write_text("{}", encoding="utf-8")
    assert find_asset("ds_configs", "zero2.json") == tmp_path / "zero2.json" != shipped
    assert read_ds_file("zero2.json", device="cpu")[1] == {}


@pytest.mark.parametrize("name", ["nothing.json", "../ds_configs/zero2.json", "", "/", "a\0b"])
def test_an_asset_that_is_neither_given_nor_shipped_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no file"):
        find_asset("slurm", name)


def test_a_deepspeed_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "ds.json"
    broken.write_text("{'a': 1}", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_ds_file(str(broken), device="cuda")


def test_the_default_deepspeed_file_follows_the_device() -> None:
    assert read_ds_file(None, device="cpu")[0].name == "zero2_cpu.json"
    assert read_ds_file(None, device="cuda")[0].name == "zero2.json"
