"""Spot interruptions of a standing fleet: how they are caused, and what became of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from demo import workload
from demo.spot import DRAIN, NOTICE_S, RESTORE, await_watcher, instance_of
from tests.e2e.fleet import CLUSTER, SHARED, Fleet, Json, Run, until

QUEUE = f"{CLUSTER}-gpu-gpu-fleet"
DEAD = f"{QUEUE}-dlq"


class Interrupted:
    """A fleet whose triggerer reads the queue, with a user's job on its shared pool."""

    def __init__(self, fleet: Fleet, interruptions: Mapping[str, Any] | None = None, **changes: Any) -> None:
        self.fleet = fleet
        # Whoever builds the pools needs no queue of ours: so that is changed once they stand.
        fleet.stand(changes)
        fleet.write_cluster(changes={"interruptions": {"queue": QUEUE, **(interruptions or {})}, **changes})
        self.stack, self.api, self.kubectl, self.sandbox = fleet.stack, fleet.api, fleet.kubectl, fleet.sandbox
        for dag_id in (DRAIN, RESTORE):
            self.api.wait_for_dag(dag_id)
        await_watcher(self)
        self._await_reader()
        self.sandbox.call("DELETE", "/lost")
        self.known = {run["dag_run_id"] for run in self.runs()}

    def runs(self) -> list[Json]:
        """The runs of the drain, newest first."""
        found: list[Json] = self.api.call(
            "GET", f"/dags/{DRAIN}/dagRuns", params={"order_by": "-run_after", "limit": 100}
        )["dag_runs"]
        return found

    def new_runs(self) -> list[str]:
        return [run["dag_run_id"] for run in self.runs() if run["dag_run_id"] not in self.known]

    def job(self, replicas: int = 2) -> tuple[str, set[str]]:
        """A node on which pods of a user's job run, and these pods."""
        nodes = workload.start(self.kubectl, SHARED)
        return nodes[0], self.pods_on(nodes[0])

    def pods_on(self, node: str) -> set[str]:
        pods = self.kubectl.get("pods", "-n", workload.NAMESPACE)
        return {pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == node}

    def running_on(self, node: str) -> set[str]:
        pods = self.kubectl.get("pods", "-n", workload.NAMESPACE)
        here = [pod for pod in pods if pod["spec"].get("nodeName") == node]
        return {pod["metadata"]["name"] for pod in here if pod.get("status", {}).get("phase") == "Running"}

    def taints(self, node: str) -> list[Json]:
        (found,) = self.kubectl.get("node", node)
        taints: list[Json] = found["spec"].get("taints") or []
        return taints

    def instance(self, node: str) -> str:
        return instance_of(self, node)

    def interrupt(self, *instances: str, notice: float = NOTICE_S, **more: Any) -> float:
        """Announce the end of instances; returns when."""
        body: Json = {"kind": "spot", "notice": notice, **more}
        if instances:
            body["instances"] = list(instances)
        sent = time.time()
        self.sandbox.call("POST", "/interrupt", json=body)
        return sent

    def drained(self, timeout: float = 180) -> Run:
        """The first new run of the drain that had a node to drain, at its end.

        There may be others: EC2 also says that the instance of an earlier test has ended.
        """
        deadline, seen = time.monotonic() + timeout, set[str]()
        while time.monotonic() < deadline:
            for run_id in reversed(self.new_runs()):
                if run_id in seen:
                    continue
                self.fleet.runs.append((DRAIN, run_id))
                run = self.fleet.follow(DRAIN, run_id, timeout=max(1.0, deadline - time.monotonic()))
                seen.add(run_id)
                if (self.report(run) or {}).get("nodes"):
                    return run
            time.sleep(0.5)
        raise TimeoutError(f"no run of the drain had a node after {timeout:.0f} s; without one: {sorted(seen)}")

    def all_drained(self, timeout: float = 180) -> list[Run]:
        """Every new run of the drain at its end, once no message is left in the queue."""
        until("the queue to be empty", lambda: self.depth(QUEUE) == 0, timeout)
        # What was read last may still wait for its run: told in the next test, it would be of a node that is gone.
        known: list[str] | None = None
        while known != self.new_runs():
            known = self.new_runs()
            time.sleep(5)
        return [self.fleet.follow(DRAIN, run_id, timeout=timeout) for run_id in reversed(self.new_runs())]

    def restored(self, drain: Run, timeout: float = 240) -> Run:
        """The restoration that a drain has started, at its end."""
        run_id = f"interruption__{drain.run_id}"
        self.fleet.runs.append((RESTORE, run_id))
        return self.fleet.follow(RESTORE, run_id, timeout=timeout)

    def report(self, drain: Run) -> Json:
        found: Json = drain.xcom("drain", "interruption")
        return found

    def lost(self) -> list[Json]:
        found: list[Json] = self.sandbox.call("GET", "/lost")
        return found

    # --- the queue -----------------------------------------------------------------------------------------------
    def _await_reader(self) -> None:
        """Until the trigger reads: it is assigned before it has begun, and Karpenter empties a node in less time."""
        running = {"instance-id": "i-00000000000000000", "state": "running"}
        self._send("EC2 Instance State-change Notification", running)
        until("the trigger to have read the queue", lambda: self.depth(QUEUE) == 0)

    def send(self, instance: str) -> None:
        """A spot notice of an instance, whatever has become of it."""
        detail = {"instance-id": instance, "instance-action": "terminate"}
        self._send("EC2 Spot Instance Interruption Warning", detail)

    def _send(self, kind: str, detail: Json) -> None:
        body = {
            "version": "0",
            "id": "0",
            "detail-type": kind,
            "source": "aws.ec2",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "detail": detail,
        }
        sqs = self.fleet.aws("sqs")
        sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"], MessageBody=json.dumps(body))

    def depth(self, queue: str) -> int:
        """Messages in a queue, in flight ones too."""
        sqs = self.fleet.aws("sqs")
        url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(attributes[name]) for name in names)

    def dead_letters(self) -> list[Json]:
        """The messages of the dead-letter queue, with the reason each carries."""
        sqs = self.fleet.aws("sqs")
        url = sqs.get_queue_url(QueueName=DEAD)["QueueUrl"]
        answer = sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], VisibilityTimeout=0
        )
        return [
            {"body": message["Body"], "reason": message["MessageAttributes"]["reason"]["StringValue"]}
            for message in answer.get("Messages") or []
        ]


def budget(fleet: Fleet, allowed: int, name: str = "trainer") -> None:
    """A PodDisruptionBudget over the user's job that allows so many of its two pods to be unavailable."""
    fleet.kubectl.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name, "namespace": workload.NAMESPACE},
            "spec": {"maxUnavailable": allowed, "selector": {"matchLabels": {"app": workload.NAME}}},
        }
    )


def said(run: Run) -> str:
    """The report's headline."""
    return json.dumps((run.xcom("drain") or {}).get("headline"))
