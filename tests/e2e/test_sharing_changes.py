"""The sharing of a pool changes, back again, the pool leaves the file, the pool is renamed: while its nodes are busy.

Nobody's pod is killed, no config-manager ever crashes, old nodes go on offering what they were launched with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from demo import workload
from tests.e2e.fleet import (
    CLUSTER,
    GPU,
    LIFECYCLE,
    PLUGIN_NAMESPACE,
    POOL_LABEL,
    SHARED,
    SYSTEM_NAMESPACE,
    Fleet,
    Json,
    Run,
    changes,
    cluster_spec,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]

ENTRY = "nvidia.com/device-plugin.config"
RENAMED = "shared-eight"


def spec_with(name: str, replicas: int, **more: Any) -> Json:
    """One shared pool of one node, whose drifted nodes Karpenter leaves alone."""
    spec = cluster_spec()
    pool = {
        **spec["nodePools"][0],
        "name": name,
        "wantedNodes": 1,
        "sharing": {"mode": "timeSlicing", "replicas": replicas},
        "terminationGracePeriod": None,
        **more,
    }
    pool["disruption"] = {
        "consolidateAfter": "24h",
        "budgets": [{"nodes": "0", "reasons": ["Drifted"]}, {"nodes": "10%"}],
    }
    return {**spec, "nodePools": [pool]}


class Watched:
    """The cluster, with what may never happen on it looked for at every tick."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.crashed: set[str] = set()

    def tick(self, _: dict[str, Json]) -> None:
        for pod in self.fleet.kubectl.get("pods", "-n", PLUGIN_NAMESPACE):
            status = pod.get("status", {})
            for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
                reason = each["state"].get("waiting", {}).get("reason")
                if each["restartCount"] or reason == "CrashLoopBackOff":
                    self.crashed.add(f"{pod['metadata']['name']} {each['name']} {reason}")

    def lifecycle(self, spec: Json) -> Run:
        self.fleet.write_spec(spec)
        pools = {pool["name"] for pool in spec["nodePools"]}
        until(f"a DAG with the pools {pools}", lambda: self._parsed() == pools, 90)
        return self.fleet.run(LIFECYCLE, {"until": "validated"}, on_tick=self.tick)

    def _parsed(self) -> set[str]:
        self.fleet.api.wait_for_dag(LIFECYCLE)
        tasks = [task["task_id"] for task in self.fleet.api.call("GET", f"/dags/{LIFECYCLE}/tasks")["tasks"]]
        begin, end = "capacity.pool_", ".request_capacity"
        return {task.removeprefix(begin).removesuffix(end) for task in tasks if task.endswith(end)}

    def nodes(self) -> dict[str, tuple[str, str, int]]:
        """Node -> pool, config entry and what it offers."""
        found = {}
        for node in self.fleet.nodes():
            labels = node["metadata"]["labels"]
            offered = int(node["status"].get("allocatable", {}).get(GPU, "0"))
            found[node["metadata"]["name"]] = labels[POOL_LABEL], labels[ENTRY], offered
        return found

    def entries(self) -> set[str]:
        maps = self.fleet.kubectl.get("configmaps", "-n", PLUGIN_NAMESPACE)
        (configs,) = [each for each in maps if each["metadata"]["name"].endswith("-configs")]
        return set(configs["data"])

    def users(self) -> dict[str, tuple[str, str]]:
        """UID -> node and phase of the user's pods."""
        pods = self.fleet.kubectl.get("pods", "-n", workload.NAMESPACE)
        return {p["metadata"]["uid"]: (p["spec"].get("nodeName", ""), p["status"]["phase"]) for p in pods}


@pytest.fixture
def watched(empty: Fleet) -> Iterator[Watched]:
    yield Watched(empty)
    empty.end_users_job()


def one(names: set[str]) -> str:
    (name,) = names
    return name


