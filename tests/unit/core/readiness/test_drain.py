from __future__ import annotations

from typing import Any

from gpu_fleet.core.gates import KubeQuery, gate_named

ARGS: dict[str, Any] = {"nodes": ["n1", "n2"], "uids": ["u1", "u2"], "now": 1.0, "started": 0.0}
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
