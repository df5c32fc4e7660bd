"""Labels to conditioning: one token per label and one pooled vector.

A label is a small integer or UNKNOWN, and UNKNOWN is a state with its own vector, not zero: public data sets have only
some of the labels, and the unconditional input of classifier-free guidance is the row with all labels UNKNOWN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synfundus.errors import CheckpointError, ConfigError

_CONFIG_NAME = "config.json"
CONDITIONER_WEIGHTS_NAME = "model.safetensors"
_CLASS_NAME = "LabelConditioner"
_SILU_GAIN = 1.68
"""One over the root mean square of SiLU of a standard normal variable."""


class LabelConditioner(nn.Module):
    """Embed the label states of a sample.

    A nominal label has one vector per value. An ordinal label of ``n`` values has a base and ``n - 1`` steps, and value
    ``v`` is the base plus the first ``v`` steps (thermometer code): neighbouring grades share all but one step, so
    that a rare grade also learns from its common neighbours.

    Args:
        num_values: Number of values of each label, UNKNOWN not counted.
        ordinal: Whether the values of each label are ordered.
        token_dim: Width of a token, the U-Net's ``cross_attention_dim``.
        pooled_dim: Width of the pooled vector, the U-Net's ``class_labels``.

    Raises:
        ConfigError: No label, lists of different lengths, a label with fewer than two values, or a width below one.

    Source: ADR-0009; ordinal code after Frank and Hall 2001, "A simple approach to ordinal classification".
    """

    offsets: Tensor
    accumulate: Tensor

    def __init__(self, *, num_values: Sequence[int], ordinal: Sequence[bool], token_dim: int, pooled_dim: int) -> None:
        super().__init__()
        _check_schema(num_values, ordinal, token_dim, pooled_dim)
        self.num_values = tuple(int(count) for count in num_values)
        self.ordinal = tuple(bool(flag) for flag in ordinal)
        self.token_dim = token_dim
        self.pooled_dim = pooled_dim
        offsets, accumulate = _plan_table(self.num_values, self.ordinal)
        # Both follow from the schema: kept out of the state dict, rebuilt from config.json.
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("accumulate", accumulate, persistent=False)
        self.table = nn.Parameter(torch.empty(accumulate.shape[0], token_dim))
        nn.init.normal_(self.table)
        self.pool = nn.Sequential(nn.Linear(token_dim, pooled_dim), nn.SiLU(), nn.Linear(pooled_dim, pooled_dim))
        for layer in (self.pool[0], self.pool[2]):
            _keep_variance(layer)

    @property
    def num_labels(self) -> int:
        """Number of labels, which is the number of tokens."""
        return len(self.num_values)

    def forward(self, states: Int[Tensor, "b k"]) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b p"]]:
        """Return the tokens for cross-attention and the pooled vector for the time embedding.

        Args:
            states: 0 = UNKNOWN, value ``v`` is ``v + 1``.
        """
        vectors = self.accumulate.to(self.table.dtype) @ self.table
        return self._pooled(vectors[states + self.offsets])

    def between(
        self, low: Int[Tensor, "b k"], high: Int[Tensor, "b k"], share: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b p"]]:
        """Return what `forward` returns for states on the way from ``low`` to ``high``.

        Between neighbouring grades of an ordinal label that is a share of the step that parts them.

        Args:
            low: States at a share of 0.
            high: States at a share of 1.
            share: Of the way, for each label.
        """
        vectors = self.accumulate.to(self.table.dtype) @ self.table
        first, second = vectors[low + self.offsets], vectors[high + self.offsets]
        return self._pooled(first + share.to(first.dtype)[..., None] * (second - first))

    def _pooled(self, tokens: Float[Tensor, "b k d"]) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b p"]]:
        # the square root keeps the sum at the scale of one token for any number of labels
        return tokens, self.pool(tokens.sum(dim=1) / math.sqrt(self.num_labels))

    def config_text(self) -> str:
        """Return the content of its ``config.json``."""
        config = {
            "_class_name": _CLASS_NAME,
            "num_values": list(self.num_values),
            "ordinal": list(self.ordinal),
            "token_dim": self.token_dim,
            "pooled_dim": self.pooled_dim,
        }
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (no pickle) into a local folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG_NAME).write_text(self.config_text(), encoding="utf-8")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / CONDITIONER_WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LabelConditioner:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: The folder holds no conditioner, or its weights do not match its config.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
            tensors = load_file(folder / CONDITIONER_WEIGHTS_NAME)
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise CheckpointError(f"no label conditioner here: {error}", where=str(folder)) from error
        if config.get("_class_name") != _CLASS_NAME:
            raise CheckpointError(
                f"the config names the class {config.get('_class_name')!r}, expected {_CLASS_NAME!r}", where=str(folder)
            )
        conditioner = cls(
            num_values=config["num_values"],
            ordinal=config["ordinal"],
            token_dim=config["token_dim"],
            pooled_dim=config["pooled_dim"],
        )
        try:
            conditioner.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"weights do not match the config: {error}", where=str(folder)) from error
        return conditioner


def _keep_variance(layer: nn.Module) -> None:
    """Draw weights that preserve variance through a SiLU.

    PyTorch's default reduces it with every layer: the labels would enter the network at a twelfth of the time
    embedding's scale, and be learned that much later (docs/LOG.md, entry 9).

    Source: He et al. 2015, "Delving deep into rectifiers", Eq. 10, with the gain of SiLU.
    """
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=_SILU_GAIN / math.sqrt(layer.in_features))
        nn.init.zeros_(layer.bias)


def _check_schema(num_values: Sequence[int], ordinal: Sequence[bool], token_dim: int, pooled_dim: int) -> None:
    """Refuse values no table can be built from."""
    if not num_values:
        raise ConfigError("the label schema is empty: a conditional model needs at least one label")
    if len(num_values) != len(ordinal):
        raise ConfigError(f"{len(num_values)} labels have values, {len(ordinal)} have an ordinal flag")
    short = [index for index, count in enumerate(num_values) if count < 2]
    if short:
        raise ConfigError(f"labels {short} have fewer than two values: nothing to condition on")
    if token_dim < 1 or pooled_dim < 1:
        raise ConfigError(f"token_dim {token_dim} and pooled_dim {pooled_dim} must be at least 1")


def _plan_table(num_values: tuple[int, ...], ordinal: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """Return each label's first row, and the 0/1 matrix that turns learned rows into state vectors."""
    offsets: list[int] = []
    blocks: list[Tensor] = []
    row = 0
    for count, ordered in zip(num_values, ordinal, strict=True):
        block = torch.eye(count + 1)
        if ordered:
            block[1:, 1:] = torch.ones(count, count).tril()
        offsets.append(row)
        blocks.append(block)
        row += count + 1
    return torch.tensor(offsets), torch.block_diag(*blocks)
