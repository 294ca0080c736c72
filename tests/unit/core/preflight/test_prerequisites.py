"""What is known to be missing before anything is changed, and what is not known at all."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from gpu_fleet.core.preflight.facts import Facts, State, Unseen, unknown
from gpu_fleet.core.preflight.karpenter_nodes import Placement
from gpu_fleet.core.preflight.prerequisites import judge
from tests.unit.core.specs import demo_spec


def node(name: str, *, ready: bool = True, labels: Any = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", **(labels or {})}},
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]},
    }


def trust(*services: str) -> dict[str, Any]:
    return {"Statement": [{"Effect": "Allow", "Principal": {"Service": list(services)}, "Action": "sts:AssumeRole"}]}


ROLE_ARN = "arn:aws:iam::123456789012:role/KarpenterNodeRole-demo-gpu"
GOOD = Facts(
    authentication_mode="API",
    entries={ROLE_ARN: "EC2_LINUX"},
    node_role={"RoleName": "KarpenterNodeRole-demo-gpu", "AssumeRolePolicyDocument": trust("ec2.amazonaws.com")},
    spot_role={"RoleName": "AWSServiceRoleForEC2Spot"},
    subnets=[{"SubnetId": "subnet-a"}],
    security_groups=["sg-a"],
    queue=True,
    associations=[{"serviceAccount": "karpenter"}],
    addons=["eks-pod-identity-agent"],
    nodes=[node("a"), node("b")],
)


def states(facts: Facts, **changes: Any) -> dict[str, State]:
    return {each.name: each.state for each in judge(demo_spec(**changes), facts)}


def test_an_account_that_has_everything_lacks_nothing() -> None:
    found = states(GOOD)
    assert set(found.values()) == {State.MET}
    assert sorted(found) == [
        "AWS identity of Karpenter's controller", "access entry of the node role", "interruption queue", "node role",
        "nodes for Karpenter itself", "security group with the discovery tag", "service-linked role for spot",
        "subnet with the discovery tag",
    ]  # fmt: skip


IDENTITY, NODES = "AWS identity of Karpenter's controller", "nodes for Karpenter itself"
IRSA = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/k"}
TAINTED = [node("a"), node("b", taints=[{"key": "gpu", "effect": "NoSchedule"}])]

#: situation -> facts, changes of the spec, prerequisite, its state, part of the message, part of the remedy
SITUATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str, State, str, str]] = {
    "no access entry": (
        {"entries": {}}, {}, "access entry of the node role", State.MISSING, "no node could join",
        "aws eks create-access-entry --cluster-name demo-gpu --type EC2_LINUX",
    ),
    "an access entry for people": (
        {"entries": {ROLE_ARN: "STANDARD"}}, {}, "access entry of the node role", State.MISSING, "type STANDARD",
        f"--principal-arn {ROLE_ARN}",
    ),
    "no access entry, but perhaps aws-auth": (
        {"entries": {}, "authentication_mode": "API_AND_CONFIG_MAP"}, {}, "access entry of the node role",
        State.UNKNOWN, "aws-auth", "create-access-entry",
    ),
    "aws-auth alone": (
        {"entries": None, "authentication_mode": "CONFIG_MAP"}, {}, "access entry of the node role", State.UNKNOWN,
        "authentication mode is CONFIG_MAP", "system:bootstrappers",
    ),
    "access entries that may not be listed": (
        {"entries": Unseen("no", "eks:ListAccessEntries")}, {}, "access entry of the node role", State.UNKNOWN,
        "not checked", "grant eks:ListAccessEntries",
    ),
    "no node role": ({"node_role": {}}, {}, "node role", State.MISSING, "no IAM role", "correct nodeClass.role"),
    "a node role for pods": (
        {"node_role": {"AssumeRolePolicyDocument": trust("pods.eks.amazonaws.com")}}, {}, "node role", State.MISSING,
        "does not let EC2 assume it", "sts:AssumeRole",
    ),
    "a node role of China": (
        {"node_role": {"AssumeRolePolicyDocument": trust("ec2.amazonaws.com.cn")}}, {}, "node role", State.MET, "", "",
    ),
    "a node role with one service alone": (
        {"node_role": {"AssumeRolePolicyDocument": {"Statement": {"Principal": {"Service": "ec2.amazonaws.com"}}}}}, {},
        "node role", State.MET, "", "",
    ),
    "no tagged subnet": (
        {"subnets": []}, {}, "subnet with the discovery tag", State.MISSING, "karpenter.sh/discovery=demo-gpu",
        "aws ec2 create-tags",
    ),
    "no tagged security group": (
        {"security_groups": []}, {}, "security group with the discovery tag", State.MISSING, "no security group",
        "nodeClass.discoveryTag",
    ),
    "no subnet by its id": (
        {"subnets": []}, {"nodeClass__subnets": [{"id": "subnet-0a"}, {"tags": {"team": "ml", "net": "*"}}]},
        "subnet of the nodes", State.MISSING, "or tag:team ml and tag-key net", "nodeClass.subnets",
    ),
    "no security group by its name": (
        {"security_groups": []}, {"nodeClass__securityGroups": [{"name": "gpu"}]}, "security group of the nodes",
        State.MISSING, "group-name gpu", "nodeClass.securityGroups",
    ),
    "no spot role": (
        {"spot_role": {}}, {}, "service-linked role for spot", State.MISSING, "shared-a10g could launch no spot nodes",
        "create-service-linked-role",
    ),
    "no queue": ({"queue": False}, {}, "interruption queue", State.MISSING, "no SQS queue demo-gpu", "EventBridge"),
    "no identity": (
        {"associations": []}, {}, IDENTITY, State.MISSING, "kube-system/karpenter has neither",
        "--namespace kube-system --service-account karpenter",
    ),
    "an identity without an agent": (
        {"addons": ["coredns"]}, {}, IDENTITY, State.UNKNOWN, "no add-on eks-pod-identity-agent", "create-addon",
    ),
    "an identity with an agent that nobody may see": (
        {"addons": Unseen("no", "eks:ListAddons")}, {}, IDENTITY, State.UNKNOWN, "not checked", "eks:ListAddons",
    ),
    "IRSA": (
        {"associations": []}, {"karpenter__values": {"serviceAccount": {"annotations": IRSA}}}, IDENTITY, State.MET,
        "role/k", "",
    ),
    "a service account of others with IRSA": (
        {"associations": [], "service_account": {"metadata": {"annotations": IRSA}}},
        {"karpenter__values": {"serviceAccount": {"create": False, "name": "k"}}}, IDENTITY, State.MET, "kube-system/k",
        "",
    ),
    "a service account of others without": (
        {"associations": [], "service_account": {"metadata": {}}},
        {"karpenter__values": {"serviceAccount": {"create": False, "name": "k"}}}, IDENTITY, State.MISSING,
        "kube-system/k has neither", "--service-account k",
    ),
    "a service account of others that nobody may see": (
        {"associations": [], "service_account": Unseen("no", "get serviceaccounts")},
        {"karpenter__values": {"serviceAccount": {"create": False, "name": "k"}}}, IDENTITY, State.UNKNOWN,
        "not checked", "get serviceaccounts",
    ),
    "credentials by environment": (
        {"associations": []}, {"karpenter__values": {"controller": {"envFrom": [{"secretRef": {"name": "aws"}}]}}},
        IDENTITY, State.UNKNOWN, "may hold credentials", "check it",
    ),
    "a controller of another name": (
        {"associations": []}, {"karpenter__values": {"fullnameOverride": "k"}}, IDENTITY, State.MISSING,
        "kube-system/k", "",
    ),
    "one node for two replicas": (
        {"nodes": [node("a")]}, {}, NODES, State.MISSING, "2 replicas need 2 schedulable nodes", "managed node group",
    ),
    "one node for one replica": ({"nodes": [node("a")]}, {"karpenter__replicas": 1}, NODES, State.MET, "a", ""),
    "no node at all": ({"nodes": []}, {}, NODES, State.MISSING, "there is none", "karpenter.replicas"),
    "a node with a taint": (
        {"nodes": TAINTED}, {}, NODES, State.MISSING, "b has the taint gpu:NoSchedule", "managed node group",
    ),
    "a taint that Karpenter is told to tolerate": (
        {"nodes": TAINTED}, {"karpenter__values": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}, NODES,
        State.MET, "a, b", "",
    ),
    "too few nodes, but Fargate": (
        {"nodes": [], "fargate_profiles": ["karpenter"]}, {}, NODES, State.UNKNOWN, "Fargate profile karpenter may", "",
    ),
    "too few nodes, and Fargate that nobody may see": (
        {"nodes": [], "fargate_profiles": Unseen("no", "eks:ListFargateProfiles")}, {}, NODES, State.UNKNOWN,
        "were not checked", "",
    ),
    "too few nodes for an affinity of one's own": (
        {"nodes": [node("a")]}, {"karpenter__values": {"affinity": {"podAntiAffinity": None}}}, NODES, State.UNKNOWN,
        "affinity is not evaluated", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_prerequisite_is_judged(situation: str) -> None:
    changes, spec, name, state, said, remedy = SITUATIONS[situation]
    found = {each.name: each for each in judge(demo_spec(**spec), replace(GOOD, **changes))}
    assert (found[name].state, said in found[name].message, remedy in found[name].remedy) == (state, True, True)
    assert {each.state for each in found.values() if each.name != name} == {State.MET}
    assert bool(found[name].remedy) == (state is not State.MET)


def test_what_nobody_could_look_at_is_neither_good_nor_bad() -> None:
    unseen = {each.name: Unseen("no answer") for each in fields(Facts)}
    found = judge(demo_spec(), Facts(**unseen))  # type: ignore[arg-type]
    assert {each.state for each in found} == {State.UNKNOWN}
    assert {each.state for each in judge(demo_spec(), Facts())} == {State.UNKNOWN}


def test_only_what_the_spec_needs_is_asked_for() -> None:
    foreign = {"nodePools__0__manage": False, "nodePools__1__manage": False, "teardown__uninstallKarpenter": False}
    assert sorted(states(GOOD, **foreign)) == [IDENTITY, "interruption queue", NODES]
    assert states(GOOD, **foreign, karpenter__manage=False) == {}
    assert "interruption queue" not in states(GOOD, karpenter__interruptionQueue=None)
    assert "service-linked role for spot" not in states(GOOD, nodePools__0__capacityTypes=["on-demand"])


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (node("a"), ""),
        (node("a", taints=[{"key": "CriticalAddonsOnly", "value": "true", "effect": "NoSchedule"}]), ""),
        (node("a", taints=[{"key": "x", "effect": "PreferNoSchedule"}]), ""),
        (node("a", labels={"karpenter.sh/nodepool": "cpu"}), "is Karpenter's own"),
        (node("a", unschedulable=True), "is cordoned"),
        (node("a", ready=False), "is not Ready"),
        (node("a", labels={"kubernetes.io/os": "windows"}), "has no label kubernetes.io/os=linux"),
        (node("a", taints=[{"key": "x", "effect": "NoExecute"}]), "has the taint x:NoExecute"),
        (
            node("a", taints=[{"key": "eks.amazonaws.com/compute-type", "value": "fargate", "effect": "NoSchedule"}]),
            "has the taint eks.amazonaws.com/compute-type:NoSchedule",
        ),
        ({"metadata": {"name": "bare"}}, "is not Ready"),
    ],
)
def test_where_karpenter_can_run(found: Any, why: str) -> None:
    assert Placement.of(demo_spec()).why_not(found).startswith(why)
    assert bool(Placement.of(demo_spec()).why_not(found)) == bool(why)
    assert Placement.of(demo_spec()).usable([found]) == ([] if why else ["a"])


@pytest.mark.parametrize(
    ("values", "runs"),
    [
        ({"nodeSelector": {"role": "system"}}, False),
        ({"nodeSelector": None}, True),
        ({"nodeSelector": {"kubernetes.io/os": None}}, True),
        ({"tolerations": None}, False),
        ({"tolerations": [{"operator": "Exists"}]}, True),
        ({"tolerations": [{"key": "CriticalAddonsOnly", "value": "true"}]}, True),
        ({"tolerations": [{"key": "CriticalAddonsOnly", "value": "false"}]}, False),
        ({"tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists", "effect": "NoExecute"}]}, False),
    ],
)
def test_the_values_of_the_chart_decide_where_karpenter_can_run(values: dict[str, Any], runs: bool) -> None:
    taints = [{"key": "CriticalAddonsOnly", "value": "true", "effect": "NoSchedule"}]
    spec = demo_spec(karpenter__values=values)
    assert Placement.of(spec).usable([node("a", taints=taints)]) == (["a"] if runs else [])


def test_a_judgement_is_json_and_a_sentence() -> None:
    (found,) = [each for each in judge(demo_spec(), replace(GOOD, queue=False)) if each.state is State.MISSING]
    assert found.to_json()["state"] == "missing"
    assert str(found).startswith("interruption queue: there is no SQS queue demo-gpu in us-west-2")


def test_where_no_grant_helps_what_could_not_be_looked_up_says_what_does() -> None:
    remedy = unknown("x", Unseen("no", "eks:ListAddons", "extend the boundary")).remedy
    assert remedy == "to have it checked: extend the boundary"
    assert unknown("x", Unseen("no", "eks:ListAddons")).remedy == "grant eks:ListAddons to have it checked"
