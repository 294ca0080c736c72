"""When a fleet needs more DAG files."""

from __future__ import annotations

from gpu_fleet.core.fleet_size import FILE_LIMIT_S, NEAR, file_seconds, files_needed, size_note


def test_a_small_fleet_is_told_nothing() -> None:
    assert size_note([], 1) is None
    assert size_note([2] * 50, 1) is None
    assert files_needed([2] * 50) == files_needed([]) == 1


def test_a_fleet_near_the_limit_is_told_how_many_files_it_needs() -> None:
    pools = [2] * 500
    files = files_needed(pools)
    note = size_note(pools, 1)
    assert note is not None
    assert f"500 clusters with 1000 pools in one file per family take up to {file_seconds(pools, 1):.0f} s" in note
    assert note.endswith(f"python -m gpu_fleet shards {files}")
    assert file_seconds(pools, files) <= FILE_LIMIT_S * NEAR < file_seconds(pools, files - 1)
    assert size_note(pools, files) is None
    assert "in 2 files per family" in (size_note([2] * 5000, 2) or "")
