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
        # Whoever builds the pools needs no queue: so the file is changed once they stand.
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
        """The first new run of the drain, at its end."""
        run_id = str(until("a run of the drain", self.new_runs, timeout)[-1])
        self.fleet.runs.append((DRAIN, run_id))
        return self.fleet.follow(DRAIN, run_id, timeout=timeout)

    def all_drained(self, timeout: float = 180) -> list[Run]:
        """Every new run of the drain at its end, once no message is left in the queue."""
        until("the queue to be empty", lambda: self.depth(QUEUE) == 0, timeout)
        time.sleep(2)
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
        body = {
            "version": "0",
            "id": "0",
            "detail-type": "EC2 Instance State-change Notification",
            "source": "aws.ec2",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "detail": {"instance-id": "i-00000000000000000", "state": "running"},
        }
        sqs = self.fleet.aws("sqs")
        sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"], MessageBody=json.dumps(body))
        until("the trigger to have read the queue", lambda: self.depth(QUEUE) == 0)

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


def budget(fleet: Fleet, allowed: int) -> None:
    """A PodDisruptionBudget over the user's job that allows so many of its two pods to be unavailable."""
    fleet.kubectl.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "trainer", "namespace": workload.NAMESPACE},
            "spec": {"maxUnavailable": allowed, "selector": {"matchLabels": {"app": workload.NAME}}},
        }
    )


def said(run: Run) -> str:
    """The report's headline."""
    return json.dumps((run.xcom("drain") or {}).get("headline"))
