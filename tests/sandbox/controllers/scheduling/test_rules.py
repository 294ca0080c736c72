"""The scheduler's rules and preemption without a server: phrases and choices of the real one."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.controllers.scheduling.predicates import refusal
from sandbox.controllers.scheduling.preemption import NO_VICTIMS, NOT_HELPFUL, find, not_eligible
from sandbox.controllers.scheduling.snapshot import Snapshot, priority
from tests.sandbox.controllers import builders

HOSTNAME = "kubernetes.io/hostname"


def _snapshot(nodes: list[Any], pods: list[Any] | None = None) -> Snapshot:
    return Snapshot([builders.seen(each) for each in nodes], [builders.seen(each) for each in pods or []], {})


def _anti(label: str, key: str = HOSTNAME) -> dict[str, Any]:
    term = {"labelSelector": {"matchLabels": {"app": label}}, "topologyKey": key}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _together(label: str) -> dict[str, Any]:
    term = {"labelSelector": {"matchLabels": {"app": label}}, "topologyKey": HOSTNAME}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


SPREAD = [
    {
        "topologyKey": "zone",
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}},
    }
]
TAINTED = [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]


@pytest.mark.parametrize(
    ("node", "others", "pod", "reasons", "resolvable"),
    [
        pytest.param({}, [], {}, None, None, id="empty node"),
        pytest.param({}, [], {"gpus": 1}, ("Insufficient nvidia.com/gpu",), False, id="no GPU at all"),
        pytest.param(
            {"gpus": 1},
            [{"gpus": 1}],
            {"gpus": 1, "cpu": "5"},
            ("Insufficient cpu", "Insufficient nvidia.com/gpu"),
            False,
            id="several resources",
        ),
        pytest.param({"gpus": 1}, [{"gpus": 1}], {"gpus": 1}, ("Insufficient nvidia.com/gpu",), True, id="GPU taken"),
        pytest.param({"allocatable": {"pods": "1"}}, [{}], {}, ("Too many pods",), True, id="too many pods"),
        pytest.param(
            {"taints": TAINTED},
            [],
            {},
            ("node(s) had untolerated taint {nvidia.com/gpu: true}",),
            False,
            id="untolerated taint",
        ),
        pytest.param(
            {"taints": TAINTED}, [], {"tolerations": [{"operator": "Exists"}]}, None, None, id="tolerated taint"
        ),
        pytest.param({"unschedulable": True}, [], {}, ("node(s) were unschedulable",), False, id="cordoned"),
        pytest.param(
            {},
            [],
            {"nodeSelector": {"a": "b"}},
            ("node(s) didn't match Pod's node affinity/selector",),
            False,
            id="selector",
        ),
        pytest.param(
            {},
            [{}],
            {"affinity": _anti("x")},
            ("node(s) didn't match pod anti-affinity rules",),
            True,
            id="anti-affinity",
        ),
        pytest.param(
            {},
            [{"affinity": _anti("x")}],
            {},
            ("node(s) didn't satisfy existing pods anti-affinity rules",),
            True,
            id="anti-affinity of the other",
        ),
        pytest.param({}, [], {"affinity": _anti("x")}, None, None, id="anti-affinity, nobody there"),
        pytest.param(
            {}, [], {"affinity": _together("y")}, ("node(s) didn't match pod affinity rules",), False, id="affinity"
        ),
        pytest.param({}, [], {"affinity": _together("x")}, None, None, id="first of a group"),
        pytest.param(
            {},
            [],
            {"topologySpreadConstraints": SPREAD},
            ("node(s) didn't match pod topology spread constraints (missing required label)",),
            False,
            id="spread without label",
        ),
    ],
)
def test_what_a_node_objects(
    node: dict[str, Any], others: list[dict[str, Any]], pod: dict[str, Any], reasons: Any, resolvable: Any
) -> None:
    present = [builders.pod(f"o{index}", nodeName="n1", **each) for index, each in enumerate(others)]
    snapshot = _snapshot([builders.node("n1", **node)], present)
    objection = refusal(builders.seen(builders.pod(**pod)), snapshot.nodes["n1"], snapshot)
    assert (objection and objection.reasons) == reasons
    assert (objection and objection.resolvable) == resolvable


def test_spread_refuses_the_crowded_zone() -> None:
    nodes = [builders.node("a", labels={"zone": "a"}), builders.node("b", labels={"zone": "b"})]
    snapshot = _snapshot(nodes, [builders.pod("o", nodeName="a")])
    pod = builders.seen(builders.pod(topologySpreadConstraints=SPREAD))
    objection = refusal(pod, snapshot.nodes["a"], snapshot)
    assert objection is not None
    assert objection.reasons == ("node(s) didn't match pod topology spread constraints",)
    assert refusal(pod, snapshot.nodes["b"], snapshot) is None


def test_finished_pods_take_no_room() -> None:
    done = builders.pod("o", gpus=1, nodeName="n1") | {"status": {"phase": "Succeeded"}}
    snapshot = _snapshot([builders.node(gpus=1)], [done])
    assert refusal(builders.seen(builders.pod(gpus=1)), snapshot.nodes["n1"], snapshot) is None


# --- preemption ----------------------------------------------------------------------------------------------------


def _objections(pod: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    return {name: refusal(pod, info, snapshot) for name, info in snapshot.nodes.items()}


def test_only_as_many_placeholders_go_as_needed() -> None:
    holders = [builders.pod(f"h{index}", gpus=1, priority=-10, nodeName="n1") for index in range(2)]
    snapshot = _snapshot([builders.node(gpus=2)], holders)
    pod = builders.seen(builders.pod(gpus=1, priority=0))
    candidate, _ = find(pod, snapshot, _objections(pod, snapshot), [])
    assert candidate is not None
    assert candidate.node == "n1"
    assert len(candidate.victims) == 1


def test_the_least_important_victims_are_chosen() -> None:
    pods = [
        builders.pod("a", gpus=1, priority=5, nodeName="n1"),
        builders.pod("b", gpus=1, priority=-10, nodeName="n2"),
    ]
    snapshot = _snapshot([builders.node("n1", gpus=1), builders.node("n2", gpus=1)], pods)
    pod = builders.seen(builders.pod(gpus=1, priority=10))
    candidate, _ = find(pod, snapshot, _objections(pod, snapshot), [])
    assert candidate is not None
    assert candidate.node == "n2"
    assert [priority(each) for each in candidate.victims] == [-10]


def test_a_budget_is_broken_only_if_there_is_no_other_way() -> None:
    pods = [
        builders.pod("a", labels={"app": "guarded"}, gpus=1, priority=-10, nodeName="n1"),
        builders.pod("b", gpus=1, priority=-5, nodeName="n2"),
    ]
    snapshot = _snapshot([builders.node("n1", gpus=1), builders.node("n2", gpus=1)], pods)
    guard = builders.seen(builders.budget(labels={"app": "guarded"}, minAvailable=1)) | {
        "status": {"disruptionsAllowed": 0}
    }
    pod = builders.seen(builders.pod(gpus=1, priority=0))
    candidate, _ = find(pod, snapshot, _objections(pod, snapshot), [guard])
    assert candidate is not None
    assert candidate.node == "n2"


def test_nobody_of_lower_priority() -> None:
    snapshot = _snapshot([builders.node("n1", gpus=1), builders.node("n2")], [builders.pod("o", gpus=1, nodeName="n1")])
    pod = builders.seen(builders.pod(gpus=1))
    candidate, reasons = find(pod, snapshot, _objections(pod, snapshot), [])
    assert candidate is None
    assert reasons == [NO_VICTIMS, NOT_HELPFUL]


def test_preemption_policy_never() -> None:
    pod = builders.seen(builders.pod(preemptionPolicy="Never"))
    assert not_eligible(pod, _snapshot([])) == "not eligible due to preemptionPolicy=Never."


def test_a_pod_waits_for_the_room_that_is_being_made_for_it() -> None:
    victim = builders.pod("v", priority=-10, nodeName="n1")
    victim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    snapshot = _snapshot([builders.node()], [victim])
    pod = builders.seen(builders.pod()) | {"status": {"nominatedNodeName": "n1"}}
    assert not_eligible(pod, snapshot) == "not eligible due to a terminating pod on the nominated node."
