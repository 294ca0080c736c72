"""NodeOverlays of shared pools, and those of others that would meet them."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.hardware import Hardware
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.manifests.overlays import WEIGHT, overlaid, overlays_used, rivals
from gpu_fleet.core.manifests.pool_facts import PoolFacts
from gpu_fleet.core.manifests.values import helm_values
from gpu_fleet.core.spec import SpecErrors
from tests.unit.core.specs import demo_spec

EIGHT = PoolFacts(Hardware(8, {}, {}))


def test_the_overlay_says_what_a_node_will_advertise_and_of_which_nodes() -> None:
    [overlay] = build("node_overlay", demo_spec(), pool="shared-a10g")
    assert (overlay["apiVersion"], overlay["kind"]) == ("karpenter.sh/v1alpha1", "NodeOverlay")
    assert overlay["metadata"]["name"] == "gpu-fleet-shared-a10g"
    assert overlay["spec"] == {
        "weight": WEIGHT,
        "requirements": [
            {"key": "karpenter.sh/nodepool", "operator": "In", "values": ["shared-a10g"]},
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.xlarge"]},
        ],
        "capacity": {"nvidia.com/gpu": "4"},
    }


def test_the_physical_gpus_are_those_that_ec2_tells() -> None:
    """The same figure that the capacity gate multiplies; the package's table says 1."""
    [overlay] = build("node_overlay", demo_spec(), pool="shared-a10g", facts=EIGHT)
    assert overlay["spec"]["capacity"] == {"nvidia.com/gpu": "32"}


def test_a_type_that_the_table_does_not_know_needs_ec2() -> None:
    spec = demo_spec(nodePools__0__instanceTypes=["g9.xlarge"])
    with pytest.raises(SpecError, match=r"the number of GPUs of g9\.xlarge is unknown"):
        build("node_overlay", spec, pool="shared-a10g")
    assert build("node_overlay", spec, pool="shared-a10g", facts=EIGHT)


@pytest.mark.parametrize(
    "changes",
    [
        {"karpenter__nodeOverlays": False},
        {"karpenter__manage": False},
        {"nodePools__0__manage": False, "teardown__uninstallKarpenter": False},
        {"nodePools__0__sharing": {"mode": "exclusive"}},
    ],
    ids=["switched off", "Karpenter is not ours", "the pool is not ours", "whole GPUs"],
)
def test_without_an_overlay_karpenter_gets_no_gate_either(changes: dict[str, Any]) -> None:
    spec = demo_spec(**changes)
    assert build("node_overlay", spec, pool="shared-a10g") == []
    assert not overlays_used(spec)
    assert "featureGates" not in helm_values(spec, "karpenter")["settings"]


def test_with_an_overlay_the_chart_turns_the_gate_on() -> None:
    spec = demo_spec()
    assert [overlaid(spec, pool) for pool in spec.node_pools] == [True, False]
    assert helm_values(spec, "karpenter")["settings"]["featureGates"] == {"nodeOverlay": True}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"karpenter__settings": {"featureGates": {"nodeOverlay": False}}},
            "karpenter.settings.featureGates.nodeOverlay",
        ),
    ],
)
def test_a_gate_that_is_turned_off_behind_the_overlays_back_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecErrors, match="nodeOverlays: false") as raised:
        demo_spec(**changes)
    assert raised.value.field == field
    assert demo_spec(**changes, karpenter__nodeOverlays=False)


def foreign(
    *requirements: dict[str, Any], weight: int | None = WEIGHT, resource: str = "nvidia.com/gpu"
) -> dict[str, Any]:
    spec = {"requirements": list(requirements), "capacity": {resource: "2"}} | ({"weight": weight} if weight else {})
    return {"metadata": {"name": "theirs"}, "spec": spec}


def needs(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": list(values)}


POOL, TYPE, FAMILY = "karpenter.sh/nodepool", "node.kubernetes.io/instance-type", "karpenter.k8s.aws/instance-family"


@pytest.mark.parametrize(
    ("overlay", "conflicts"),
    [
        (foreign(), True),
        (foreign(needs(TYPE, "In", "g5.xlarge", "g5.2xlarge")), True),
        (foreign(needs(FAMILY, "In", "g5")), True),
        (foreign(needs(POOL, "In", "shared-a10g")), True),
        (foreign(needs(POOL, "NotIn", "other")), True),
        (foreign(needs(POOL, "In", "other")), False),
        (foreign(needs(POOL, "NotIn", "shared-a10g")), False),
        (foreign(needs(TYPE, "In", "p5.48xlarge")), False),
        (foreign(needs(TYPE, "NotIn", "g5.xlarge")), False),
        (foreign(weight=None), False),
        (foreign(weight=9999), False),
        (foreign(resource="example.com/dongle"), False),
    ],
)
def test_which_overlay_of_others_conflicts(overlay: dict[str, Any], conflicts: bool) -> None:
    [ours] = build("node_overlay", demo_spec(), pool="shared-a10g")
    assert rivals([ours, overlay], demo_spec().pool("shared-a10g")) == (["theirs"] if conflicts else [])
