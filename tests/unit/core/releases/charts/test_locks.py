"""The chart lock file: what is in it, and what a spec becomes with it."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.charts.locks import Locked, charts_of, locked_spec, parse_locks, render_locks
from gpu_fleet.core.releases.components import chart_of
from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from gpu_fleet.hooks.files.clusters import load_cluster

A, B = (f"sha256:{letter * 64}" for letter in "ab")


def spec(**changes: Any) -> ClusterSpec:
    return parse_cluster({**load_cluster("demo").to_json(), **changes})


def locks(digest: str = A) -> list[Locked]:
    return [Locked(chart.repository, chart.name, chart.version, digest) for chart in charts_of(spec())]


def test_a_lock_file_survives_writing_and_reading() -> None:
    document = render_locks(locks())
    assert parse_locks(document, "f") == tuple(sorted(locks()))
    assert [item["name"] for item in document["charts"]] == ["nvidia-device-plugin", "karpenter", "karpenter-crd"]


def test_every_component_is_requested_with_its_locked_digest() -> None:
    locked = locked_spec(spec(), locks(), "f")
    for component in ("karpenter-crd", "karpenter", "device-plugin"):
        assert chart_of(locked, component).digest == A  # type: ignore[arg-type]
    assert locked.digest != spec().digest


def test_a_chart_that_is_not_locked_is_refused() -> None:
    others = [item for item in locks() if item.name != "karpenter"]
    with pytest.raises(SpecError, match="python -m gpu_fleet lock") as caught:
        locked_spec(spec(), others, "charts.lock.yaml")
    assert caught.value.reason == "ChartNotLocked"


def test_a_component_of_somebody_else_needs_no_lock() -> None:
    value = spec().to_json()
    value["karpenter"]["manage"] = False
    plugin = [item for item in locks() if item.name == "nvidia-device-plugin"]
    assert locked_spec(parse_cluster(value), plugin, "f").device_plugin.chart.digest == A


def test_a_spec_that_wants_another_digest_is_refused() -> None:
    value = spec().to_json()
    value["devicePlugin"]["chart"]["digest"] = B
    with pytest.raises(SpecError) as caught:
        locked_spec(parse_cluster(value), locks(), "f")
    assert caught.value.reason == "ChartLockDiffers"
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
    ],
)
def test_what_is_no_lock_file_names_the_entry(value: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_locks(value, "f")
    assert caught.value.field == field
