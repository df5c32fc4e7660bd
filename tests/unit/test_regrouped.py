"""A checkpoint whose parameters are in other optimizer groups is read by name, for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from synfundus.distributed.flat_layout import FlatGroup, FlatLayout
from synfundus.training.checkpoints.stored_weights import PartitionSource, partition_name

Groups = list[list[tuple[str, tuple[int, ...]]]]
SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (4, 3, 3, 3),
    "conv.bias": (4,),
    "norm.weight": (4,),
    "linear.weight": (5, 4),
    "scale": (1,),
}
ONE: Groups = [list(SHAPES.items())]
TWO: Groups = [[(n, s) for n, s in SHAPES.items() if (len(s) > 1) == matrices] for matrices in (True, False)]
NAMED = {name: torch.randn(shape) for name, shape in SHAPES.items()}


def flat(group: FlatGroup) -> torch.Tensor:
    return torch.cat([parameter.flatten(NAMED[parameter.name]) for parameter in group.parameters])


def write(folder: Path, layout: FlatLayout, ranks: int) -> None:
    for rank in range(ranks):
        partitions = {}
        for number, group in enumerate(layout.groups):
            whole = torch.zeros(group.partition_size(ranks) * ranks)
            whole[: group.numel] = flat(group)
            partitions[f"group{number}.master"] = whole.chunk(ranks)[rank].clone()
        path = folder / partition_name(rank, ranks)
        path.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file(partitions, path)


@pytest.mark.parametrize(("there", "here"), [(ONE, TWO), (TWO, ONE)])
@pytest.mark.parametrize(("saved_on", "ranks", "channels_last"), [(1, 1, False), (3, 2, True), (2, 4, False)])
def test_every_parameter_comes_back_in_its_new_group(
    tmp_path: Path, there: Groups, here: Groups, saved_on: int, ranks: int, channels_last: bool
) -> None:
    saved = FlatLayout.of(there, channels_last={"conv.weight"} if channels_last else ())
    wanted = FlatLayout.of(here)
    assert wanted.regroups(saved)
    assert not wanted.regroups(wanted)
    write(tmp_path, saved, saved_on)
    source = PartitionSource(str(tmp_path), saved_world_size=saved_on)
    for group in wanted.groups:
        parts = [source.regrouped(saved, group, "master", rank=rank, world_size=ranks) for rank in range(ranks)]
        assert all(len(part) == group.partition_size(ranks) for part in parts)
        whole = torch.cat(parts)
        assert torch.equal(whole[: group.numel], flat(group))
        assert not whole[group.numel :].any()


def test_another_network_is_no_other_grouping() -> None:
    assert not FlatLayout.of(ONE).regroups(FlatLayout.of([[*ONE[0], ("more", (2,))]]))
    assert not FlatLayout.of(ONE).regroups(FlatLayout.of(ONE, channels_last={"conv.weight"}))
