"""Teardowns on a cluster that others use, too: refused or taken back without harm, and with what stays for others.

The tests share one lifecycle run; the last of them removes what it built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from demo import workload
from tests.e2e.fleet import (
    CLUSTER,
    POOL_LABEL,
    SHARED,
    TEARDOWN,
    WHOLE,
    Fleet,
    Json,
    Run,
    changes,
    cluster_spec,
    merged,
    pool_changes,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]

#: The labels of EksPodOperator's pods (apache-airflow-providers-cncf-kubernetes ``operators/pod.py``).
AIRFLOW = {
    "dag_id": "train_on_request",
    "task_id": "train",
    "run_id": "manual__7",
    "try_number": "1",
    "kubernetes_pod_operator": "True",
    "airflow_version": "3.3.2",
}
TEAM = "vision"


def frozen(fleet: Fleet) -> dict[str, Any]:
    """NodePool -> its limit of nodes."""
    return {pool["metadata"]["name"]: pool["spec"]["limits"]["nodes"] for pool in fleet.objects("nodepools")}


def cordoned(fleet: Fleet) -> list[str]:
    return [node["metadata"]["name"] for node in fleet.nodes() if node["spec"].get("unschedulable")]


def approval(run: Run) -> str:
    """What the person was shown."""
    text: str = run.xcom("teardown.plan")["markdown"]
    return text


@contextlib.contextmanager
def bare_pod(fleet: Fleet) -> Iterator[Json]:
    """A pod as Airflow's pod operators make them, running on a node of the shared pool."""
    container = {"name": "base", "image": "registry.k8s.io/pause:3.10", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    spec = {
        "nodeSelector": {POOL_LABEL: SHARED},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
        "containers": [container],
    }
    metadata = {"name": "train-7", "namespace": "default", "labels": AIRFLOW}
    fleet.kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def runs() -> Json | None:
        (pod,) = fleet.kubectl.get("pod", "train-7", "-n", "default")
        return pod if pod.get("status", {}).get("phase") == "Running" else None

    try:
        yield until("the bare pod", runs)
    finally:
        fleet.kubectl.run("delete", "pod", "train-7", "-n", "default", "--wait=true", "--grace-period=1")


def test_a_bare_pod_of_an_airflow_task_stops_a_teardown_before_anybody_is_asked(standing: Fleet) -> None:
    with bare_pod(standing) as pod:
        before, events = standing.snapshot(), standing.turn_holder()
        run = standing.run(TEARDOWN, answer=None)
        after = standing.snapshot()
        (still,) = standing.kubectl.get("pod", "train-7", "-n", "default")
    assert run.state == "failed"
    assert run.failed[0] == "teardown.plan"
    assert run.states()["teardown.approve"] == "upstream_failed"
    log = run.log("teardown.plan")
    for part in (
        "1 pod must not be evicted",
        "default/train-7",
        "task train of Airflow",
        "manual__7",
        "evictBarePods",
    ):
        assert part in log
    assert changes(before, after) == {}
    assert still["metadata"]["uid"] == pod["metadata"]["uid"]
    assert "deletionTimestamp" not in still["metadata"]
    assert events == standing.turn_holder() == {}


def test_a_drain_that_a_budget_forbids_ends_without_evicting_and_is_taken_back(standing: Fleet) -> None:
    standing.write_cluster(CLUSTER, {"drain": {"timeout": "15s"}})
    limits = frozen(standing)
    workload.start(standing.kubectl, SHARED)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "all-of-them", "namespace": workload.NAMESPACE},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": workload.NAME}}},
    }
    standing.kubectl.apply(budget)
    pods = {pod["metadata"]["uid"] for pod in standing.kubectl.get("pods", "-n", workload.NAMESPACE)}
    instances, seen = set(standing.instances()), set()

    def look(_: dict[str, Json]) -> None:
        if set(frozen(standing).values()) == {"0"}:
            seen.add("frozen")
        if cordoned(standing):
            seen.add("cordoned")

    try:
        run = standing.run(TEARDOWN, on_tick=look)
        left = {pod["metadata"]["uid"]: pod for pod in standing.kubectl.get("pods", "-n", workload.NAMESPACE)}
    finally:
        standing.end_users_job()
        standing.write_cluster()
    text = approval(run)
    assert "**Interrupts:** 2 running pods will be evicted and hold 2 GPUs" in text
    assert "training/Deployment/trainer" in text
    assert "PodDisruptionBudget all-of-them allows no disruption (it needs 2 healthy pods and has 2)" in text
    assert run.failed[0] == f"teardown.drain_{SHARED}"
    assert "nothing was evicted; uncordoned" in run.log(f"teardown.drain_{SHARED}")
    assert seen == {"frozen", "cordoned"}
    undone = run.xcom("teardown.undo_freeze")
    assert (undone["undone"], sorted(undone["thawed"])) == (True, [SHARED, WHOLE])
    assert frozen(standing) == limits
    assert cordoned(standing) == []
    for item in (*standing.objects("nodepools"), *standing.nodes()):
        ours = [name for name in item["metadata"].get("annotations", {}) if name.startswith("gpu-fleet.io/")]
        assert ours == [], item["metadata"]["name"]
    assert set(left) == pods
    assert all("deletionTimestamp" not in pod["metadata"] for pod in left.values())
    assert set(standing.instances()) == instances
    assert standing.turn_holder() == {}


