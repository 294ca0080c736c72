from __future__ import annotations

from typing import Any

from gpu_fleet.core.drain.rules import DrainRules
from gpu_fleet.core.teardown.pods import judge

NOW = 1767225600.0 + 3600
AIRFLOW = {"dag_id": "d", "task_id": "t", "run_id": "r", "kubernetes_pod_operator": "True"}


def pod(name: str, *, node: str = "n1", owner: str = "", gpus: int = 0, volumes: Any = None, **metadata: Any) -> Any:
    if owner:
        metadata["ownerReferences"] = [{"kind": owner, "name": "web", "controller": True}]
    container = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}}
    return {
        "metadata": {"name": name, "namespace": "t", "uid": name, **metadata},
        "spec": {"nodeName": node, "containers": [container], "volumes": volumes or []},
        "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"},
    }


def test_victims_are_known_by_owner_with_what_they_hold_and_lose() -> None:
    pods = [
        pod("web-1", owner="StatefulSet", gpus=2, volumes=[{"emptyDir": {}}]),
        pod("train", labels=AIRFLOW, gpus=1, annotations={"karpenter.sh/do-not-disrupt": "2h"}),
        pod("over", owner="Job", annotations={"karpenter.sh/do-not-disrupt": "30m"}),
        pod("elsewhere", node="n2", owner="Job"),
        pod("ask", labels={"gpu-fleet.io/component": "placeholder"}),
    ]
    found = judge(pods, ["n1"], DrainRules(force=True), [], NOW)
    assert [(v.name, v.owner, v.gpus, v.asked_to_stay) for v in found.victims] == [
        ("t/over", "t/Job/web", 0, None),
        ("t/web-1", "t/StatefulSet/web", 2, None),
        ("t/train", "task t of Airflow's DAG d in run r", 1, "2h"),
    ]
    warnings = {v.name: v.warning for v in found.victims}
    assert warnings["t/web-1"] == "loses the data of its emptyDir volume"
    assert warnings["t/train"].startswith("has no controller: only a retry of task t")
    assert warnings["t/over"] == ""
    assert [str(each) for each in found.drain.evict] == ["t/ask", "t/over", "t/train", "t/web-1"]


def test_what_refuses_is_no_victim_and_is_named_by_its_task() -> None:
    found = judge([pod("train", labels=AIRFLOW), pod("lone")], ["n1"], DrainRules(), [], NOW)
    assert found.victims == []
    assert [each.verdict.reason for each in found.drain.refuse] == ["Unreplicated", "AirflowTask"]
    text = found.drain.refusal()
    assert text.startswith("2 pods must not be evicted:")
    assert "t/train on n1 runs task t of Airflow's DAG d in run r" in text
    assert "evictBarePods" in text


def test_where_pods_are_deleted_no_budget_holds_them() -> None:
    budget = {
        "metadata": {"name": "b", "namespace": "t", "generation": 1},
        "spec": {"selector": {}},
        "status": {"observedGeneration": 1, "disruptionsAllowed": 0},
    }
    this = [pod("web-1", owner="StatefulSet")]
    assert list(judge(this, ["n1"], DrainRules(), [budget], NOW).forbidden()) != []
    assert judge(this, ["n1"], DrainRules(), [budget], NOW, disable_eviction=True).forbidden() == {}


def test_pods_of_daemon_sets_that_karpenter_waits_for_and_may_not_evict_are_named() -> None:
    """kubernetes-sigs/karpenter v1.14.1 ``terminator.go``: it evicts them as well, but not past the annotation."""
    stay = {"karpenter.sh/do-not-disrupt": "true"}
    tolerates = [{"key": "karpenter.sh/disrupted", "operator": "Exists"}]
    pods = [
        pod("agent", owner="DaemonSet", annotations=stay),
        pod("over", owner="DaemonSet", annotations={"karpenter.sh/do-not-disrupt": "30m"}),
        pod("quiet", owner="DaemonSet"),
        pod("tough", owner="DaemonSet", annotations=stay),
        pod("guarded", owner="DaemonSet", labels={"app": "guarded"}),
        pod("static", annotations={**stay, "kubernetes.io/config.mirror": "x"}),
        pod("job", owner="Job", annotations=stay),
    ]
    pods[3]["spec"]["tolerations"] = tolerates
    budget = {
        "metadata": {"name": "b", "namespace": "t", "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "guarded"}}},
        "status": {"observedGeneration": 1, "disruptionsAllowed": 0},
    }
    rules = DrainRules(daemon_sets=frozenset({("t", "web")}))
    found = judge(pods, ["n1"], rules, [budget], NOW).lingering
    assert list(found) == ["t/agent", "t/guarded"]
    assert found["t/agent"] == "its annotation karpenter.sh/do-not-disrupt: true"
    assert "PodDisruptionBudget b allows no disruption" in found["t/guarded"]


def test_a_toleration_of_everything_is_one_of_karpenters_taint() -> None:
    this = pod("agent", owner="DaemonSet", annotations={"karpenter.sh/do-not-disrupt": "true"})
    this["spec"]["tolerations"] = [{"operator": "Exists"}]
    assert judge([this], ["n1"], DrainRules(daemon_sets=frozenset({("t", "web")})), [], NOW).lingering == {}
