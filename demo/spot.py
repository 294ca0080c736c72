"""The demo's spot interruption: a node that runs a training job is taken, and everything goes on."""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Protocol

from demo import workload
from demo.api import AirflowApi
from demo.control import Sandbox
from demo.kubectl import Kubectl
from demo.progress import Follower
from demo.report import Report
from demo.stack import Stack
from demo.timeline import epoch

CLUSTER = "demo"
DRAIN, RESTORE = f"gpu_spot_drain.{CLUSTER}", f"gpu_restore.{CLUSTER}"
TRIGGER = "gpu_fleet.triggers.interruptions.InterruptionTrigger"
#: Seconds of notice that EC2 gives; the sandbox's clock is faster, the package's is not.
NOTICE_S = 120.0
RUN_TIMEOUT_S = 600.0


class Doors(Protocol):
    """The ways into a running stack."""

    stack: Stack
    api: AirflowApi
    kubectl: Kubectl
    sandbox: Sandbox


def interrupt_and_follow(scene: Doors, report: Report, pool: str) -> bool:
    """Interrupt a node of the pool on which a user's job runs, and follow both runs; the figures go into the report."""
    for dag_id in (DRAIN, RESTORE):
        scene.api.wait_for_dag(dag_id)
    await_watcher(scene)
    (node, *_) = workload.start(scene.kubectl, pool)
    instance = instance_of(scene, node)
    jobs = scene.kubectl.get("pods", "-n", workload.NAMESPACE)
    here = {pod["metadata"]["name"] for pod in jobs if pod["spec"]["nodeName"] == node}
    print(f"\na user's training job runs on {node}; EC2 announces that it takes {instance} in {NOTICE_S:.0f} s\n")
    known = {run["dag_run_id"] for run in runs_of(scene, DRAIN)}
    sent = time.time()
    scene.sandbox.call("POST", "/interrupt", json={"instance": instance, "kind": "spot", "notice": NOTICE_S})
    cordoned = await_cordon(scene, node) - sent
    drain = _follow(scene, DRAIN, await_run(scene, DRAIN, known))
    run_id = drain["dag_run_id"]
    told = scene.api.xcom(DRAIN, run_id, "drain", "interruption") or {}
    placement = scene.api.xcom(DRAIN, run_id, "pods_placed", "placement") or {}
    restore = _follow(scene, RESTORE, f"interruption__{run_id}")
    lost = scene.sandbox.call("GET", "/lost")
    known_pods = {pod["metadata"]["name"] for pod in jobs}
    now = scene.kubectl.get("pods", "-n", workload.NAMESPACE)
    moved = [pod for pod in now if pod["metadata"]["name"] not in known_pods and pod["spec"].get("nodeName") != node]
    asked = [pod["asked_at"] for pod in told.get("pods", []) if pod.get("asked_at")]
    gone = [pod["gone_at"] for pod in told.get("pods", []) if pod.get("gone_at")]
    report["interruption"] = {
        "node": node,
        "instance": instance,
        "headline": told.get("headline", "no report"),
        "cordoned_after_s": round(cordoned, 2),
        "first_eviction_after_s": round(min(asked) - sent, 1) if asked else None,
        "empty_after_s": round(max(gone) - sent, 1) if gone else None,
        "drain_run_s": round((epoch(drain["end_date"]) or 0.0) - sent, 1),
        "whole_again_after_s": round((epoch(restore["end_date"]) or 0.0) - sent, 1),
        "placement": placement.get("message", "unknown"),
        "lost": lost,
    }
    passed = drain["state"] == restore["state"] == "success" and not lost and len(moved) == len(here)
    report["outcome"] = (
        f"{'as it should be' if passed else 'FAILED'}: the drain ended {drain['state']}, the restoration "
        f"{restore['state']}; {len(moved)} of {len(here)} pods of the job on that node run elsewhere; "
        f"{len(lost) if lost else 'no'} pod was lost with its machine"
    )
    return passed


def await_watcher(scene: Doors, timeout: float = 120.0) -> None:
    """Until the triggerer reads the queue: Airflow starts a watcher when its DAG is switched on and parsed again.

    :raises TimeoutError: it never did.
    """
    deadline = time.monotonic() + timeout
    while not _watched(scene):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no triggerer has started the watcher of {DRAIN}; see airflow.log")
        time.sleep(0.5)


def _watched(scene: Doors) -> bool:
    with sqlite3.connect(f"file:{scene.stack.database}?mode=ro", uri=True, timeout=30) as database:
        rows = database.execute("select triggerer_id from trigger where classpath = ?", (TRIGGER,)).fetchall()
    return any(row[0] is not None for row in rows)


def instance_of(scene: Doors, node: str) -> str:
    """The EC2 instance id of a node."""
    (found,) = scene.kubectl.get("nodes", node)
    return str(found["spec"]["providerID"]).rpartition("/")[2]


def await_cordon(scene: Doors, node: str, timeout: float = 30.0) -> float:
    """Epoch seconds at which the node was seen unschedulable.

    :raises TimeoutError: it never was.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = scene.kubectl.get("nodes", "--field-selector", f"metadata.name={node}")
        if not found or found[0]["spec"].get("unschedulable"):
            return time.time()
        if time.monotonic() > deadline:
            raise TimeoutError(f"node {node} was not cordoned within {timeout:.0f} s")


def runs_of(scene: Doors, dag_id: str) -> list[dict[str, Any]]:
    """The DAG's newest runs."""
    found: list[dict[str, Any]] = scene.api.call(
        "GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": 50}
    )["dag_runs"]
    return found


def await_run(scene: Doors, dag_id: str, known: set[str], timeout: float = 60.0) -> str:
    """The id of a run that was not there before.

    :raises TimeoutError: none has begun.
    """
    deadline = time.monotonic() + timeout
    while True:
        new = [run["dag_run_id"] for run in runs_of(scene, dag_id) if run["dag_run_id"] not in known]
        if new:
            return str(new[-1])
        if time.monotonic() > deadline:
            raise TimeoutError(f"no run of {dag_id} has begun within {timeout:.0f} s")
        time.sleep(0.3)


def _follow(scene: Doors, dag_id: str, run_id: str) -> dict[str, Any]:
    print(f"\n{dag_id}: run {run_id}\n")
    return Follower(scene.api, scene.stack).follow(dag_id, run_id, RUN_TIMEOUT_S)
