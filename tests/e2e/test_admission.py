"""Gated pools: no user's pod runs on a node before its proof, whoever bought the node, and the proof buys none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from demo.timeline import epoch
from tests.e2e.fleet import CLUSTER, OVER, POOL_LABEL, SHARED, Fleet, Json, Run, cluster_spec, until

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

ADMIT = f"gpu_admit.{CLUSTER}"
TAINT, CONDITION = "gpu-fleet.io/unproven", "gpu-fleet.io/Proven"
USERS = "gated-users"
#: Shares of one node: one GPU, four replicas.
SHARES = 4
CAP = 3


def spec(wanted: int) -> Json:
    """The shared pool alone, gated, with room for nodes that users' pods buy."""
    base = cluster_spec(changes={"validation": {"admission": "gated"}})
    (shared,) = [pool for pool in base["nodePools"] if pool["name"] == SHARED]
    return {**base, "nodePools": [{**shared, "wantedNodes": wanted, "limits": {"nodes": CAP}}]}


def taints(node: Json) -> set[str]:
    return {taint["key"] for taint in node["spec"].get("taints") or []}


def proven(node: Json) -> Json:
    return next((each for each in node["status"]["conditions"] if each["type"] == CONDITION), {})


class Users:
    """Pods that ask for one share each and tolerate what the guide says, and no startup taint.

    :ivar seen_on: node -> users' pods that were ever seen there while it had the taint; must stay empty.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.seen_on: dict[str, set[str]] = {}
        fleet.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": USERS}})

    def create(self, *names: str) -> None:
        for name in names:
            container = {
                "name": "job",
                "image": "registry.k8s.io/pause:3.10",
                "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "50m", "memory": "32Mi"}},
            }
            self.fleet.kubectl.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name, "namespace": USERS},
                    "spec": {
                        "nodeSelector": {"gpu-fleet.io/pool": SHARED},
                        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                        "terminationGracePeriodSeconds": 1,
                        "containers": [container],
                    },
                }
            )

    def pods(self) -> dict[str, Json]:
        return {pod["metadata"]["name"]: pod for pod in self.fleet.kubectl.get("pods", "-n", USERS)}

    def look(self) -> dict[str, Json]:
        """The pods; notes those on a closed node. The nodes are read first: they only ever open."""
        closed = {node["metadata"]["name"] for node in self.fleet.nodes() if TAINT in taints(node)}
        pods = self.pods()
        still = {node["metadata"]["name"] for node in self.fleet.nodes() if TAINT in taints(node)}
        for name, pod in pods.items():
            if (where := pod["spec"].get("nodeName")) in closed & still:
                self.seen_on.setdefault(str(where), set()).add(name)
        return pods

    def running(self, *names: str) -> dict[str, Json] | None:
        found = {name: pod for name, pod in self.look().items() if name in names}
        return found if {pod["status"].get("phase") for pod in found.values()} == {"Running"} else None


@pytest.fixture
def gated(empty: Fleet) -> Iterator[Fleet]:
    # What the test before this one left until now does not count.
    assert empty.caps is not None
    empty.caps.most.clear()
    try:
        yield empty
    finally:
        empty.repair()
        with contextlib.suppress(Exception):
            empty.kubectl.run("delete", "namespace", USERS, "--ignore-not-found")
        with contextlib.suppress(Exception):
            empty.api.call("PATCH", f"/dags/{ADMIT}", json={"is_paused": True})


def admit_runs(fleet: Fleet) -> list[Json]:
    return list(fleet.api.call("GET", f"/dags/{ADMIT}/dagRuns", params={"limit": 100})["dag_runs"])


def ended_after(fleet: Fleet, known: set[str]) -> Run:
    """The first run of gpu_admit that was not known before, when it is over."""

    def look() -> Json | None:
        return next((run for run in admit_runs(fleet) if run["dag_run_id"] not in known and run["state"] in OVER), None)

    run = until("a run of gpu_admit to end", look, 240, interval=1)
    tasks = {task["task_id"]: task for task in fleet.api.tasks(ADMIT, run["dag_run_id"])}
    fleet.runs.append((ADMIT, run["dag_run_id"]))
    return Run(fleet, ADMIT, run["dag_run_id"], run["state"], 0.0, tasks)


def scheduled_at(pod: Json) -> float:
    (found,) = [each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled"]
    return epoch(found["lastTransitionTime"]) or 0.0


def test_nobody_runs_on_a_node_before_its_proof(gated: Fleet) -> None:
    fleet = gated
    fleet.write_spec(spec(wanted=1))

    # A lifecycle proves what it brings, opens it, and buys nothing beside it.
    lifecycle = fleet.lifecycle().succeeded()
    (first,) = fleet.nodes()
    name = first["metadata"]["name"]
    assert TAINT not in taints(first)
    assert (proven(first)["status"], proven(first)["reason"]) == ("True", "ProofPassed")
    assert lifecycle.run_id in proven(first)["message"]
    assert lifecycle.xcom(f"validation.pool_{SHARED}.admit_nodes") == {"admitted": [name], "closed": []}
    assert fleet.caps is not None
    assert fleet.caps.most[SHARED] == 1
    until(
        "Karpenter to initialize the node",
        lambda: fleet.nodes()[0]["metadata"]["labels"].get("karpenter.sh/initialized") == "true",
    )

    # Users fill it; the next pod buys a node, waits for its proof, and then runs there.
    fleet.api.wait_for_dag(ADMIT)
    users = Users(fleet)
    users.create(*(f"first-{index}" for index in range(SHARES)))
    until("the first pods to run", lambda: users.running(*(f"first-{index}" for index in range(SHARES))))
    known = {run["dag_run_id"] for run in admit_runs(fleet)}
    users.create("waits")
    pods = until("the pod to run on a proven node", lambda: users.running("waits"), 300)
    run = ended_after(fleet, known).succeeded()
    second = next(node for node in fleet.nodes() if node["metadata"]["name"] == pods["waits"]["spec"]["nodeName"])
    assert second["metadata"]["name"] != name
    assert (proven(second)["status"], proven(second)["reason"]) == ("True", "ProofPassed")
    assert run.run_id in proven(second)["message"]
    # Both are of the cluster's clock, in whole seconds.
    assert scheduled_at(pods["waits"]) >= (epoch(proven(second)["lastTransitionTime"]) or 0.0)
    assert users.seen_on == {}
    assert fleet.caps.most[SHARED] == 2

    # A defective node takes no pod and says why; the pod waits, and nothing is bought for it in a loop.
    filling = [f"second-{index}" for index in range(SHARES - 1)]
    users.create(*filling)
    until("the second node to be full", lambda: users.running(*filling))
    known = {run["dag_run_id"] for run in admit_runs(fleet)}
    with fleet.fault("split-sharers", {"pool": SHARED}):
        users.create("unlucky")
        run = ended_after(fleet, known)
        assert run.state == "failed"
        probe = f"admission.pool_{SHARED}.sharing"
        assert run.failed == [probe]
        # Longer than a run takes: a verdict is not asked for again.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert users.look()["unlucky"]["status"]["phase"] == "Pending"
            time.sleep(1)
    (closed,) = [node for node in fleet.nodes() if TAINT in taints(node)]
    (failure, *_) = run.xcom(probe, "summary")["failures"]
    assert (proven(closed)["status"], proven(closed)["reason"]) == ("False", failure["reason"])
    assert users.seen_on == {}
    assert {run["dag_run_id"] for run in admit_runs(fleet)} == {*known, run.run_id}
    assert fleet.caps.most[SHARED] == CAP
    assert fleet.allocatable()[SHARED] == [4, 4, 4]
    # What is left is told with its price, and its NodeClaim says what it waits for.
    (claim,) = [
        each for each in fleet.node_claims().values() if each["status"]["nodeName"] == closed["metadata"]["name"]
    ]
    assert claim["metadata"]["name"] in run.xcom(f"admission.pool_{SHARED}.clean_up", "still_paid")
    waiting: dict[str, Any] = next(each for each in claim["status"]["conditions"] if each["type"] == "Initialized")
    assert waiting["reason"] == "StartupTaintsExist"
    assert claim["metadata"]["labels"][POOL_LABEL] == SHARED

    # What passes later is opened later: without the fault a revalidation admits it, and the pod runs.
    fleet.run(f"gpu_revalidate.{CLUSTER}", {"node": closed["metadata"]["name"]}).succeeded()
    until("the pod that waited to run", lambda: users.running("unlucky"))
    assert users.seen_on == {}
