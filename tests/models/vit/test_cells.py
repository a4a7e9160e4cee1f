"""Clusters and super tokens: against the formulas with full distance matrices, and where they change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.cells import bands, nested_cells, spread, strongest
from stepwell.models.vit.reducers.clustering import ClusterSettings, cluster, reconstruct
from stepwell.models.vit.reducers.super_tokens import SuperTokens, sample

GRIDS = st.builds(Grid, st.integers(1, 7), st.integers(1, 7), st.just(1))


def features(grid: Grid, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, grid.num_patches, 6, generator=generator, dtype=torch.float64)


def out_of_reach(grid: Grid, cells: tuple[int, int], radius: int) -> Tensor:
    """bool [patches, cells], one pair at a time."""
    far = torch.zeros(grid.num_patches, cells[0] * cells[1], dtype=torch.bool)
    for i in range(grid.num_patches):
        row, column = (i // grid.width) * cells[0] // grid.height, (i % grid.width) * cells[1] // grid.width
        for p in range(far.shape[1]):
            far[i, p] = abs(p // cells[1] - row) > radius or abs(p % cells[1] - column) > radius
    return far


def pooled(x: Tensor, grid: Grid, cells: tuple[int, int]) -> Tensor:
    plane = x.transpose(1, 2).reshape(len(x), -1, grid.height, grid.width)
    return F.adaptive_avg_pool2d(plane, cells).flatten(2).transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, data=st.data())
def test_clusters_are_those_of_the_formula(grid: Grid, data: st.DataObject) -> None:
    cells = data.draw(st.sampled_from(nested_cells(grid)))
    constants = ClusterSettings(data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 3, 5])), 0.3, 4)
    x, far = features(grid), out_of_reach(grid, cells, constants.window // 2)
    s = pooled(x, grid, cells)
    for _ in range(constants.num_iterations):
        q = (-0.3 * torch.cdist(x, s) ** 2).masked_fill(far, -torch.inf).softmax(2)
        s = q.transpose(1, 2) @ x / q.sum(1).clamp_min(1e-12)[..., None]
    w = torch.exp(-0.3 * torch.cdist(x, s) ** 2).masked_fill(far, 0)
    k_th = w.topk(min(4, w.shape[2]), dim=2).values[..., -1:]
    w = w.masked_fill(w < k_th, 0)
    back = F.normalize(w, p=1, dim=2) @ s.flip(0)

    clusters, closeness = cluster(x, grid, cells, constants)
    at = bands(grid, cells, constants.window // 2)
    assert_close(clusters, s)
    assert_close(reconstruct(clusters.flip(0), closeness, at, 4), back)
    assert strongest(closeness, at).tolist() == w.argmax(2).tolist()


def test_as_many_clusters_as_patches_leave_all_as_it_is() -> None:
    """With a large tau every patch belongs to its own cluster alone."""
    grid, sharp = Grid(6, 5, 1), replace(ClusterSettings(), tau=200.0)
    x = features(grid)
    clusters, closeness = cluster(x, grid, (6, 5), sharp)
    assert_close(clusters, x)
    assert_close(reconstruct(clusters, closeness, bands(grid, (6, 5), 2), 20), x)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, data=st.data())
def test_super_tokens_are_those_of_the_formula(grid: Grid, data: st.DataObject) -> None:
    cells = data.draw(st.sampled_from(nested_cells(grid)))
    x, far = features(grid), out_of_reach(grid, cells, 1)
    normed = F.layer_norm(x, (6,))
    q = (normed @ pooled(normed, grid, cells).transpose(1, 2) / 6**0.5).masked_fill(far, -torch.inf).softmax(2)
    s = q.transpose(1, 2) @ x / (q.sum(1)[..., None] + 1e-12)
    tokens, shares = sample(F.pad(x, (0, 0, grid.num_prefix, 0), value=7.0), grid, cells)
    assert_close(tokens, s)
    assert_close(spread(shares, tokens.flip(0), bands(grid, cells, 1)), q @ s.flip(0))


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, budget=st.sampled_from([0.1, 0.3, 0.6, 0.9]), each=st.integers(1, 4), trained=st.booleans())
def test_what_layers_add_to_super_tokens_comes_back_before_others_are_sampled(
    grid: Grid, budget: float, each: int, trained: bool
) -> None:
    """With layers that double what they get."""
    num_layers, pad = 5, (0, 0, 1, 0)
    reducer = SuperTokens(ViTConfig(6, num_layers, 1, 6, (8, 8), 8), {"layers_per_sampling": each})
    counts = [layer.ffn - 1 for layer in reducer.schedule(grid, num_layers, budget)]
    cells = [next(at for at in nested_cells(grid) if math.prod(at) == count) for count in counts]
    x, expected, age = F.pad(features(grid), pad, value=0.5), features(grid), 0
    way, s, shares = reducer.begin(grid, num_layers, budget), expected, None
    with torch.set_grad_enabled(trained):
        for layer in range(num_layers):
            if layer == 0 or age == each or cells[layer] != cells[layer - 1]:
                s, shares, age = expected, None, 0
                if cells[layer] != grid[:2]:
                    s, own = sample(F.pad(expected, pad), grid, cells[layer])
                    shares = spread(
                        own, torch.eye(s.shape[1], dtype=s.dtype).expand(2, -1, -1), bands(grid, cells[layer], 1)
                    )
                start, sampled = expected, s
            x = way.before_layer(layer, x)
            assert x.shape[1] == 1 + counts[layer]
            x, s, age = x * 2.0, s * 2.0, age + 1
            expected = s if shares is None else start + shares @ (s - sampled)
            assert_close(way.restore(x)[:, 1:], expected)
            x = way.after_layer(layer, x)
    assert_close(x, F.pad(expected, pad, value=0.5 * 2.0**num_layers))


@pytest.mark.parametrize("size", [(14, 14), (1, 6), (5, 3), (7, 20)])
def test_cells_grow_one_row_or_column_at_a_time(size: tuple[int, int]) -> None:
    steps = nested_cells(Grid(*size, 1))
    assert steps[0] == (1, 1)
    assert steps[-1] == size
    assert all((b[0] - a[0], b[1] - a[1]) in ((0, 1), (1, 0)) for a, b in pairwise(steps))
    assert all(abs(rows / size[0] - columns / size[1]) <= 1 / min(size) + 1e-9 for rows, columns in steps[1:])
