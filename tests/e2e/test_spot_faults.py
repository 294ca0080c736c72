"""Spot interruptions while Airflow, the API server or the queue are in trouble: nothing is lost, and all is told."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from demo import workload
from demo.processes import alive, session_pids
from demo.spot import DRAIN, await_cordon
from tests.e2e.fleet import SHARED, STANDING, Fleet, Run, until
from tests.e2e.interruptions import QUEUE, Interrupted, budget
from tests.e2e.killer import Killer, components, process_of, triggerer

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]

#: Longer than a notice on the sandbox's clock, too, which is faster than the package's.
GRACE_S = 3600
DISRUPTED = "karpenter.sh/disrupted"
#: Containers of this image are executed.
PYTHON = "public.ecr.aws/docker/library/python:3.12-slim-bookworm"


@pytest.fixture
def spot(fleet: Fleet) -> Iterator[Interrupted]:
    """The package evicts by itself: Karpenter has no queue."""
    yield from interrupted(fleet)


def interrupted(fleet: Fleet, **more: str) -> Iterator[Interrupted]:
    found = Interrupted(fleet, {"handler": "gpu-fleet", **more}, karpenter={"interruptionQueue": None})
    try:
        yield found
    finally:
        fleet.repair()
        fleet.end_users_job()
        fleet.api.call("PATCH", f"/dags/{DRAIN}", json={"is_paused": True})
        fleet.write_cluster()


@pytest.fixture
def early(fleet: Fleet) -> Iterator[Interrupted]:
    """The same, with so much of the notice in reserve that a test need not wait for the end of it."""
    yield from interrupted(fleet, margin="100s")


def right(spot: Interrupted, drain: Run, node: str, pods: set[str]) -> None:
    """The node was drained in time by one run, whose report has every pod, and nothing was lost."""
    report = spot.report(drain.succeeded())
    (row,) = report["nodes"]
    assert row["node"] == node
    assert row["outcome"] in ("Drained", "Forced", "Empty")
    assert pods <= {pod["name"] for pod in report["pods"]}
    assert not [pod for pod in report["pods"] if pod["outcome"] in ("Lost", "Waiting", "Asked")]
    assert not pods & spot.pods_on(node)
    assert spot.lost() == []


def test_worker_killed_in_mid_drain(spot: Interrupted) -> None:
    node, pods = spot.job()
    spot.interrupt(spot.instance(node))
    run_id = str(until("a run of the drain", spot.new_runs, 60)[-1])
    killer = Killer(spot.fleet, DRAIN, run_id, seed=1, only={"drain"}, hurry=0.3)
    killer.start()
    drain = spot.drained()
    killer.join(30)
    right(spot, drain, node, pods)


def test_scheduler_down_for_a_minute(spot: Interrupted) -> None:
    """First aid waits for no scheduler; the drain still ends in time."""
    node, pods = spot.job()
    pids = components(spot.fleet, "scheduler")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        sent = spot.interrupt(spot.instance(node))
        await_cordon(spot, node)
        time.sleep(max(0.0, sent + 60 - time.time()))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    right(spot, spot.drained(), node, pods)


def test_triggerer_killed_between_receiving_and_storing(
    spot: Interrupted, replacements: list[subprocess.Popen[bytes]]
) -> None:
    """The message was not acknowledged: SQS delivers it again to the next triggerer."""
    node, pods = spot.job()
    pid = triggerer(spot.fleet)
    command, environment = process_of(pid)
    died = [pid, *(child for child in session_pids(pid) if child != pid)]
    spot.interrupt(spot.instance(node))
    time.sleep(random.uniform(0.0, 1.0))  # whatever it has done by then, the end is the same
    for each in died:
        os.kill(each, signal.SIGKILL)
    until("the triggerer's end", lambda: not alive(died), 20)
    with (spot.stack.build_dir / "triggerer.log").open("ab") as log:
        fresh_one = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    replacements.append(fresh_one)
    right(spot, spot.drained(timeout=240), node, pods)


def test_api_server_in_trouble_for_twenty_seconds(spot: Interrupted) -> None:
    node, pods = spot.job()
    for rule in ({"status": 500}, {"status": 429, "retryAfter": 1}, {"cut": True}):
        with spot.fleet.fault("request-faults", {"rules": [{"userAgent": "gpu-fleet", **rule}]}):
            if "status" in rule and rule["status"] == 500:
                spot.interrupt(spot.instance(node))
            time.sleep(7)
    right(spot, spot.drained(), node, pods)


def test_queue_throttled(spot: Interrupted) -> None:
    node, pods = spot.job()
    with spot.fleet.fault("sqs-throttled"):
        spot.interrupt(spot.instance(node))
        time.sleep(10)
    right(spot, spot.drained(), node, pods)
    until("the queue to be empty", lambda: spot.depth(QUEUE) == 0, 60)


def test_dag_paused(spot: Interrupted) -> None:
    """Airflow runs no watcher then: the message waits in the queue, and nothing is lost."""
    node, pods = spot.job()
    spot.api.call("PATCH", f"/dags/{DRAIN}", json={"is_paused": True})
    time.sleep(15)
    spot.interrupt(spot.instance(node))
    time.sleep(5)
    assert spot.depth(QUEUE) == 1
    spot.api.call("PATCH", f"/dags/{DRAIN}", json={"is_paused": False})
    right(spot, spot.drained(), node, pods)


@pytest.mark.parametrize("skew", [-5, 5])
def test_clocks_differ_and_messages_are_out_of_order(spot: Interrupted, skew: int) -> None:
    node, pods = spot.job()
    instance = spot.instance(node)
    with spot.fleet.fault("events-shuffled", {"seconds": 30}):
        spot.interrupt(instance, kind="rebalance", skew=skew)
        spot.interrupt(instance, skew=skew, times=3)
        time.sleep(5)  # until the last copy, by the sandbox's clock, has arrived
    runs = spot.all_drained()
    acting = [run for run in runs if spot.report(run)["nodes"] and spot.report(run)["pods"]]
    right(spot, acting[-1], node, pods)


def test_two_budgets_and_a_finalizer_hold_no_drain(early: Interrupted) -> None:
    """The Eviction API refuses a pod of two budgets for good; a finalizer keeps the object, not the containers."""
    node, pods = early.job()
    budget(early.fleet, 1)
    budget(early.fleet, 1, name="trainer-too")
    held = sorted(pods)[0]
    early.kubectl.run(
        "patch", "pod", held, "-n", workload.NAMESPACE, "-p", '{"metadata": {"finalizers": ["example.com/never"]}}'
    )
    try:
        early.interrupt(early.instance(node))
        drain = early.drained().succeeded()
        found = {pod["name"]: pod for pod in early.report(drain)["pods"] if pod["name"] in pods}
        assert set(found) == pods
        assert found[held]["outcome"] == "StuckTerminating"
        assert {pod["outcome"] for name, pod in found.items() if name != held} <= {"Forced"}
        assert all("more than one PodDisruptionBudget" in pod["words"] for pod in found.values())
        assert early.lost() == []
    finally:
        early.kubectl.run("patch", "pod", held, "-n", workload.NAMESPACE, "-p", '{"metadata": {"finalizers": null}}')


def test_a_grace_that_does_not_fit_is_counted_as_lost(spot: Interrupted) -> None:
    """Asked at once, and cut off by EC2: the run fails, and says so."""
    node, _ = spot.job()
    (deployment,) = [each for each in workload.manifests(SHARED, replicas=1) if each["kind"] == "Deployment"]
    stubborn = {"app": "stubborn"}
    deployment["metadata"]["name"] = "stubborn"
    deployment["spec"]["selector"]["matchLabels"] = deployment["spec"]["template"]["metadata"]["labels"] = stubborn
    template = deployment["spec"]["template"]["spec"]
    template |= {"terminationGracePeriodSeconds": GRACE_S, "nodeSelector": {"kubernetes.io/hostname": node}}
    template["containers"][0] |= {"image": PYTHON, "command": ["sh", "-c", "trap '' TERM; sleep 100000"]}
    spot.kubectl.apply(deployment)
    until("the stubborn pod", lambda: any(name.startswith("stubborn") for name in spot.running_on(node)))
    spot.interrupt(spot.instance(node))
    drain = spot.drained(timeout=240)
    report = spot.report(drain)
    (pod,) = [pod for pod in report["pods"] if pod["name"].startswith("stubborn")]
    assert pod["outcome"] == "Lost"
    assert pod["reason"] == f"its grace of {GRACE_S} s ends after the instance"
    assert drain.state == "failed"
    assert drain.states()["nothing_lost"] == "failed"
    until("the machine's end", lambda: [each for each in spot.lost() if "stubborn" in each["name"]])


def test_karpenter_was_already_deleting_the_node(early: Interrupted) -> None:
    """A budget holds Karpenter's drain, as it has no deadline; the notice brings one."""
    node, pods = early.job()
    budget(early.fleet, 0)
    (claim,) = [each for each in early.fleet.node_claims().values() if each["status"].get("nodeName") == node]
    early.kubectl.run("delete", "nodeclaim", claim["metadata"]["name"], "--wait=false")
    until("Karpenter's taint", lambda: DISRUPTED in [taint["key"] for taint in early.taints(node)])
    early.interrupt(early.instance(node))
    right(early, early.drained(), node, pods)


def test_the_instance_was_already_gone(spot: Interrupted) -> None:
    """EC2's messages come late: there is nothing to drain, and the pool is brought back all the same."""
    node, pods = spot.job()
    instance = spot.instance(node)
    spot.fleet.aws("ec2").terminate_instances(InstanceIds=[instance])
    until("the node's end", lambda: not spot.kubectl.get("node", node), 120)
    spot.send(instance)
    runs = spot.all_drained()
    assert runs
    assert {run.state for run in runs} <= {"success", "failed"}
    assert not pods & spot.pods_on(node)
    until("the pool to be whole again", lambda: spot.fleet.allocatable().get(SHARED) == STANDING[SHARED], 240)