def test_four_to_eight_with_busy_nodes_and_back_again(watched: Watched) -> None:
    fleet = watched.fleet
    watched.lifecycle(spec_with(SHARED, 4)).succeeded()
    old = one(set(watched.nodes()))
    fleet.users_job(SHARED)
    users = watched.users()
    assert {node for node, _ in users.values()} == {old}

    run = watched.lifecycle(spec_with(SHARED, 8)).succeeded()
    new = one(set(watched.nodes()) - {old})
    assert watched.nodes() == {old: (SHARED, "time-slicing-4", 4), new: (SHARED, "time-slicing-8", 8)}
    assert watched.entries() == {"exclusive", "time-slicing-4", "time-slicing-8"}
    assert watched.users() == users
    # Named, with what they hold; neither counted nor judged.
    log = run.log(f"capacity.pool_{SHARED}.request_capacity")
    assert f"node {old} drifted: sharing time-slicing-4 -> time-slicing-8, holds 2 GPU pods" in log
    assert [node["node"] for node in run.xcom(f"validation.pool_{SHARED}.sharing", "report")["nodes"]] == [new]
    event = fleet.events(f"gpu-fleet://{CLUSTER}/{SHARED}/validated")[-1]["extra"]
    assert (list(event["nodes"]), event["older"]) == ([new], [old])
    assert [(each["node"], each["fields"], each["gpuPods"]) for each in event["drifted"]] == [(old, ["sharing"], 2)]
    assert run.span("rollout.install_device_plugin")[1] <= run.span(f"provision.pool_{SHARED}.apply_node_pool")[0]

    # A second run changes nothing.
    before = fleet.snapshot()
    watched.lifecycle(spec_with(SHARED, 8)).succeeded()
    assert changes(before, fleet.snapshot()) == {}

    instances = set(fleet.instances())
    watched.lifecycle(spec_with(SHARED, 4)).succeeded()
    assert set(fleet.instances()) == instances
    assert watched.nodes() == {old: (SHARED, "time-slicing-4", 4), new: (SHARED, "time-slicing-8", 8)}
    assert watched.users() == users

    # A third sharing, for which the two leave no room under the cap: known before anything is bought.
    run = watched.lifecycle(spec_with(SHARED, 2, limits={"nodes": 2}))
    assert run.failed == [f"capacity.pool_{SHARED}.request_capacity"]
    verdict = run.xcom(f"validation.pool_{SHARED}.publish", "verdict")
    assert verdict["reason"] == "DriftedNodesHoldTheCap"
    for named in (old, new, f"{workload.NAMESPACE}/{workload.NAME}", "limits.nodes"):
        assert named in verdict["message"]
    assert fleet.kubectl.get("pods", "-n", SYSTEM_NAMESPACE) == []
    assert set(fleet.instances()) == instances
    assert watched.users() == users
    assert watched.crashed == set()


def test_a_pool_is_renamed_then_removed_from_the_file(watched: Watched) -> None:
    fleet = watched.fleet
    watched.lifecycle(spec_with(SHARED, 4)).succeeded()
    old = one(set(watched.nodes()))
    fleet.users_job(SHARED)
    users = watched.users()

    # Renamed, and shared otherwise: for Karpenter another pool, beside the one that the file no longer has.
    watched.lifecycle(spec_with(RENAMED, 8)).succeeded()
    new = one(set(watched.nodes()) - {old})
    both = {old: (SHARED, "time-slicing-4", 4), new: (RENAMED, "time-slicing-8", 8)}
    assert watched.nodes() == both
    assert watched.users() == users

    # Removed: a file with another pool only, which shares nothing.
    plain = spec_with("plain", 2)
    plain["nodePools"][0] |= {"sharing": {"mode": "exclusive"}}
    run = watched.lifecycle(plain).succeeded()
    left = {name: seen for name, seen in watched.nodes().items() if name in both}
    assert left == both
    assert {"exclusive", "time-slicing-4", "time-slicing-8"} <= watched.entries()
    log = run.log("rollout.install_device_plugin")
    assert "config entry time-slicing-8 is kept" in log
    assert new in log
    assert watched.users() == users
    assert watched.crashed == set()
