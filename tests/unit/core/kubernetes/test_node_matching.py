"""Where a DaemonSet's pods run, on nodes that are there and on nodes of which only the template is known."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.node_matching import place_of_node, place_of_pool, runs_on
from gpu_fleet.core.manifests.build import build
from tests.unit.core.neighbour_objects import TOLERATES_GPU
from tests.unit.core.specs import demo_spec

POOL = place_of_pool(build("node_pool", demo_spec(), pool="shared-a10g")[0], "us-west-2")


def affinity(*terms: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [{"matchExpressions": term} for term in terms]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": listed}}}


def has(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


OURS, PRESENT, ZONE = "gpu-fleet.io/device-plugin", "nvidia.com/gpu.present", "topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("pod", "match"),
    [
        ({}, "yes"),
        ({"tolerations": []}, "no"),
        ({"tolerations": [{"operator": "Exists"}]}, "yes"),
        ({"tolerations": [{"key": "nvidia.com/gpu", "value": "true"}]}, "yes"),
        ({"tolerations": [{"key": "nvidia.com/gpu", "value": "other"}]}, "no"),
        ({"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}]}, "no"),
        ({"nodeSelector": {PRESENT: "true"}}, "yes"),
        ({"nodeSelector": {OURS: "true"}}, "yes"),
        ({"nodeSelector": {"team": "b"}}, "no"),
        ({"nodeSelector": {"eks.amazonaws.com/nodegroup": "team-b"}}, "no"),
        ({"nodeSelector": {"karpenter.sh/nodepool": "shared-a10g"}}, "yes"),
        ({"nodeSelector": {"karpenter.sh/nodepool": "another"}}, "no"),
        ({"nodeSelector": {"node.kubernetes.io/instance-type": "p5.48xlarge"}}, "no"),
        ({"nodeSelector": {"karpenter.sh/capacity-type": "spot"}}, "yes"),
        ({"nodeSelector": {"kubernetes.io/arch": "arm64"}}, "no"),
        ({"nodeSelector": {"topology.kubernetes.io/region": "eu-west-1"}}, "no"),
        # Nobody knows these of a node that is yet to come; 'may be' is not 'no'.
        ({"nodeSelector": {ZONE: "us-west-2a"}}, "maybe"),
        ({"nodeSelector": {"nvidia.com/gpu.deploy.device-plugin": "true"}}, "maybe"),
        ({"nodeSelector": {"feature.node.kubernetes.io/pci-10de.present": "true"}}, "maybe"),
        ({"nodeSelector": {"karpenter.k8s.aws/instance-gpu-name": "a10g"}}, "maybe"),
        # The chart's default affinity: alternatives.
        ({"affinity": affinity([has("feature.node.kubernetes.io/x", "In", "1")], [has(PRESENT, "In", "true")])}, "yes"),
        ({"affinity": affinity([has(ZONE, "In", "a")], [has("team", "Exists")])}, "maybe"),
        ({"affinity": affinity([has(OURS, "DoesNotExist")])}, "no"),
        ({"affinity": affinity([has(OURS, "NotIn", "true")])}, "no"),
        ({"affinity": affinity([has("team", "DoesNotExist")])}, "yes"),
        ({"affinity": affinity([has("team", "NotIn", "b")])}, "yes"),
        ({"affinity": affinity([has(PRESENT, "Exists"), has("team", "Exists")])}, "no"),
        ({"affinity": affinity([has("karpenter.sh/capacity-type", "NotIn", "spot")])}, "yes"),
        ({"affinity": affinity([has("karpenter.sh/capacity-type", "NotIn", "spot", "on-demand")])}, "no"),
        ({"affinity": affinity([has(PRESENT, "Near", "x")])}, "maybe"),
        ({"affinity": affinity([])}, "no"),
        ({"affinity": affinity()}, "no"),
        ({"affinity": {"podAffinity": {}}}, "yes"),
    ],
    ids=str,
)
def test_on_nodes_of_a_pool_that_are_yet_to_come(pod: dict[str, Any], match: str) -> None:
    assert runs_on({"tolerations": [TOLERATES_GPU], **pod}, POOL).match == match


def test_what_decides_and_cannot_be_known_is_named() -> None:
    answer = runs_on({"tolerations": [TOLERATES_GPU], "nodeSelector": {ZONE: "us-west-2a"}}, POOL)
    assert answer.unknown == {ZONE}


def test_a_node_that_is_there_leaves_nothing_unknown() -> None:
    node = {"metadata": {"name": "n1", "labels": {PRESENT: "true", "cores": "8"}}, "spec": {}}
    place = place_of_node(node)
    assert runs_on({"nodeSelector": {ZONE: "us-west-2a"}}, place).match == "no"
    assert runs_on({"affinity": affinity([has("cores", "Gt", "4")])}, place).match == "yes"
    assert runs_on({"affinity": affinity([has("cores", "Lt", "4")])}, place).match == "no"
    named = affinity([])
    terms = named["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    terms[0]["matchFields"] = [has("metadata.name", "In", "n1")]
    assert runs_on({"affinity": named}, place).match == "yes"
    assert runs_on({}, place_of_node(node, {OURS: "true"})).match == "yes"


@pytest.mark.parametrize("taint", ["not-ready", "unschedulable", "disk-pressure"])
def test_daemon_sets_tolerate_what_every_node_has_at_times(taint: str) -> None:
    node = {
        "metadata": {"name": "n1"},
        "spec": {"taints": [{"key": f"node.kubernetes.io/{taint}", "effect": "NoSchedule"}]},
    }
    assert runs_on({}, place_of_node(node)).match == "yes"


def test_a_soft_taint_keeps_nobody_away() -> None:
    node = {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "x", "effect": "PreferNoSchedule"}]}}
    assert runs_on({}, place_of_node(node)).match == "yes"
