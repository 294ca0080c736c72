from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.teardown.leaks import (
    CHECKS,
    aws_queries,
    find_leaks,
    is_karpenters_profile,
    leak_message,
    profile_candidates,
)
from sandbox.karpenter.cloudprovider.launchtemplates import template_tags
from tests.unit.core.specs import demo_spec

PRICES = PriceList("us-west-2", "2025-06-05", "a page", {"g5.xlarge": 1.0}, {"gp3": 0.08})


def tags(**pairs: str) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in pairs.items()]


def instance(name: str, pool: str | None = "shared-a10g", state: str = "running") -> dict[str, Any]:
    found = [{"Key": "karpenter.sh/nodepool", "Value": pool}] if pool is not None else []
    return {"InstanceId": name, "InstanceType": "g5.xlarge", "State": {"Name": state}, "Tags": found}


def named(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {k.replace("__", "/"): v for k, v in labels.items()}}}


POOL = {"karpenter.sh/nodepool": "shared-a10g"}
NODE = {"metadata": {"name": "n1", "labels": POOL}, "spec": {"providerID": "aws:///a/i-1"}}
PROTECTED = {
    "metadata": {
        "name": "n2",
        "labels": {"karpenter.sh/nodepool": "whole-a100", "nvidia.com/gpu.present": "true"},
        "annotations": {"karpenter.sh/do-not-disrupt": "true", "gpu-fleet.io/protected-by": "run"},
    }
}
PLACEHOLDER = {"metadata": {"name": "p", "namespace": "s", "labels": {"gpu-fleet.io/component": "placeholder"}}}
CNI_CARD = {
    "NetworkInterfaceId": "eni-1",
    "Status": "available",
    "Tags": [{"Key": "node.k8s.amazonaws.com/instance_id", "Value": "i-1"}],
}
ENDED = {"InstanceId": "i-1", "State": {"Name": "terminated"}}

