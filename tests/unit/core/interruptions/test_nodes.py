"""Which nodes the package answers for."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.interruptions.nodes import instance_of, our_node
from gpu_fleet.core.interruptions.ways import Owner

POOLS, GROUPS = ("a10g",), ("gpu-group",)


def node(labels: dict[str, str], gpus: str | None = "4", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "ip-10-0-0-1", "uid": "u1", "labels": labels},
        "spec": {"providerID": "aws:///us-west-2a/i-0abc", **spec},
        "status": {"allocatable": {} if gpus is None else {"nvidia.com/gpu": gpus}},
    }


OURS = {
    "karpenter.sh/nodepool": "a10g",
    "karpenter.sh/capacity-type": "spot",
    "node.kubernetes.io/instance-type": "g5.xlarge",
    "topology.kubernetes.io/zone": "us-west-2a",
}


def test_a_node_of_a_pool_is_ours_with_what_it_is() -> None:
    claim = {"metadata": {"name": "a10g-x7k"}}
    found = our_node(node(OURS), {"ip-10-0-0-1": claim}, POOLS, ())
    assert found is not None
    assert (found.owner, found.pool, found.claim, found.instance) == (Owner.KARPENTER, "a10g", "a10g-x7k", "i-0abc")
    assert (found.gpus, found.spot, found.leaving, found.uid) == (4, True, False, "u1")
    assert (found.instance_type, found.zone) == ("g5.xlarge", "us-west-2a")


def test_a_node_without_registered_gpus_is_a_pools_all_the_same() -> None:
    found = our_node(node(OURS, gpus=None), {}, POOLS, ())
    assert found is not None
    assert (found.gpus, found.claim) == (0, "")


@pytest.mark.parametrize(
    ("labels", "gpus", "ours"),
    [
        ({"eks.amazonaws.com/nodegroup": "gpu-group", "eks.amazonaws.com/capacityType": "SPOT"}, "1", True),
        ({"eks.amazonaws.com/nodegroup": "gpu-group"}, None, False),
        ({"eks.amazonaws.com/nodegroup": "gpu-group", "nvidia.com/gpu.present": "true"}, "0", True),
        ({"eks.amazonaws.com/nodegroup": "gpu-group"}, "0", False),
        ({"eks.amazonaws.com/nodegroup": "of-others"}, "1", False),
        ({"karpenter.sh/nodepool": "of-others"}, "1", False),
        ({"karpenter.sh/nodepool": "of-others", "eks.amazonaws.com/nodegroup": "gpu-group"}, "1", False),
        ({}, "1", False),
    ],
)
def test_of_other_nodes_only_gpu_nodes_of_named_groups_are_ours(
    labels: dict[str, str], gpus: str | None, ours: bool
) -> None:
    found = our_node(node(labels, gpus), {}, POOLS, GROUPS)
    assert (found is not None) is ours
    if found is not None:
        assert (found.owner, found.pool) == (Owner.NODE_GROUP, "gpu-group")
        assert found.spot is ("eks.amazonaws.com/capacityType" in labels or None)


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]}, None),
        ({}, {"metadata": {"name": "c", "deletionTimestamp": "2026-11-30T05:00:00Z"}}),
    ],
)
def test_a_node_that_is_being_removed_is_leaving(changes: dict[str, Any], claim: dict[str, Any] | None) -> None:
    claims = {"ip-10-0-0-1": claim} if claim else {}
    found = our_node(node(OURS, **changes), claims, POOLS, ())
    assert found is not None
    assert found.leaving


def test_the_instance_is_read_from_nodes_and_claims() -> None:
    assert instance_of({"status": {"providerID": "aws:///us-west-2b/i-0def"}}) == "i-0def"
    assert instance_of({}) == ""
