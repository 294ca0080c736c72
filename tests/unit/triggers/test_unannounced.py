"""Instances whose end is read when the cluster has forgotten them: ours or not, and ended by whom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from gpu_fleet.core.errors import Forbidden
from gpu_fleet.core.kubernetes.kinds import EVENT, NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.triggers import queue_stream
from gpu_fleet.triggers.unannounced import UnannouncedEnds
from tests.unit.sandboxed import SandboxCloud
from tests.unit.triggers.interruption_world import (
    POOL,
    REGION,
    STATE,
    Queue,
    add_claim,
    add_node,
    event,
    new_instance,
    running,
    trigger_of,
    until,
)
from tests.unit.triggers.test_interruptions import cloud

__all__ = ["cloud"]
CLUSTER = "demo-gpu"


@pytest.fixture
def access(cloud: SandboxCloud) -> ClusterAccess:
    return ClusterAccess("kubeconfig", None, None, CLUSTER, path=str(cloud.kubeconfig))


@pytest.fixture
def queue(cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setattr(queue_stream, "SETTLE_S", 0.0)
    found = Queue(cloud)
    yield found
    found.close()


@pytest.fixture
def kube(access: ClusterAccess) -> Iterator[KubeClient]:
    client = KubernetesHook(access).client()
    yield client
    for item in client.list(EVENT, "default"):
        client.delete(ObjectRef(EVENT, item["metadata"]["name"], "default"))
    for kind in (NODE, NODE_CLAIM):
        for item in client.list(kind):
            client.patch(ObjectRef(kind, item["metadata"]["name"]), {"metadata": {"finalizers": None}})
            client.delete(ObjectRef(kind, item["metadata"]["name"]))


def shown(instance: str, reason: str, claim: str = "c1", pool: str = POOL) -> dict[str, Any]:
    """A terminated instance as EC2 shows it."""
    tags = {"karpenter.sh/nodepool": pool, "karpenter.sh/nodeclaim": claim, f"kubernetes.io/cluster/{CLUSTER}": "owned"}
    return {
        "InstanceId": instance,
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        "StateReason": {"Code": reason, "Message": reason},
    }


def interrupted(kube: KubeClient, claim: str, reason: str = "TerminatingOnInterruption") -> None:
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{claim}.{time.time_ns()}", "namespace": "default"},
            "involvedObject": {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": claim},
            "reason": reason,
            "type": "Normal",
        }
    )


@pytest.mark.parametrize(
    ("reason", "events", "lost"),
    [
        ("Server.SpotInstanceTermination", [], True),
        ("Server.InternalError", [], True),
        ("Client.UserInitiatedShutdown", [], False),
        ("Client.UserInitiatedShutdown", ["DisruptionTerminating"], False),
        ("Client.UserInitiatedShutdown", ["TerminatingOnInterruption"], True),
        ("Client.InstanceInitiatedShutdown", [], False),
    ],
)
async def test_who_ended_it_decides(
    queue: Queue,
    access: ClusterAccess,
    kube: KubeClient,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    events: list[str],
    lost: bool,
) -> None:
    instance = new_instance()
    claim = f"claim-{instance[-6:]}"
    monkeypatch.setattr(UnannouncedEnds, "_describe", lambda _, asked: [shown(each, reason, claim) for each in asked])
    for each in events:
        interrupted(kube, claim, each)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(STATE, instance, state="terminated"))
        await until(lambda: queue.left() == 0)
        cases = list(triggerer.cases)
        # A copy, and the state that follows, are not asked about again, and become no second case.
        queue.send(event(STATE, instance, state="terminated"))
        await until(lambda: queue.left() == 0)
    assert bool(cases) is lost
    if lost:
        (case,) = cases
        assert (case["node"], case["claim"], case["pool"], case["unannounced"]) == (None, claim, POOL, True)
        assert triggerer.cases[0] == case


@pytest.mark.parametrize(("reason", "told"), [("TerminatingOnInterruption", True), ("DisruptionTerminating", False)])
async def test_a_node_that_is_leaving_is_told_if_karpenter_removes_it_because_of_an_interruption(
    queue: Queue, access: ClusterAccess, kube: KubeClient, reason: str, told: bool
) -> None:
    """Karpenter has seen a scheduled event in EC2, and the message of it has not come yet."""
    instance = new_instance()
    claim = f"claim-{instance[-6:]}"
    add_node(kube, "n1", instance)
    add_claim(kube, claim, instance)
    for ref in (ObjectRef(NODE, "n1"), ObjectRef(NODE_CLAIM, claim)):
        kube.patch(ref, {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
        kube.delete(ref)
    interrupted(kube, claim, reason)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(STATE, instance, at=time.time() + 30, state="shutting-down"))
        await until(lambda: queue.left() == 0)
        queue.send(event(STATE, instance, at=time.time() + 40, state="terminated"))
        await until(lambda: queue.left() == 0)
    assert [(case["node"], case["unannounced"]) for case in triggerer.cases] == ([("n1", True)] if told else [])


async def test_ec2_is_asked_for_instances_of_our_pools_alone(
    cloud: SandboxCloud, queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    made = json.loads(cloud.connection)
    ec2 = boto3.client(
        "ec2", region_name=REGION, endpoint_url=cloud.endpoint_url, aws_access_key_id=made["login"],
        aws_secret_access_key=made["password"],
    )  # fmt: skip
    image = ec2.describe_images(Filters=[{"Name": "name", "Values": ["*nvidia-1.35*"]}])["Images"][0]["ImageId"]

    def launched(pool: str, cluster: str, claim: str) -> str:
        tags = {"karpenter.sh/nodepool": pool, "karpenter.sh/nodeclaim": claim}
        tags[f"kubernetes.io/cluster/{cluster}"] = "owned"
        specification = {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}
        answer = ec2.run_instances(
            ImageId=image, InstanceType="g5.xlarge", MinCount=1, MaxCount=1, TagSpecifications=[specification]
        )
        return str(answer["Instances"][0]["InstanceId"])

    ours = launched(POOL, CLUSTER, "ours")
    theirs = [launched("of-others", CLUSTER, "theirs"), launched(POOL, "another-cluster", "elsewhere")]
    ec2.terminate_instances(InstanceIds=[ours, *theirs])
    for claim in ("ours", "theirs", "elsewhere"):
        interrupted(kube, claim)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(*(event(STATE, each, state="terminated") for each in (ours, *theirs, new_instance())))
        await until(lambda: queue.left() == 0)
    ec2.close()
    assert [case["instance"] for case in triggerer.cases] == [ours]
    assert triggerer.payloads[0]["skipped"] == {"unknown": 3}


async def test_an_ec2_that_may_not_be_asked_hides_nothing_else(
    queue: Queue, access: ClusterAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise Forbidden("no")

    monkeypatch.setattr(UnannouncedEnds, "_describe", refuse)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(STATE, new_instance(), state="terminated"))
        await until(lambda: queue.left() == 0)
        assert triggerer.cases == []
        assert triggerer.ended == []
