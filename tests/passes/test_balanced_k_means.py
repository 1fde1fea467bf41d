from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeify.pipeline.context import PassContext
from moeify_passes.experts.balanced_k_means import BalancedKMeans
from moeify_passes.experts.k_means import balanced_k_means
from passes.tiny import planted_site, site_of


def agreement(groups: tuple[Tensor, ...], labels: Tensor) -> float:
    """The share of neurons that are with the most frequent planted label of their group."""
    return sum(int(labels[group].bincount().max()) for group in groups) / len(labels)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_sizes_are_kept_and_the_objective_never_rises(sizes: list[int], width: int, binary: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), width, generator=generator)
    rows = rows > 0.5 if binary else rows
    found = balanced_k_means(rows, torch.tensor(sizes), 10, generator)
    assert found.labels.bincount(minlength=len(sizes)).tolist() == sizes
    assert list(found.objectives) == sorted(found.objectives, reverse=True)
    assert abs(found.gap) < 1e-6
    assert torch.cat(found.groups()).sort().values.tolist() == list(range(sum(sizes)))


def test_planted_directions_are_found() -> None:
    planted = planted_site(groups=4)
    for seed in range(5):
        groups = BalancedKMeans().group(planted.site, torch.arange(48), (12,) * 4, PassContext(seed=seed))
        assert agreement(groups, planted.groups) == 1.0


@pytest.mark.parametrize("normalize", [True, False])
def test_with_normalizing_the_length_of_a_row_does_not_matter(normalize: bool) -> None:
    up, down = torch.randn(48, 12, generator=torch.Generator().manual_seed(0)), torch.ones(48, 3)
    stretched = up * (2.0 ** torch.arange(-24, 24))[:, None]  # powers of two: no rounding
    plain, other = (
        BalancedKMeans(normalize=normalize).group(
            site_of("s", "relu", up=u, down=down), torch.arange(48), (12,) * 4, PassContext()
        )
        for u in (up, stretched)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, other)) == normalize


def test_rows_chosen_are_the_rows_clustered() -> None:
    """Groups planted in the output rows are found there, not in the keys."""
    planted = planted_site(groups=4)
    keys = planted.site.up.read()
    noise = torch.randn(48, 12, generator=torch.Generator().manual_seed(5))
    object.__setattr__(planted.site.up, "load", lambda _: noise)
    object.__setattr__(planted.site.down, "load", lambda _: keys)
    groups = BalancedKMeans(rows="down").group(planted.site, torch.arange(48), (12,) * 4, PassContext())
    assert agreement(groups, planted.groups) == 1.0
    groups = BalancedKMeans(rows="up").group(planted.site, torch.arange(48), (12,) * 4, PassContext())
    assert agreement(groups, planted.groups) < 0.8
