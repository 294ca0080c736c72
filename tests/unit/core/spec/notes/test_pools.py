"""What a valid spec says about what its pools buy."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.core.spec.instances import vcpus
from gpu_fleet.core.spec.notes import notes_of
from tests.unit.core.specs import demo_spec

OWN_TAINT = [{"key": "example.com/a100", "effect": "NoSchedule"}]
GPU_TAINT = [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]


def notes(**changes: Any) -> dict[str, str]:
    return {note.field: note.message for note in notes_of(demo_spec(**changes))}


def test_pools_of_other_hardware_behind_the_same_taint_are_noted_once() -> None:
    found = notes()
    assert "nodeSelector: gpu-fleet.io/pool: shared-a10g" in found["nodePools[0].taints"]
    assert "nodePools[1].taints" not in found


def test_a_taint_of_its_own_keeps_a_pool_apart() -> None:
    assert "nodePools[0].taints" not in notes(nodePools__1__taints=OWN_TAINT)


def test_a_pod_that_tolerates_more_reaches_what_asks_for_less() -> None:
    found = notes(nodePools__1__taints=[*GPU_TAINT, *OWN_TAINT])
    assert [field for field in found if field.endswith("taints")] == ["nodePools[1].taints"]
    assert "can also use shared-a10g" in found["nodePools[1].taints"]


def test_a_taint_that_is_only_preferred_keeps_nobody_away() -> None:
    preferred = [{**OWN_TAINT[0], "effect": "PreferNoSchedule"}, *GPU_TAINT]
    assert "nodePools[0].taints" in notes(nodePools__1__taints=preferred)


def test_pools_that_are_alike_may_be_reached_by_the_same_pod() -> None:
    alike = {
        "nodePools__1__instanceTypes": ["g5.xlarge"],
        "nodePools__1__sharing": demo_spec().to_json()["nodePools"][0]["sharing"],
    }
    assert "nodePools[0].taints" not in notes(**alike)


def test_a_pool_that_wants_no_node_says_that_it_buys_none() -> None:
    found = notes(nodePools__0__wantedNodes=0, nodePools__0__limits=...)
    assert "limits: {nodes: N}" in found["nodePools[0].wantedNodes"]
    assert "nodePools[0].wantedNodes" not in notes(nodePools__0__wantedNodes=0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"karpenter__nodeOverlays": False}, "nodeOverlays is false"), ({"karpenter__manage": False}, "not managed")],
)
def test_what_a_burst_costs_without_an_overlay_is_noted(changes: dict[str, Any], why: str) -> None:
    assert "nodePools[0].sharing" not in notes()
    found = notes(**changes)["nodePools[0].sharing"]
    assert why in found
    assert "up to 4 of pool shared-a10g" in found


def test_types_of_unequal_vcpus_have_no_exact_cap() -> None:
    found = notes(nodePools__0__instanceTypes=["g5.xlarge", "g5.2xlarge"])["nodePools[0].instanceTypes"]
    assert "buy 8 nodes of pool shared-a10g instead of 4" in found
    assert "nodePools[0].instanceTypes" not in notes()


def test_more_shares_than_places_for_pods_are_noted() -> None:
    """g4dn.xlarge has 29: 3 interfaces x (10 - 1) + 2."""
    sharing = {"mode": "timeSlicing", "replicas": 27}
    found = notes(nodePools__0__instanceTypes=["g4dn.xlarge"], nodePools__0__sharing=sharing)
    assert "at most 26 replicas can be used" in found["nodePools[0].sharing.replicas"]
    fits = {"nodePools__0__instanceTypes": ["g4dn.xlarge"], "nodePools__0__sharing": {**sharing, "replicas": 26}}
    assert "nodePools[0].sharing.replicas" not in notes(**fits)


@pytest.mark.parametrize("name", ["g6f.large", "g6f.4xlarge", "gr6f.4xlarge"])
def test_a_part_of_a_gpu_is_refused_by_that_name(name: str) -> None:
    with pytest.raises(SpecErrors, match=f"{name} has only a part of a GPU") as raised:
        demo_spec(nodePools__0__instanceTypes=[name])
    assert "g6.xlarge" in str(raised.value)


def test_a_label_of_the_package_is_not_the_files_to_set() -> None:
    with pytest.raises(SpecErrors, match=r"gpu-fleet\.io/pool is set by the package itself"):
        demo_spec(nodePools__0__labels={"gpu-fleet.io/pool": "x"})


@pytest.mark.parametrize("weight", [0, 101])
def test_karpenters_bounds_of_a_weight(weight: int) -> None:
    with pytest.raises(SpecErrors, match="weight"):
        demo_spec(nodePools__0__weight=weight)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("g6f.large", 2),
        ("g5.xlarge", 4),
        ("g5.2xlarge", 8),
        ("p4d.24xlarge", 96),
        ("g4dn.metal", 96),
        ("g9.metal", None),
        ("g9.2xlarge", 8),
        ("odd", None),
    ],
)
def test_vcpus_by_size(name: str, count: int | None) -> None:
    assert vcpus(name) == count


def test_arm_is_noted_with_what_it_needs() -> None:
    [note] = [
        str(note)
        for note in notes_of(demo_spec(nodePools__0__instanceTypes=["g5g.xlarge", "g5.xlarge"]))
        if "arm64" in str(note)
    ]
    assert "g5g.xlarge has Arm processors" in note
    assert "g5.xlarge amd64: a job gets either" in note
    assert not [note for note in notes_of(demo_spec()) if "arm64" in str(note)]