def others(fleet: Fleet) -> tuple[Json, Json]:
    """A NodePool of a team that may launch GPU nodes and has none, and a DaemonSet that names the RuntimeClass."""
    (whole,) = fleet.kubectl.get("nodepool", WHOLE)
    template = {
        "spec": {
            "nodeClassRef": whole["spec"]["template"]["spec"]["nodeClassRef"],
            "requirements": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}],
            "taints": [{"key": "team", "value": TEAM, "effect": "NoSchedule"}],
            "expireAfter": "Never",
        }
    }
    pool = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": TEAM},
        "spec": {"template": template},
    }
    pod = {
        "runtimeClassName": "nvidia",
        "nodeSelector": {"team": TEAM},
        "containers": [{"name": "monitor", "image": "registry.k8s.io/pause:3.10"}],
    }
    labels = {"app": "monitor"}
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "monitor", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    return pool, daemon_set


def test_device_plugin_and_runtime_class_stay_for_others_and_the_approval_says_why(standing: Fleet) -> None:
    pool, daemon_set = others(standing)
    standing.kubectl.apply(pool, daemon_set)
    spec = merged(cluster_spec(), {"teardown": {"uninstallKarpenter": False}})
    standing.write_spec(pool_changes(spec, WHOLE, {"manage": False}))

    def reparsed() -> bool:
        tasks = standing.api.call("GET", f"/dags/{TEARDOWN}/tasks")["tasks"]
        return "teardown.uninstall_karpenter" not in {task["task_id"] for task in tasks}

    until("the DAG of the changed file", reparsed, 120)
    kept = {
        name: version
        for name, version in standing.snapshot().items()
        if name in (f"NodePool /{TEAM}", f"NodePool /{WHOLE}", "DaemonSet default/monitor", "RuntimeClass /nvidia")
    }
    assert len(kept) == 4
    whole = [node["metadata"]["name"] for node in standing.nodes() if node["metadata"]["labels"][POOL_LABEL] == WHOLE]
    try:
        run = standing.teardown().succeeded()
        text = approval(run)
        stays = text.split("**Keeps:**")[1].split("| removed")[0]
        for part in (
            f"NodePools `{TEAM}`, `{WHOLE}`",
            f"the device plugin: pool {WHOLE} of the same file stays (manage: false)",
            "DaemonSet default/monitor names it",
            f"{TEAM}",
            "Karpenter (teardown.uninstallKarpenter: false)",
        ):
            assert part in stays
        assert "volumes of" in text.split("**Interrupts:**")[0]
        assert run.xcom("teardown.uninstall_device_plugin")["kept"] == "InUse"
        assert run.xcom("teardown.delete_runtime_class")["kept"] == ["RuntimeClass nvidia"]
        assert changes(kept, {name: version for name, version in standing.snapshot().items() if name in kept}) == {}
        assert [node["metadata"]["name"] for node in standing.nodes()] == whole
        assert standing.allocatable() == {WHOLE: [8]}
        releases = standing.releases()
        assert releases["nvidia-device-plugin"]["status"] == "deployed"
        assert "karpenter" in releases
    finally:
        standing.kubectl.run("delete", "nodepool", TEAM, "--wait=false")
        standing.kubectl.run("delete", "daemonset", "monitor", "-n", "default")
        standing.write_cluster()
