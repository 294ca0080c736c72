from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.gates.teardown import INSTANCES_GONE, NODE_CLAIMS_GONE
from gpu_fleet.core.teardown.drain import remaining_nodes
from gpu_fleet.core.teardown.emergency import finishable, is_ours, is_worse, our_pools
from gpu_fleet.core.teardown.karpenter import Way
from gpu_fleet.core.teardown.markdown import to_markdown
from gpu_fleet.core.teardown.plan import make_plan
from gpu_fleet.core.teardown.scope import Observed
from tests.unit.core.specs import demo_spec

POOL, KEPT = "shared-a10g", "whole-a100"
PRICES = PriceList("us-west-2", "2025-06-05", "a page", {"g5.xlarge": 1.0})


def instance(name: str, **tags: str) -> dict[str, Any]:
    """:param tags: ``nodepool``, ``nodeclaim``, and our ``pool`` and ``cluster``."""
    known = {"nodepool": "karpenter.sh/nodepool", "nodeclaim": "karpenter.sh/nodeclaim"}
    listed = [{"Key": known.get(key, f"gpu-fleet.io/{key}"), "Value": value} for key, value in tags.items()]
    return {"InstanceId": name, "InstanceType": "g5.xlarge", "State": {"Name": "running"}, "Tags": listed}


def of(pool: str, name: str, provider: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool}}, "spec": {"providerID": provider}}


def node_pool(name: str, *, ours: bool = False, going: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"gpu-fleet.io/cluster": "demo"} if ours else {}}
    return {"metadata": {**metadata, **({"deletionTimestamp": "t"} if going else {})}}


OURS = {"nodepool": POOL, "pool": POOL, "cluster": "demo"}


@pytest.mark.parametrize(
    ("tags", "ours"),
    [
        (OURS, True),
        ({**OURS, "cluster": "other"}, False),
        ({**OURS, "pool": KEPT}, False),
        ({**OURS, "nodepool": "theirs"}, False),
        ({**OURS, "nodepool": KEPT, "pool": KEPT}, False),
        ({"nodepool": POOL}, False),
        ({"pool": POOL, "cluster": "demo"}, False),
        ({}, False),
    ],
    ids=["ours", "of another file", "of another class", "of a pool of others with our class", "manage: false",
         "without our tags", "of no pool", "untagged"],
)  # fmt: skip
def test_an_instance_is_ours_only_if_all_its_tags_say_so(tags: dict[str, str], ours: bool) -> None:
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False)
    pools = our_pools(spec, [node_pool(POOL), node_pool(KEPT, ours=True), node_pool("theirs")])
    assert is_ours(spec, instance("i-1", **tags), pools) is ours


def test_our_pools_are_those_of_the_file_and_of_the_label_and_what_was_approved_never_what_is_kept() -> None:
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False)
    pools = [node_pool("old", ours=True), node_pool("theirs"), node_pool(KEPT, ours=True)]
    assert our_pools(spec, pools, ["older", KEPT]) == {POOL, "old", "older"}


def test_nothing_is_finished_behind_which_an_instance_lives() -> None:
    alive = [instance("i-1", nodeclaim="claim-1"), instance("i-2", nodeclaim="claim-2")]
    items = [
        of(POOL, "node-1", "aws:///us-west-2a/i-1"),
        of(POOL, "node-3", "aws:///us-west-2a/i-3"),
        of("theirs", "node-4", "aws:///us-west-2a/i-4"),
        {**of(POOL, "claim-1"), "spec": {}, "status": {"providerID": "aws:///us-west-2a/i-1"}},
        of(POOL, "claim-2"),
        of(POOL, "claim-3"),
    ]
    assert [item["metadata"]["name"] for item in finishable(items, {POOL}, alive)] == ["node-3", "claim-3"]


@pytest.mark.parametrize("now", list(Way))
@pytest.mark.parametrize("approved", [None, *(way.value for way in Way)])
def test_only_an_emergency_that_was_not_approved_is_worse(approved: str | None, now: Way) -> None:
    assert is_worse(approved, now) is (now is Way.EMERGENCY and approved != "Emergency")


def test_the_plan_of_an_emergency_has_what_is_ours_and_names_what_is_spared() -> None:
    spec = demo_spec(teardown__whenKarpenterIsDead="emergency")
    mine, theirs = instance("i-1", **OURS), instance("i-2", nodepool="theirs")
    observed = Observed(
        node_pools=[node_pool(POOL), node_pool("theirs", going=True)],
        node_claims=[of(POOL, "c1"), of("theirs", "c2"), of("gone", "c3")],
        nodes=[of(POOL, "n1"), of("theirs", "n2"), of("gone", "n3")],
        instances=[mine, theirs],
    )
    plan = make_plan(spec, observed, PRICES)
    assert plan.way is Way.EMERGENCY
    assert ([row["id"] for row in plan.instances], plan.node_claims, plan.nodes) == (["i-1"], ["c1"], ["n1"])
    assert [row["id"] for row in plan.spared] == ["i-2"]
    assert plan.cost.usd == 1.0
    assert "i-2 (g5.xlarge, NodePool theirs)" in to_markdown(plan, spec)


def test_in_an_emergency_nobody_is_evicted_from_nodes_whose_pool_is_gone() -> None:
    nodes = [of("gone", "n1"), of("old", "n2")]
    pools = [node_pool("old", ours=True)]
    assert remaining_nodes(demo_spec(), nodes, pools, [POOL]) == ["n1", "n2"]
    assert remaining_nodes(demo_spec(), nodes, pools, [POOL], emergency=True) == ["n2"]


def test_an_emergency_waits_for_the_instances_that_it_has_terminated_and_no_others() -> None:
    args = {"cluster": "demo-gpu", "only": ["i-1"], "now": 1000.0, "started": 0.0}
    assert [query.key for query in INSTANCES_GONE.queries(args)] == ["instances"]
    left = INSTANCES_GONE.judge({"instances": [instance("i-1", **OURS), instance("i-2")]}, args)
    assert (left.reason, "i-1" in left.message, "i-2" in left.message) == ("InstancesRemain", True, False)
    assert INSTANCES_GONE.judge({"instances": [instance("i-2")]}, args).ready


def test_an_emergency_waits_for_the_claims_and_nodes_of_its_own_pools_and_no_others() -> None:
    seen: dict[str, Any] = {"pools": [node_pool("theirs", going=True)], "claims": [of("theirs", "c2")], "nodes": []}
    assert NODE_CLAIMS_GONE.judge(seen, {}).reason == "NodeClaimsRemain"
    assert NODE_CLAIMS_GONE.judge(seen, {"removed": {"way": "ByKarpenter"}}).reason == "NodeClaimsRemain"
    emergency = {"removed": {"way": "Emergency", "waitsFor": [POOL]}}
    assert NODE_CLAIMS_GONE.judge(seen, emergency).ready
    left = NODE_CLAIMS_GONE.judge({**seen, "claims": [of("theirs", "c2"), of(POOL, "c1")]}, emergency)
    assert (left.reason, "c1" in left.message, "c2" in left.message) == ("NodeClaimsRemain", True, False)
    assert NODE_CLAIMS_GONE.judge({**seen, "nodes": [of(POOL, "n1")]}, emergency).reason == "NodesRemain"