#: situation -> what was found, kinds and names of the leaks
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "nothing": ({}, []),
    "an instance": ({"instances.owned": [instance("i-1")]}, [("EC2 instance", "i-1")]),
    "an instance found twice": (
        {"instances.owned": [instance("i-1")], "instances.claimed": [instance("i-1")]},
        [("EC2 instance", "i-1")],
    ),
    "an instance with half its tags": ({"instances.claimed": [instance("i-1", None)]}, [("EC2 instance", "i-1")]),
    "an instance that is going": ({"instances.owned": [instance("i-1", state="shutting-down")]}, []),
    "a stopped instance": ({"instances.owned": [instance("i-1", state="stopped")]}, [("EC2 instance", "i-1")]),
    "an instance of a foreign pool": (
        {"instances.owned": [instance("i-1", "cpu")], "node_pools": [named("cpu")]},
        [],
    ),
    "an instance of our pool, which is still there": (
        {"instances.owned": [instance("i-1")], "node_pools": [named("shared-a10g")]},
        [("EC2 instance", "i-1"), ("NodePool", "shared-a10g")],
    ),
    "a pool that the file no longer has": (
        {"node_pools": [named("old", **{"gpu-fleet.io__cluster": "demo"})]},
        [("NodePool", "old")],
    ),
    "a frozen pool of others": (
        {"node_pools": [{"metadata": {"name": "cpu", "annotations": {"gpu-fleet.io/limits-before-freeze": "{}"}}}]},
        [("annotation", "gpu-fleet.io/limits-before-freeze on NodePool cpu")],
    ),
    "a claim of a pool that is gone": (
        {"node_claims": [{"metadata": {"name": "c", "labels": POOL}}]},
        [("NodeClaim", "c")],
    ),
    "a claim of nobody": ({"node_claims": [named("c")]}, [("NodeClaim", "c")]),
    "a claim of a foreign pool": (
        {"node_claims": [named("c", **{"karpenter.sh__nodepool": "cpu"})], "node_pools": [named("cpu")]},
        [],
    ),
    "a node": ({"nodes": [NODE]}, [("node", "n1")]),
    "a placeholder": ({"own_pods": [PLACEHOLDER]}, [("placeholder pod", "s/p")]),
    "our node class": (
        {"node_classes": [named("shared-a10g", **{"gpu-fleet.io__cluster": "demo"})]},
        [("EC2NodeClass", "shared-a10g")],
    ),
    "a foreign node class": ({"node_classes": [named("cpu")]}, []),
    "a volume": (
        {"volumes": [{"VolumeId": "vol-1", "Size": 100, "VolumeType": "gp3", "State": "available"}]},
        [("EBS volume", "vol-1")],
    ),
    "a network interface found twice": (
        {"network_interfaces.owned": [CNI_CARD], "network_interfaces.cni": [CNI_CARD], "instances.ended": [ENDED]},
        [("network interface", "eni-1")],
    ),
    "a network interface that only the CNI tagged": (
        {"network_interfaces.cni": [CNI_CARD], "instances.ended": [ENDED]},
        [("network interface", "eni-1")],
    ),
    "a network interface of another node group's node": ({"network_interfaces.cni": [CNI_CARD]}, []),
    "a launch template": (
        {"launch_templates": [{"LaunchTemplateName": "lt", "Tags": tags(**{"karpenter.k8s.aws/ec2nodeclass": "x"})}]},
        [("launch template", "lt")],
    ),
    "a launch template of a class that stays": (
        {
            "launch_templates": [
                {"LaunchTemplateName": "lt", "Tags": tags(**{"karpenter.k8s.aws/ec2nodeclass": "cpu"})}
            ],
            "node_classes": [named("cpu")],
        },
        [],
    ),
    "an instance profile": (
        {"instance_profiles": [{"InstanceProfileName": "demo-gpu_1", "Tags": []}]},
        [("instance profile", "demo-gpu_1")],
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_what_is_left_is_found_and_nothing_else(situation: str) -> None:
    found, expected = CASES[situation]
    leaks = find_leaks(demo_spec(), found, PRICES)
    assert [(leak.kind, leak.name) for leak in leaks] == expected


def test_a_protected_node_of_a_pool_that_is_kept_costs_for_ever() -> None:
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False)
    found = {"nodes": [PROTECTED], "node_pools": [named("whole-a100")]}
    assert [leak.kind for leak in find_leaks(spec, found, PRICES)] == ["annotation"]
    users = {"metadata": {**PROTECTED["metadata"], "annotations": {"karpenter.sh/do-not-disrupt": "true"}}}
    assert find_leaks(spec, {**found, "nodes": [users]}, PRICES) == []


def test_the_node_class_of_a_pool_that_is_kept_is_no_leak_and_that_of_a_removed_pool_is() -> None:
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False)
    labels = {"gpu-fleet.io__cluster": "demo"}
    found = {"node_classes": [named("whole-a100", **labels), named("removed", **labels)]}
    assert [(leak.kind, leak.name) for leak in find_leaks(spec, found, PRICES)] == [("EC2NodeClass", "removed")]


@pytest.mark.parametrize("component", ["hold", "placeholder", "probe"])
def test_pods_of_a_pool_that_is_kept_are_no_leak(component: str) -> None:
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False)

    def pod(pool: str) -> dict[str, Any]:
        labels = {"gpu-fleet.io/component": component, "gpu-fleet.io/pool": pool}
        return {"metadata": {"name": pool, "namespace": "s", "labels": labels}}

    found = {"own_pods": [pod("whole-a100"), pod("shared-a10g"), pod("removed")]}
    leaks = [(f"{component} pod", "s/shared-a10g"), (f"{component} pod", "s/removed")]
    assert [(leak.kind, leak.name) for leak in find_leaks(spec, found, PRICES)] == leaks


def test_standalone_claims_of_others_are_no_leak_where_karpenter_stays() -> None:
    found = {"node_claims": [named("c")], "instances.owned": [instance("i-1", "")]}
    assert [leak.kind for leak in find_leaks(demo_spec(), found, PRICES)] == ["EC2 instance", "NodeClaim"]
    stays = demo_spec(teardown__uninstallKarpenter=False)
    assert find_leaks(stays, found, PRICES) == []


