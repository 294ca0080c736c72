from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.queries import AwsQuery
from gpu_fleet.core.verdict import Verdict

ARGS = {"cluster": "demo-gpu", "spec": "demo", "now": 1.0, "started": 0.0}


def named(
    name: str, pool: str | None = "shared", deleting: bool = False, *conditions: dict[str, Any]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"karpenter.sh/nodepool": pool} if pool else {}}
    if deleting:
        metadata["deletionTimestamp"] = "t"
    return {"metadata": metadata, "status": {"conditions": list(conditions)}}


def instance(name: str, pool: str = "shared", state: str = "running") -> dict[str, Any]:
    return {
        "InstanceId": name,
        "InstanceType": "g5.xlarge",
        "State": {"Name": state},
        "Tags": [{"Key": "karpenter.sh/nodepool", "Value": pool}],
    }


def judge(gate: str, **found: list[dict[str, Any]]) -> Verdict:
    keys = {query.key for query in gate_named(gate).queries(ARGS)}
    assert set(found) <= keys
    return gate_named(gate).judge({key: found.get(key, []) for key in keys}, ARGS)


LIVING = named("shared", None)
GOING = named("shared", None, True)


@pytest.mark.parametrize("gate", ["nodeclaims_gone", "nodes_gone", "instances_gone", "node_class_gone"])
def test_these_gates_wait_for_absence(gate: str) -> None:
    assert gate_named(gate).waits_for_absence
    assert judge(gate).ready


@pytest.mark.parametrize(
    ("claims", "pools", "ready"),
    [
        ([named("c")], [], False),
        ([named("c")], [GOING], False),
        ([named("c")], [LIVING], True),
        ([named("c", None)], [LIVING], False),
        ([named("c"), named("d", "other")], [LIVING], False),
    ],
)
def test_claims_count_unless_their_pool_lives_on(
    claims: list[dict[str, Any]], pools: list[dict[str, Any]], ready: bool
) -> None:
    assert judge("nodeclaims_gone", claims=claims, pools=pools).ready is ready


@pytest.mark.parametrize(("stays", "ready"), [(True, True), (False, False)])
def test_standalone_claims_of_others_are_not_waited_for_where_karpenter_stays(stays: bool, ready: bool) -> None:
    args = {**ARGS, "standalone_stays": stays}
    claims = {"claims": [named("c", None)], "nodes": [], "pools": []}
    instances = {"instances": [instance("i-1", "")], "claims": [named("c", None)], "pools": []}
    assert gate_named("nodeclaims_gone").judge(claims, args).ready is ready
    assert gate_named("instances_gone").judge(instances, args).ready is ready
    ours = {**claims, "claims": [named("c")]}
    assert not gate_named("nodeclaims_gone").judge(ours, args).ready


def test_nodes_count_as_well_when_the_claims_are_gone() -> None:
    assert judge("nodeclaims_gone", nodes=[named("n1")]).reason == "NodesRemain"
    assert judge("nodes_gone", nodes=[named("n1")]).reason == "NodesRemain"
    assert judge("nodes_gone", nodes=[named("n1")], pools=[LIVING]).ready


def test_a_claim_that_hangs_says_why() -> None:
    draining = {"type": "Drained", "status": "Unknown", "reason": "Draining", "message": "7 pods are waiting"}
    verdict = judge("nodeclaims_gone", claims=[named("c", "shared", True, draining), named("d")])
    assert "c (Drained: 7 pods are waiting)" in verdict.message
    assert "d (not being deleted)" in verdict.message


@pytest.mark.parametrize(
    ("state", "ready"),
    [("pending", False), ("running", False), ("stopping", False), ("stopped", False), ("shutting-down", True),
     ("terminated", True)],
)  # fmt: skip
def test_an_instance_counts_while_it_costs_money(state: str, ready: bool) -> None:
    assert judge("instances_gone", instances=[instance("i-1", state=state)]).ready is ready


def test_instances_of_a_pool_that_lives_on_are_not_waited_for() -> None:
    assert judge("instances_gone", instances=[instance("i-1")], pools=[LIVING]).ready
    verdict = judge("instances_gone", instances=[instance("i-1")], pools=[GOING])
    assert "i-1 (g5.xlarge, running)" in verdict.message


@pytest.mark.parametrize(
    ("waited", "claim", "state", "failed"),
    [(299, "other", "running", False), (300, "other", "running", True), (300, "c", "running", False),
     (300, "other", "stopping", False)],
)  # fmt: skip
def test_an_instance_that_nobody_will_remove_fails_the_wait(
    waited: float, claim: str, state: str, failed: bool
) -> None:
    found = instance("i-1", state=state)
    found["Tags"].append({"Key": "karpenter.sh/nodeclaim", "Value": "c"})
    snapshot = {"instances": [found], "pools": [], "claims": [named(claim)]}
    verdict = gate_named("instances_gone").judge(snapshot, {**ARGS, "now": 1000.0, "started": 1000.0 - waited})
    assert verdict.failed is failed
    assert "i-1" in verdict.message


def test_ec2_is_asked_for_this_clusters_karpenter_instances() -> None:
    (query,) = [query for query in gate_named("instances_gone").queries(ARGS) if isinstance(query, AwsQuery)]
    assert {f["Name"] for f in query.params["Filters"]} == {
        "tag:kubernetes.io/cluster/demo-gpu", "tag-key", "instance-state-name",
    }  # fmt: skip


def node_class(name: str, spec: str | None = "demo") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"gpu-fleet.io/cluster": spec} if spec else {}}}


def test_node_classes_with_our_label_count_unless_their_pool_is_kept() -> None:
    classes = [node_class("removed-from-the-file"), node_class("not-managed"), node_class("other", "prod")]
    verdict = gate_named("node_class_gone").judge({"classes": classes}, {**ARGS, "kept": ["not-managed"]})
    assert verdict.message == "EC2NodeClasses remain: removed-from-the-file (not being deleted)"
    gone = {"classes": classes[1:]}
    assert gate_named("node_class_gone").judge(gone, {**ARGS, "kept": ["not-managed"]}).ready
    assert not gate_named("node_class_gone").judge(gone, ARGS).ready
    (query,) = gate_named("node_class_gone").queries(ARGS)
    assert getattr(query, "label_selector", None) == "gpu-fleet.io/cluster=demo"


def test_a_long_list_is_cut_with_its_count() -> None:
    verdict = judge("instances_gone", instances=[instance(f"i-{n}") for n in range(9)])
    assert verdict.message.startswith("9 EC2 instances remain")
    assert verdict.message.endswith("and 4 more")
