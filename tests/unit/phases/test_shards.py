"""Which DAG file of a family has which cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gpu_fleet.phases.shards import clusters_of, shard_of, stems_of

NAMES = [f"cluster{number:03d}" for number in range(500)]
FOUR = ["gpu_lifecycle", "gpu_lifecycle_2", "gpu_lifecycle_3", "gpu_lifecycle_4"]


def test_every_cluster_is_in_one_file_and_the_files_are_about_even() -> None:
    counts = Counter(shard_of(name, FOUR) for name in NAMES)
    assert set(counts) == set(FOUR)
    assert sum(counts.values()) == len(NAMES)
    assert max(counts.values()) < 1.3 * len(NAMES) / len(FOUR)


def test_one_more_file_moves_clusters_to_itself_alone() -> None:
    more = [*FOUR, "gpu_lifecycle_5"]
    moved = [name for name in NAMES if shard_of(name, FOUR) != shard_of(name, more)]
    assert {shard_of(name, more) for name in moved} == {"gpu_lifecycle_5"}
    assert 0 < len(moved) < 1.5 * len(NAMES) / len(more)


def test_files_share_the_clusters_that_are_there(tmp_path: Path) -> None:
    for stem in (*FOUR, "gpu_lifecycle_x", "gpu_lifecycle_02", "gpu_teardown"):
        (tmp_path / f"{stem}.py").touch()
    assert stems_of("gpu_lifecycle", tmp_path) == FOUR
    mine = {stem: clusters_of("gpu_lifecycle", str(tmp_path / f"{stem}.py")) for stem in FOUR}
    for name in [*NAMES, "odd\udcff"]:
        assert [stem for stem in FOUR if mine[stem](name)] == [shard_of(name, FOUR)]


def test_a_file_that_stands_alone_has_all(tmp_path: Path) -> None:
    (tmp_path / "gpu_teardown.py").touch()
    assert all(map(clusters_of("gpu_teardown", str(tmp_path / "gpu_teardown.py")), NAMES))
    assert all(map(clusters_of("trouble", str(tmp_path / "elsewhere.py")), NAMES))
    assert all(map(clusters_of("trouble", ""), NAMES))