def test_the_message_names_each_leak_its_price_and_the_sum() -> None:
    found = {"instances.owned": [instance("i-1"), instance("i-2")], "own_pods": [PLACEHOLDER]}
    leaks = find_leaks(demo_spec(), found, PRICES)
    text = leak_message("demo-gpu", leaks, PRICES)
    assert "3 things are left, 2.00 USD/h together" in text
    assert "EC2 instance i-1 (g5.xlarge, running, NodePool shared-a10g; terminate it, 1.00 USD/h)" in text
    assert "placeholder pod s/p (may buy a node; delete it)" in text
    assert [leak.to_json()["usdPerHour"] for leak in leaks] == [1.0, 1.0, 0.0]


def test_every_check_survives_finding_nothing() -> None:
    assert [check(demo_spec(), {}, PRICES) for check in CHECKS] == [[]] * len(CHECKS)


def test_the_queries_look_only_at_this_cluster() -> None:
    queries = aws_queries("demo-gpu")
    assert len({query.key for query in queries}) == len(queries)
    for query in queries:
        if query.service == "ec2":
            assert "demo-gpu" in str(query.params["Filters"])


def test_instance_profiles_are_picked_by_name_or_path_and_then_by_tags() -> None:
    profiles = [
        {"InstanceProfileName": "demo-gpu_123", "Path": "/"},
        {"InstanceProfileName": "x", "Path": "/karpenter/us-west-2/demo-gpu/uid/"},
        {"InstanceProfileName": "demo-gpu2_1", "Path": "/"},
        {"InstanceProfileName": "y", "Path": "/karpenter/eu-west-1/demo-gpu/uid/"},
    ]
    assert profile_candidates(profiles, "us-west-2", "demo-gpu") == ["demo-gpu_123", "x"]
    here = {"topology.kubernetes.io/region": "us-west-2"}
    owned, of_class = {"kubernetes.io/cluster/demo-gpu": "owned"}, {"karpenter.k8s.aws/ec2nodeclass": "c"}

    def ours(*tags: dict[str, str]) -> bool:
        return is_karpenters_profile({k: v for each in tags for k, v in each.items()}, "us-west-2", "demo-gpu")

    assert ours(here, owned, of_class)
    assert not ours(here, owned)
    assert not ours(here, of_class)
    assert not ours(owned, of_class)


def test_the_profile_of_a_cluster_of_the_same_name_in_another_region_is_no_leak() -> None:
    tags = {
        "kubernetes.io/cluster/demo-gpu": "owned",
        "eks:eks-cluster-name": "demo-gpu",
        "karpenter.k8s.aws/ec2nodeclass": "shared-a10g",
        "topology.kubernetes.io/region": "eu-west-1",
    }
    assert not is_karpenters_profile(tags, "us-west-2", "demo-gpu")
    assert is_karpenters_profile(tags, "eu-west-1", "demo-gpu")


#: Launch template's name -> tags, as Karpenter sets them.
TEMPLATES = {
    "of 1.1 and later": template_tags({"spec": {}, "metadata": {"name": "gone"}}, "shared-a10g", "demo-gpu"),
    "of 1.0": {"karpenter.k8s.aws/cluster": "demo-gpu", "karpenter.k8s.aws/ec2nodeclass": "gone"},
    "of another cluster": template_tags({"spec": {}, "metadata": {"name": "gone"}}, "shared-a10g", "demo-gpu2"),
    "of another part of EKS": {"eks:eks-cluster-name": "demo-gpu"},
}


def test_launch_templates_are_found_by_the_tags_that_karpenter_sets() -> None:
    def matches(template: dict[str, str], wanted: Any) -> bool:
        if wanted["Name"] == "tag-key":
            return any(key in template for key in wanted["Values"])
        return template.get(wanted["Name"].removeprefix("tag:")) in wanted["Values"]

    queries = [query for query in aws_queries("demo-gpu") if query.operation == "describe_launch_templates"]
    found = {
        query.key: [
            {"LaunchTemplateName": name, "Tags": tags(**template)}
            for name, template in TEMPLATES.items()
            if all(matches(template, wanted) for wanted in query.params["Filters"])
        ]
        for query in queries
    }
    leaks = find_leaks(demo_spec(), found, PRICES)
    assert [leak.name for leak in leaks] == ["of 1.1 and later", "of 1.0"]
