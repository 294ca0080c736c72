"""Which instances are this package's business."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.interruptions.marks import Mark
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.interruptions.whose import Home, Scope, homes, left_before

SCOPE = Scope(("a", "b"), ("gpus",))
GROUP = {"eks.amazonaws.com/nodegroup": "gpus"}


def node(instance: str, labels: dict[str, str], **metadata: Any) -> dict[str, Any]:
    spec = {"providerID": f"aws:///us-west-2a/{instance}"} if instance else {}
    return {"metadata": {"name": f"node-of-{instance}", "uid": "u1", "labels": labels, **metadata}, "spec": spec}


def claim(instance: str, pool: str, **metadata: Any) -> dict[str, Any]:
    status = {"providerID": f"aws:///us-west-2a/{instance}"} if instance else {}
    labels = {"karpenter.sh/nodepool": pool}
    return {"metadata": {"name": f"claim-of-{instance}", "labels": labels, **metadata}, "status": status}


def test_the_selectors_name_pools_and_groups() -> None:
    assert SCOPE.selectors() == ("karpenter.sh/nodepool in (a,b)", "eks.amazonaws.com/nodegroup in (gpus)")
    assert SCOPE.claim_selector() == "karpenter.sh/nodepool in (a,b)"
    assert Scope(()).selectors() == ()
    assert Scope(()).claim_selector() is None


@pytest.mark.parametrize(
    ("labels", "ours"),
    [
        ({"karpenter.sh/nodepool": "a"}, True),
        ({"karpenter.sh/nodepool": "theirs"}, False),
        ({"karpenter.sh/nodepool": "theirs", **GROUP, "nvidia.com/gpu.present": "true"}, False),
        ({}, False),
        (GROUP, False),
        ({**GROUP, "nvidia.com/gpu.present": "true"}, True),
        ({**GROUP, "node.kubernetes.io/instance-type": "g5.xlarge"}, True),
        ({**GROUP, "node.kubernetes.io/instance-type": "m5.large"}, False),
        ({"eks.amazonaws.com/nodegroup": "theirs", "nvidia.com/gpu.present": "true"}, False),
    ],
)
def test_which_nodes_are_ours(labels: dict[str, str], ours: bool) -> None:
    assert (set(homes([node("i-1", labels)], [], SCOPE)) == {"i-1"}) is ours


def test_a_node_and_its_claim_are_one_home() -> None:
    found = homes(
        [node("i-1", {"karpenter.sh/nodepool": "a"}), node("i-3", {**GROUP, "nvidia.com/gpu.present": "true"})],
        [claim("i-1", "a"), claim("i-2", "b"), claim("i-4", "theirs"), claim("", "a")],
        SCOPE,
    )
    assert found == {
        "i-1": Home("node-of-i-1", "u1", "claim-of-i-1", "a"),
        "i-2": Home("", "", "claim-of-i-2", "b"),
        "i-3": Home("node-of-i-3", "u1", "", "", "gpus"),
    }


def test_an_instance_without_a_provider_id_is_nobodys() -> None:
    assert homes([node("", {"karpenter.sh/nodepool": "a"})], [claim("", "a")], SCOPE) == {}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("leaving", "before"), [(None, False), (99.0, True), (100.0, True), (101.0, False)])
def test_only_a_state_change_can_follow_from_a_removal(kind: Kind, leaving: float | None, before: bool) -> None:
    ordinary = before and kind in (Kind.STOPPING, Kind.TERMINATING)
    assert left_before(Home(leaving=leaving), Notice(kind, "i-1", 100.0)) is ordinary


def test_whichever_of_node_and_claim_went_first_counts() -> None:
    early, late = "2026-11-30T05:00:00Z", "2026-11-30T05:00:09Z"
    for of_node, of_claim in ((early, late), (late, early)):
        nodes = [node("i-1", {"karpenter.sh/nodepool": "a"}, deletionTimestamp=of_node)]
        found = homes(nodes, [claim("i-1", "a", deletionTimestamp=of_claim)], SCOPE)
        assert found["i-1"].leaving == 1796014800.0


@pytest.mark.parametrize("kind", [Kind.STOPPING, Kind.TERMINATING])
def test_a_removal_by_force_or_ahead_of_a_scheduled_change_is_not_ordinary(kind: Kind) -> None:
    notice = Notice(kind, "i-1", 100.0)
    assert not left_before(Home(leaving=99.0, forced=True), notice)
    assert not left_before(Home(leaving=99.0, announced=True), notice)


def test_what_a_claim_and_a_mark_say_of_a_removal() -> None:
    moment = "2026-11-30T05:00:00Z"
    forced = claim("i-1", "a", deletionTimestamp=moment)
    forced["metadata"]["annotations"] = {"karpenter.sh/nodeclaim-termination-timestamp": moment}
    mark = Mark(Notice(Kind.SCHEDULED, "i-1", 1.0, 2.0), 1.0).text()
    annotations = {"gpu-fleet.io/interruption": mark}
    marked = node("i-1", {"karpenter.sh/nodepool": "a"}, annotations=annotations)
    found = homes([marked], [forced], SCOPE)["i-1"]
    assert (found.forced, found.announced) == (True, True)
    # The drain of a run of ours.
    annotations["gpu-fleet.io/cordoned-by"] = "gpu_drain.demo/r"
    marked["spec"]["unschedulable"] = True
    assert not homes([marked], [], SCOPE)["i-1"].announced
    # Another instance had the node's name.
    stale = node("i-2", {"karpenter.sh/nodepool": "a"}, annotations={"gpu-fleet.io/interruption": mark})
    assert not homes([stale], [], SCOPE)["i-2"].announced
