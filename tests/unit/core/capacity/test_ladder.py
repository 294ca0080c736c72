"""A rung as placeholders ask for it, and what of other rungs would still buy."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.capacity.ladder import (
    Step,
    lower_nodes,
    lower_sentence,
    made_for_placeholder,
    steps,
    strays,
    surplus,
)
from gpu_fleet.core.capacity.placeholders import placeholder_pod
from gpu_fleet.core.kubernetes.names import ANNOTATION_RUNG
from gpu_fleet.core.kubernetes.objects import PoolNode
from tests.unit.core.cluster_objects import claim, node, placeholder
from tests.unit.core.specs import demo_spec

PRICES = PriceList("us-west-2", "2026-08-01", "test", {"g5.xlarge": 1.0, "g5.2xlarge": 1.2, "g6.xlarge": 0.8})
TYPES = ["g5.xlarge", "g5.2xlarge", "g6.xlarge"]
LADDER = [
    {"instanceTypes": ["g5.xlarge"], "capacityTypes": ["spot"], "for": "5m"},
    {"instanceTypes": ["g5.2xlarge"], "zones": ["us-west-2b"], "for": "3m"},
    {},
]
LAUNCHING = ("Launched", "AwaitingReconciliation", "")
JOINING = ("Registered", "NodeNotFound", "Node not registered with cluster")


def pool_with(ladder: list[dict[str, Any]]) -> Any:
    return demo_spec(nodePools__0__instanceTypes=TYPES, nodePools__0__capacity={"ladder": ladder}).node_pools[0]


POOL = pool_with(LADDER)
FIRST, SECOND, LAST = steps(POOL)


def asking(index: int, step: Step | None, node_name: str = "") -> dict[str, Any]:
    pod = placeholder(index, node_name=node_name, phase="Running" if node_name else "Pending")
    pod["metadata"]["annotations"] = {ANNOTATION_RUNG: step.digest} if step is not None else {}
    return pod


def bought(name: str, step: Step | None, waiting: tuple[str, str, str] | None = JOINING, **more: Any) -> dict[str, Any]:
    """A NodeClaim that Karpenter made for a placeholder of a rung; ``None``: for a pod of a user."""
    found = claim(name, node_name="", waiting=waiting, **more)
    entries = [{"key": key, "operator": "In", "values": list(v)} for key, v in (step.choices if step else {}).items()]
    ours = [{"key": "gpu-fleet.io/standing", "operator": "DoesNotExist"}] if step is not None else []
    found["spec"] = {"requirements": [*entries, *ours]}
    return found


def test_what_a_rung_leaves_out_is_what_the_pool_allows() -> None:
    assert str(FIRST) == "g5.xlarge spot"
    assert str(SECOND) == "g5.2xlarge spot or on-demand in us-west-2b"
    assert str(LAST) == "g5.xlarge, g5.2xlarge, g6.xlarge spot or on-demand"
    assert [(step.number, step.of) for step in (FIRST, SECOND, LAST)] == [(1, 3), (2, 3), (3, 3)]
    assert [step.seconds for step in (FIRST, SECOND, LAST)] == [300, 180, None]
    assert steps(demo_spec().node_pools[0]) == ()


def test_a_placeholder_requires_its_rung_in_one_term() -> None:
    """Karpenter drops the first of several terms when it cannot satisfy it."""
    pod = placeholder_pod(
        "demo", POOL, 0, gpus=1, lifetime_s=60, image="pause", run="d/r", run_label="abc", step=SECOND
    )
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {
            "matchExpressions": [
                {"key": "gpu-fleet.io/standing", "operator": "DoesNotExist"},
                {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.2xlarge"]},
                {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot", "on-demand"]},
                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-west-2b"]},
            ]
        }
    ]
    assert pod["metadata"]["annotations"][ANNOTATION_RUNG] == SECOND.digest


def test_the_digest_is_of_what_is_asked_for_and_not_of_its_place() -> None:
    moved = steps(pool_with([{"zones": ["us-west-2a"], "for": "5m"}, LADDER[0] | {"for": "9m"}]))[1]
    assert moved.digest == FIRST.digest
    assert len({FIRST.digest, SECOND.digest, LAST.digest}) == 3


@pytest.mark.parametrize(
    ("pods", "claims", "step", "go"),
    [
        ([asking(0, FIRST), asking(1, FIRST)], [], SECOND, [0, 1]),
        ([asking(0, FIRST), asking(1, SECOND)], [], SECOND, [0]),
        ([asking(0, FIRST), asking(1, FIRST)], [bought("a", FIRST)], SECOND, [1]),
        ([asking(0, FIRST)], [bought("a", FIRST, LAUNCHING)], SECOND, [0]),
        ([asking(0, FIRST)], [bought("a", FIRST, deleting=True)], SECOND, [0]),
        ([asking(0, FIRST)], [bought("a", FIRST, None)], SECOND, [0]),
        ([asking(0, FIRST)], [bought("a", None)], SECOND, [0]),
        ([asking(0, FIRST, "n1"), asking(1, FIRST)], [], SECOND, [1]),
        ([asking(0, FIRST)], [bought("a", FIRST)], LAST, []),
        ([asking(0, FIRST), asking(1, LAST)], [bought("a", LAST)], LAST, [0]),
        ([asking(0, FIRST)], [], None, [0]),
        ([asking(0, FIRST)], [bought("a", FIRST)], None, []),
        ([asking(0, None)], [], FIRST, [0]),
        ([], [bought("a", FIRST)], SECOND, []),
    ],
    ids=[
        "all of the rung before",
        "not those of this rung",
        "one waits for a node that joins",
        "its claim has no instance",
        "its claim is ending",
        "its claim's node takes pods already",
        "a user's claim",
        "one that runs stays",
        "the wider rung admits the node that joins",
        "that node is this rung's own",
        "no rung may buy",
        "no rung may buy, but a node joins",
        "of a run without a ladder",
        "nothing asks",
    ],
)
def test_placeholders_of_other_rungs_that_would_buy(
    pods: list[dict[str, Any]], claims: list[dict[str, Any]], step: Step | None, go: list[int]
) -> None:
    found = [pod["metadata"]["name"] for pod in surplus(step, pods, claims)]
    assert found == [f"placeholder-shared-a10g-{index}" for index in go]


def test_claims_without_an_instance_that_were_made_for_another_rung() -> None:
    claims = [
        bought("first", FIRST, LAUNCHING),
        bought("launched", FIRST),
        bought("users", None, LAUNCHING),
        bought("second", SECOND, LAUNCHING),
        bought("ending", FIRST, LAUNCHING, deleting=True),
    ]
    assert [each["metadata"]["name"] for each in strays(SECOND, claims)] == ["first", "ending"]
    assert [each["metadata"]["name"] for each in strays(LAST, claims)] == []
    assert [each["metadata"]["name"] for each in strays(None, claims)] == ["first", "second", "ending"]
    assert made_for_placeholder(claims[0])
    assert not made_for_placeholder(claims[2])


@pytest.mark.parametrize(("step", "usd"), [(FIRST, 1.0), (SECOND, 1.2), (LAST, 0.8)])
def test_the_price_of_a_rung_is_that_of_its_cheapest_type(step: Step, usd: float) -> None:
    price = step.price(PRICES)
    assert (price.usd, price.at_most) == (usd, True), "spot is tried first, and costs at most the list price"
    assert step.price(PriceList.unknown("us-west-2")).usd is None


def test_nodes_on_a_lower_rung_are_named_with_what_is_preferred() -> None:
    on_first, on_last = node("ip-10-0-0-1"), node("ip-10-0-0-2")
    on_last["metadata"]["labels"]["node.kubernetes.io/instance-type"] = "g6.xlarge"
    found = lower_nodes(POOL, [PoolNode.of(on_first), PoolNode.of(on_last)])
    assert [(each.name, step.number) for each, step, _ in found] == [("ip-10-0-0-2", 3)]
    told = lower_sentence("training", found, PRICES)
    assert "1 node(s) stand on a lower rung: ip-10-0-0-2 (g6.xlarge spot, at most 0.80 USD/h, rung 3)" in told
    assert "the first rung is g5.xlarge spot (at most 1.00 USD/h)" in told
    assert lower_sentence("training", [], PRICES) == ""
    assert lower_nodes(demo_spec().node_pools[0], [PoolNode.of(on_last)]) == []
