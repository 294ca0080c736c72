"""A queue, nodes, and Airflow's own stream manager: what the interruption trigger runs in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
from airflow.triggers.shared_stream import SharedStreamManager

from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient
from gpu_fleet.triggers.interruptions import InterruptionTrigger
from tests.unit.sandboxed import SandboxCloud

CONNECTION = "aws_interruptions"
REGION = "us-west-2"
POOL = "spot-a10g"
SPOT = "EC2 Spot Instance Interruption Warning"
REBALANCE = "EC2 Instance Rebalance Recommendation"
STATE = "EC2 Instance State-change Notification"

_numbers = itertools.count(1)


def new_instance() -> str:
    return f"i-{next(_numbers):017x}"


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def event(kind: str, instance: str, *, at: float | None = None, **detail: Any) -> dict[str, Any]:
    """As EventBridge sends it (EC2 User Guide, the pages of the three kinds)."""
    more = {"instance-action": "terminate"} if kind == SPOT else {}
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": kind,
        "source": "aws.ec2",
        "account": "123456789012",
        "time": stamp(time.time() if at is None else at),
        "region": REGION,
        "resources": [f"arn:aws:ec2:{REGION}:123456789012:instance/{instance}"],
        "detail": {"instance-id": instance, **more, **detail},
    }


class Queue:
    """A queue with a dead-letter queue, in the sandbox's AWS."""

    def __init__(self, cloud: SandboxCloud, *, dead_letters: bool = True) -> None:
        made = json.loads(cloud.connection)
        self.sqs = boto3.client(
            "sqs",
            region_name=REGION,
            endpoint_url=cloud.endpoint_url,
            aws_access_key_id=made["login"],
            aws_secret_access_key=made["password"],
        )
        self.name = f"q-{uuid.uuid4().hex[:12]}"
        attributes = {}
        self.dead = ""
        if dead_letters:
            self.dead = self.sqs.create_queue(QueueName=f"{self.name}-dlq")["QueueUrl"]
            arn = self.sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=["QueueArn"])
            redrive = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": "20"}
            attributes = {"RedrivePolicy": json.dumps(redrive)}
        self.url = self.sqs.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"]

    def send(self, *bodies: dict[str, Any] | str) -> None:
        for begin in range(0, len(bodies), 10):
            entries = [
                {"Id": str(place), "MessageBody": body if isinstance(body, str) else json.dumps(body)}
                for place, body in enumerate(bodies[begin : begin + 10])
            ]
            self.sqs.send_message_batch(QueueUrl=self.url, Entries=entries)

    def left(self) -> int:
        """Messages that are not deleted, visible or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def dead_letters(self) -> list[dict[str, str]]:
        answer = self.sqs.receive_message(
            QueueUrl=self.dead, MaxNumberOfMessages=10, MessageAttributeNames=["All"], VisibilityTimeout=0
        )
        return [
            {"body": each["Body"], **{k: v["StringValue"] for k, v in (each.get("MessageAttributes") or {}).items()}}
            for each in answer.get("Messages") or []
        ]

    def close(self) -> None:
        self.sqs.close()


def add_node(kube: KubeClient, name: str, instance: str, *, pool: str | None = POOL, **labels: str) -> dict[str, Any]:
    own = {} if pool is None else {"karpenter.sh/nodepool": pool}
    return kube.create(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **own, **labels}},
            "spec": {"providerID": f"aws:///us-west-2a/{instance}"},
        }
    )


def add_claim(kube: KubeClient, name: str, instance: str, *, pool: str = POOL) -> None:
    node_class = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": pool}
    kube.create(
        {
            "apiVersion": "karpenter.sh/v1",
            "kind": "NodeClaim",
            "metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool}},
            "spec": {"nodeClassRef": node_class, "requirements": []},
        }
    )
    status = {"status": {"providerID": f"aws:///us-west-2a/{instance}"}}
    kube.patch(ObjectRef(NODE_CLAIM, name), status, subresource="status")


def node(kube: KubeClient, name: str) -> dict[str, Any]:
    found = kube.get(ObjectRef(NODE, name))
    assert found is not None
    return found


def mark(item: dict[str, Any]) -> dict[str, Any]:
    text = (item["metadata"].get("annotations") or {}).get("gpu-fleet.io/interruption")
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def cordoned(item: dict[str, Any]) -> bool:
    return bool(item["spec"].get("unschedulable"))


def trigger_of(access: ClusterAccess, queue: str, cluster: str = "demo", **options: Any) -> InterruptionTrigger:
    values: dict[str, Any] = {
        "cluster": cluster,
        "access": access.to_json(),
        "connection": CONNECTION,
        "region": REGION,
        "queue": queue,
        "handler": "gpu-fleet",
        "rebalance": "signal",
        "pools": [POOL],
    }
    return InterruptionTrigger(**(values | options))


@dataclass
class Triggerer:
    """Runs triggers as Airflow's does (Airflow 3.3.2 airflow/jobs/triggerer_job_runner.py, ``run_trigger``).

    :ivar confirms: whether events are stored as soon as they are sent.
    :ivar payloads: of the events of every trigger, in order.
    """

    confirms: bool = True
    ack_timeout: float = 300.0
    payloads: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manager = SharedStreamManager(ack_timeout=self.ack_timeout)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *triggers: InterruptionTrigger) -> None:
        for trigger in triggers:
            self._tasks.append(asyncio.create_task(self._run(len(self._tasks), trigger)))

    async def _run(self, number: int, trigger: InterruptionTrigger) -> None:
        key = trigger.shared_stream_key()
        stream = self.manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for sent in trigger.filter_shared_stream(stream):
                seq = self.manager.bind_pending_event(trigger_id=number, key=key)
                assert json.loads(json.dumps(sent.payload)) == sent.payload
                self.payloads.append(sent.payload)
                if seq is not None:
                    self.waiting.append(seq)
                if self.confirms:
                    self.confirm()
        finally:
            await self.manager.unsubscribe(number, key)
            await trigger.cleanup()
            self.ended.append(number)

    def confirm(self) -> None:
        """All events so far are in the database."""
        seqs, self.waiting = self.waiting, []
        self.manager.confirm_persisted(seqs)

    @property
    def cases(self) -> list[dict[str, Any]]:
        return [case for payload in self.payloads for case in payload["notices"]]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.manager.stop_all()


@contextlib.asynccontextmanager
async def running(*triggers: InterruptionTrigger, **options: Any) -> AsyncIterator[Triggerer]:
    triggerer = Triggerer(**options)
    triggerer.start(*triggers)
    try:
        yield triggerer
    finally:
        await triggerer.stop()


async def until(condition: Callable[[], bool], seconds: float = 10.0, what: str = "") -> float:
    """Waits for the condition; how long that took."""
    begun = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - begun < seconds, what or "it never came"
        await asyncio.sleep(0.02)
    return time.monotonic() - begun
