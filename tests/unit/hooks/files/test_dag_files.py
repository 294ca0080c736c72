"""Which DAG file of a family has which cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.fleet_size import shard_of
from gpu_fleet.hooks.files.dag_files import FAMILIES, clusters_of, make_shards, stems_of

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


def test_links_are_made_and_taken_away(tmp_path: Path) -> None:
    for family in FAMILIES:
        (tmp_path / f"{family}.py").write_text(family)
    assert make_shards(tmp_path, 3) == [f"+ {family}_{number}.py" for family in FAMILIES for number in (2, 3)]
    assert (tmp_path / "gpu_teardown_3.py").read_text() == "gpu_teardown"
    assert make_shards(tmp_path, 3) == []
    assert make_shards(tmp_path, 1) == [f"- {family}_{number}.py" for family in FAMILIES for number in (2, 3)]
    assert sorted(path.stem for path in tmp_path.iterdir()) == list(FAMILIES)


def test_what_is_no_link_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"has no {FAMILIES[0]}\.py"):
        make_shards(tmp_path, 2)
    for family in FAMILIES:
        (tmp_path / f"{family}.py").touch()
    (tmp_path / "gpu_lifecycle_2.py").write_text("mine")
    for files in (1, 2):
        with pytest.raises(SpecError, match=r"gpu_lifecycle_2\.py is not a link"):
            make_shards(tmp_path, files)
    assert (tmp_path / "gpu_lifecycle_2.py").read_text() == "mine"
