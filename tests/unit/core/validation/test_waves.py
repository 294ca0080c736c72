from __future__ import annotations

import pytest

from gpu_fleet.core.validation.waves import sample, waves

NODES = [f"ip-10-0-0-{index}" for index in range(20)]


def test_without_a_sample_all_nodes_are_taken() -> None:
    assert sample(reversed(NODES), None, "run") == sorted(NODES)


def test_a_sample_is_the_same_in_every_try_and_another_in_every_run() -> None:
    chosen = sample(NODES, 5, "gpu_revalidate.demo/run-1")
    assert len(chosen) == 5
    assert chosen == sample(reversed(NODES), 5, "gpu_revalidate.demo/run-1")
    assert len({tuple(sample(NODES, 5, f"run-{index}")) for index in range(10)}) > 5


def test_every_node_has_its_turn() -> None:
    seen = {name for index in range(40) for name in sample(NODES, 5, f"run-{index}")}
    assert seen == set(NODES)


def test_a_node_that_goes_changes_nothing_about_the_others() -> None:
    chosen = sample(NODES, 5, "run")
    other = next(name for name in NODES if name not in chosen)
    assert sample([name for name in NODES if name != other], 5, "run") == chosen


def test_quarantined_nodes_are_chosen_beyond_the_count() -> None:
    chosen = sample(NODES, 2, "run", always=NODES[:3])
    assert set(NODES[:3]) < set(chosen)
    assert len(chosen) == 5


@pytest.mark.parametrize(("count", "least"), [(100, 20), (20, 20), (1, 1)])
def test_a_sample_is_never_larger_than_the_pool(count: int, least: int) -> None:
    assert len(sample(NODES, count, "run")) == least


@pytest.mark.parametrize(
    ("count", "at_once", "sizes"),
    [(0, 5, []), (1, 5, [1]), (5, 5, [5]), (6, 5, [3, 3]), (20, 50, [20]), (20, 1, [1] * 20), (11, 4, [4, 4, 3])],
)
def test_waves_hold_all_nodes_once_and_are_as_equal_as_can_be(count: int, at_once: int, sizes: list[int]) -> None:
    found = waves(NODES[:count], at_once)
    assert [len(wave) for wave in found] == sizes
    assert [node for wave in found for node in wave] == NODES[:count]
