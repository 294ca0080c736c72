from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.queries import KubeQuery

ARGS: dict[str, Any] = {"nodes": ["n1", "n2"], "uids": ["u1", "u2"], "now": 1.0, "started": 0.0, "here": 1.0}
GATE = gate_named("pods_gone")


def pod(name: str, uid: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team", "uid": uid}}


def test_only_the_nodes_being_drained_are_watched() -> None:
    queries = GATE.queries(ARGS)
    assert [q.field_selector for q in queries if isinstance(q, KubeQuery)] == ["spec.nodeName=n1", "spec.nodeName=n2"]


def test_pods_are_gone_when_no_uid_is_left() -> None:
    assert GATE.judge({"pods_0": [], "pods_1": []}, ARGS).ready


def test_a_new_pod_of_the_same_name_is_another_pod() -> None:
    assert GATE.judge({"pods_0": [pod("web-0", "u9")], "pods_1": []}, ARGS).ready


def test_a_pod_that_is_left_is_named() -> None:
    verdict = GATE.judge({"pods_0": [pod("web-0", "u1")], "pods_1": []}, ARGS)
    assert (verdict.reason, "team/web-0" in verdict.message) == ("PodsTerminating", True)


def test_a_blocked_eviction_is_the_reason_while_it_lasts() -> None:
    blocked = ["team/web-0: The disruption budget web-pdb needs 2 healthy pods and has 2 currently"]
    verdict = GATE.judge({"pods_0": [pod("web-0", "u1")], "pods_1": []}, {**ARGS, "blocked": blocked})
    assert (verdict.reason, "web-pdb" in verdict.message) == ("EvictionBlocked", True)


# --- pods that budgets hold ------------------------------------------------------------------------------------------


def held_pod(name: str = "web-0", uid: str = "u1") -> dict[str, Any]:
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "namespace": "team", "uid": uid, "labels": {"app": "web"}}, "status": ready}


def budget(version: str, allowed: int, name: str = "web-pdb", observed: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "team", "generation": 1, "resourceVersion": version},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"disruptionsAllowed": allowed, "observedGeneration": observed},
    }


HELD = {**ARGS, "blocked": ["team/web-0: no"], "held": {"u1": {"web-pdb": "7"}}, "again_after": 0.5}


def test_budgets_are_watched_only_while_they_hold_a_pod() -> None:
    assert [query.key for query in GATE.queries(HELD)] == ["pods_0", "pods_1", "budgets"]
    assert [query.key for query in GATE.queries({**ARGS, "held": {}})] == ["pods_0", "pods_1"]


@pytest.mark.parametrize(
    ("budgets", "reason"),
    [
        ([budget("8", 1)], "EvictionPossible"),
        ([], "EvictionPossible"),
        ([budget("7", 1)], "EvictionBlocked"),
        ([budget("8", 0)], "EvictionBlocked"),
        ([budget("8", 1, observed=0)], "EvictionBlocked"),
        ([budget("7", 1), budget("9", 1, "second")], "EvictionBlocked"),
    ],
    ids=["allows now", "gone", "refused although it allowed", "forbids still", "not looked at yet", "another came"],
)
def test_a_held_pod_is_tried_again_when_its_budgets_have_changed_and_allow_it(
    budgets: list[dict[str, Any]], reason: str
) -> None:
    verdict = GATE.judge({"pods_0": [held_pod()], "pods_1": [], "budgets": budgets}, HELD)
    assert verdict.reason == reason
    assert "team/web-0" in verdict.message
    assert verdict.ready is (reason == "EvictionPossible")


def test_no_pod_is_tried_again_before_its_time() -> None:
    snapshot = {"pods_0": [held_pod()], "pods_1": [], "budgets": [budget("8", 1)]}
    assert GATE.judge(snapshot, {**HELD, "again_after": 2.0}).reason == "EvictionBlocked"


@pytest.mark.parametrize(
    ("ahead", "here", "reason"),
    [(600.0, 1001.0, "EvictionBlocked"), (-600.0, 1006.0, "EvictionPossible")],
    ids=["the API server's clock is ahead", "it is behind"],
)
def test_the_time_of_the_next_try_is_our_own_whatever_the_api_servers_clock_says(
    ahead: float, here: float, reason: str
) -> None:
    args = {**HELD, "again_after": 1005.0, "here": here, "now": here + ahead, "started": 1000.0 + ahead}
    snapshot = {"pods_0": [held_pod()], "pods_1": [], "budgets": [budget("8", 1)]}
    assert GATE.judge(snapshot, args).reason == reason


def test_a_budget_is_no_pod() -> None:
    snapshot = {"pods_0": [], "pods_1": [], "budgets": [budget("8", 1)]}
    assert GATE.judge(snapshot, HELD).reason == "PodsGone"


def test_of_two_budgets_on_a_pod_one_has_to_go() -> None:
    both = {**HELD, "held": {"u1": {"web-pdb": "7", "second": "7"}}}
    snapshot = {"pods_0": [held_pod()], "pods_1": [], "budgets": [budget("7", 1), budget("7", 1, "second")]}
    assert GATE.judge(snapshot, both).reason == "EvictionBlocked"
    assert GATE.judge({**snapshot, "budgets": [budget("7", 1)]}, both).reason == "EvictionPossible"
