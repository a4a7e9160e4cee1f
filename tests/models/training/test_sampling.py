"""Which sub-networks a step trains, and which windows it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.ladder import Architecture
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.sampling import rectangle, sample_networks
from stepwell.models.training.windows import Windows


def test_all_sub_networks_are_covered(recipe: NestedConfig) -> None:
    shipped = NestedConfig(output=recipe.output)
    seen = {
        (depth, networks.width)
        for step in range(600)
        for networks in sample_networks(shipped, step)
        for depth in (*networks.exit_depths, shipped.num_layers)
    }
    assert seen == {(depth, width) for depth in range(1, 9) for width in (128, 256, 384, 512)}


@given(step=st.integers(0, 10**6), seed=st.integers(0, 1000), micro_batches=st.sampled_from([1, 2, 4, 8]))
def test_every_step_trains_the_full_network_and_is_reproducible(step: int, seed: int, micro_batches: int) -> None:
    config = NestedConfig(output=".", seed=seed, micro_batches=micro_batches, tokens_per_step=1024 * micro_batches)
    drawn = sample_networks(config, step)
    assert drawn == sample_networks(config, step)
    assert len(drawn) == micro_batches
    assert drawn[0].width == 512
    for networks in drawn:
        assert len(set(networks.exit_depths)) == config.num_exits
        assert list(networks.exit_depths) == sorted(networks.exit_depths)
        assert all(1 <= depth < config.num_layers for depth in networks.exit_depths)


def test_plain_training_runs_the_full_network_only(recipe: NestedConfig) -> None:
    plain = replace(recipe, sampling="plain")
    assert {(n.width, n.exit_depths) for step in range(50) for n in sample_networks(plain, step)} == {(32, ())}


def test_rectangles_of_depth_and_width_are_nested() -> None:
    architecture = Architecture(num_layers=4, num_kv_groups=2, ffn_channels=32)
    assert rectangle(architecture, 4, 32) == architecture.full
    assert rectangle(architecture, 3, 32).contains(rectangle(architecture, 2, 16))
    assert rectangle(architecture, 2, 16).depth == 2


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order() -> None:
    stream = np.arange(1001, dtype=np.int64)
    windows, length = Windows(stream, seed=3), 10
    num_windows = 1000 // length - 1
    first, targets = windows.batch(range(num_windows), length)
    second, _ = windows.batch(range(num_windows, 2 * num_windows), length)
    assert (targets == first + 1).all()
    assert first.flatten().unique().numel() == num_windows * length
    assert second.flatten().unique().numel() == num_windows * length
    assert not (first // length == second // length).all()
