"""Labels become vectors: unknown has its own, neighbouring grades share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from synfundus.errors import CheckpointError, ConfigError
from synfundus.models.conditioner import LabelConditioner


def conditioner_of(seed: int = 0) -> LabelConditioner:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LabelConditioner(num_values=[5, 2, 3], ordinal=[True, False, False], token_dim=8, pooled_dim=6)


def token(conditioner: LabelConditioner, label: int, state: int) -> torch.Tensor:
    states = torch.zeros(1, 3, dtype=torch.int64)
    states[0, label] = state
    tokens, _ = conditioner(states)
    return tokens[0, label].detach()  # type: ignore[no-any-return]


def test_one_token_per_label_and_one_pooled_vector() -> None:
    tokens, pooled = conditioner_of()(torch.tensor([[0, 1, 2], [5, 2, 3]]))
    assert tokens.shape == (2, 3, 8)
    assert pooled.shape == (2, 6)


def test_every_state_of_every_label_has_a_vector_of_its_own() -> None:
    conditioner = conditioner_of()
    vectors = [token(conditioner, label, state) for label, count in enumerate((5, 2, 3)) for state in range(count + 1)]
    distances = torch.cdist(torch.stack(vectors), torch.stack(vectors)) + torch.eye(len(vectors))
    assert float(distances.min()) > 1e-3


def test_a_grade_is_the_grade_below_plus_one_learned_step() -> None:
    conditioner = conditioner_of()
    for grade in range(1, 5):
        step = conditioner.table[1 + grade].detach()
        difference = token(conditioner, 0, grade + 1) - token(conditioner, 0, grade)
        torch.testing.assert_close(difference, step)


def test_training_a_high_grade_moves_the_steps_below_it_and_neither_unknown_nor_other_labels() -> None:
    conditioner = conditioner_of()
    tokens, _ = conditioner(torch.tensor([[4, 0, 0]]))
    torch.autograd.backward(tokens[0, 0].sum())
    assert conditioner.table.grad is not None
    moved = conditioner.table.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [False, True, True, True, True, False] + [False] * 7


def test_nominal_values_share_nothing() -> None:
    conditioner = conditioner_of()
    tokens, _ = conditioner(torch.tensor([[0, 0, 3]]))
    torch.autograd.backward(tokens[0, 2].sum())
    assert conditioner.table.grad is not None
    assert int((conditioner.table.grad.abs().sum(dim=1) > 0).sum()) == 1


def test_saved_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    conditioner = conditioner_of()
    conditioner.save_pretrained(tmp_path / "conditioner")
    back = LabelConditioner.from_pretrained(tmp_path / "conditioner")
    states = torch.tensor([[0, 1, 2], [5, 2, 3]])
    for ours, theirs in zip(conditioner(states), back(states), strict=True):
        assert torch.equal(ours, theirs)
    assert sorted(path.name for path in (tmp_path / "conditioner").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_without_a_conditioner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no label conditioner"):
        LabelConditioner.from_pretrained(tmp_path)


def test_weights_of_another_schema_are_refused(tmp_path: Path) -> None:
    conditioner_of().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_values"] = [5, 2, 4]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not match the config"):
        LabelConditioner.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("num_values", "ordinal", "words"),
    [([], [], "empty"), ([2], [True, False], "ordinal flag"), ([2, 1], [False, False], r"labels \[1\]")],
)
def test_impossible_schemas_are_refused(num_values: list[int], ordinal: list[bool], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelConditioner(num_values=num_values, ordinal=ordinal, token_dim=4, pooled_dim=4)


@pytest.mark.parametrize("width", [32, 64, 512])
def test_labels_enter_at_the_scale_of_one(width: int) -> None:
    """Initialised to shrink, as by default, labels are learned late (docs/LOG.md, entry 9)."""
    torch.manual_seed(0)
    conditioner = LabelConditioner(
        num_values=[2] * 15 + [5], ordinal=[False] * 15 + [True], token_dim=width, pooled_dim=width
    )
    states = torch.randint(1, 3, (512, 16))
    with torch.no_grad():
        tokens, pooled = conditioner(states)
    assert 0.4 < float(tokens.std(dim=0).mean()) < 1.5
    assert 0.4 < float(pooled.std(dim=0).mean()) < 1.5
