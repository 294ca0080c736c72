"""The chart lock file: what is in it, and what a spec becomes with it."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.charts.locks import (
    Locked,
    LockFile,
    charts_of,
    locked_spec,
    parse_locks,
    render_locks,
    unlocked_charts,
)
from gpu_fleet.core.releases.components import chart_of
from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from gpu_fleet.hooks.files.clusters import load_cluster

ENTRY = {"repository": "r", "name": "n", "version": "1", "digest": f"sha256:{'a' * 64}"}
A, B = (f"sha256:{letter * 64}" for letter in "ab")


def spec(**changes: Any) -> ClusterSpec:
    return parse_cluster({**load_cluster("demo").to_json(), **changes})


def locks(digest: str = A, *, without: str = "", others: bool = False) -> LockFile:
    charts = [item for item in charts_of(spec()) if not without or not item.name.startswith(without)]
    return LockFile(
        tuple(sorted(Locked(chart.repository, chart.name, chart.version, digest) for chart in charts)), others
    )


def test_a_lock_file_survives_writing_and_reading() -> None:
    document = render_locks(locks())
    assert parse_locks(document, "f") == locks()
    assert [item["name"] for item in document["charts"]] == ["nvidia-device-plugin", "karpenter", "karpenter-crd"]


def test_every_component_is_requested_with_its_locked_digest() -> None:
    locked = locked_spec(spec(), locks(), "f")
    for component in ("karpenter-crd", "karpenter", "device-plugin"):
        assert chart_of(locked, component).digest == A  # type: ignore[arg-type]
    assert locked.digest != spec().digest


def test_a_chart_that_is_not_locked_is_refused() -> None:
    with pytest.raises(SpecError, match="python -m gpu_fleet lock") as caught:
        locked_spec(spec(), locks(without="karpenter-crd"), "charts.lock.yaml")
    assert caught.value.reason == "ChartNotLocked"


def test_a_lock_file_may_leave_other_charts_to_their_version() -> None:
    file = locks(without="karpenter", others=True)
    locked = locked_spec(spec(), file, "f")
    assert locked.device_plugin.chart.digest == A
    assert (locked.karpenter.chart.digest, locked.karpenter.chart.crd_digest) == (None, None)
    assert [chart.name for chart in unlocked_charts(spec(), file)] == ["karpenter-crd", "karpenter"]
    assert parse_locks(render_locks(file), "f") == file
    assert unlocked_charts(spec(), locks()) == ()


def test_digests_in_the_cluster_file_stay_where_the_lock_file_says_nothing() -> None:
    value = spec().to_json()
    value["karpenter"]["chart"] |= {"digest": B, "crdDigest": B}
    wanted, file = parse_cluster(value), locks(without="karpenter", others=True)
    locked = locked_spec(wanted, file, "f")
    assert (locked.karpenter.chart.digest, locked.karpenter.chart.crd_digest) == (B, B)
    assert unlocked_charts(wanted, file) == ()


def test_another_version_than_the_locked_one_is_another_chart() -> None:
    value = spec().to_json()
    value["devicePlugin"]["chart"]["version"] = "0.19.3"
    other = parse_cluster(value)
    assert locked_spec(other, locks(others=True), "f").device_plugin.chart.digest is None
    with pytest.raises(SpecError):
        locked_spec(other, locks(), "f")


def test_the_source_of_a_digest_is_kept_and_not_compared() -> None:
    with_source = Locked("r", "n", "1", A, "index.yaml, 2026-08-20")
    assert with_source == Locked("r", "n", "1", A)
    (read,) = parse_locks(render_locks(LockFile((with_source,))), "f").charts
    assert read.source == with_source.source


def test_a_component_of_somebody_else_needs_no_lock() -> None:
    value = spec().to_json()
    value["karpenter"]["manage"] = False
    assert locked_spec(parse_cluster(value), locks(without="karpenter"), "f").device_plugin.chart.digest == A


def test_a_spec_that_wants_another_digest_is_refused() -> None:
    value = spec().to_json()
    value["devicePlugin"]["chart"]["digest"] = B
    with pytest.raises(SpecError) as caught:
        locked_spec(parse_cluster(value), locks(), "f")
    assert caught.value.reason == "ChartLockDiffers"
    assert A in caught.value.message
    assert B in caught.value.message
    assert locked_spec(parse_cluster(value), locks(B), "f").device_plugin.chart.digest == B


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "f"),
        ({"charts": {}}, "f"),
        ({"charts": ["x"]}, "f: charts[0]"),
        ({"charts": [{"repository": "r", "name": "n", "version": "1"}]}, "f: charts[0]"),
        ({"charts": [{"repository": "r", "name": "n", "version": "1", "digest": "x"}]}, "f: charts[0].digest"),
        ({"charts": [{"repository": "r", "name": "n", "version": "1", "digest": f"{A}\n"}]}, "f: charts[0].digest"),
        ({"charts": [{**ENTRY, "date": "2026-08-20"}]}, "f: charts[0]"),
        ({"charts": [ENTRY, {**ENTRY, "digest": B}]}, "f: charts[1].digest"),
        ({"charts": [ENTRY], "others": "maybe"}, "f"),
        ({"charts": [ENTRY], "others": ["by-version"]}, "f"),
        ({"charts": [ENTRY], "other": "by-version"}, "f"),
    ],
)
def test_what_is_no_lock_file_names_the_entry(value: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_locks(value, "f")
    assert caught.value.field == field
