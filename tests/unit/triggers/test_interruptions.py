"""The interruption trigger in Airflow's own shared stream, against the sandbox's SQS and API server."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.errors import Invalid
from gpu_fleet.core.interruptions.event import Payload, by_instance
from gpu_fleet.core.interruptions.marks import FirstAid, Mark
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.aws import forget_sessions
from gpu_fleet.hooks.kubernetes.first_aid import NodeFirstAid, patch_of
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.triggers import queue_stream
from gpu_fleet.triggers.interruptions import interruptions_asset
from tests.unit.sandboxed import SandboxCloud, define_karpenter, only_connections, sandbox_cloud
from tests.unit.triggers.interruption_world import (
    CONNECTION,
    REBALANCE,
    SPOT,
    STATE,
    Queue,
    add_claim,
    add_node,
    cordoned,
    event,
    mark,
    new_instance,
    node,
    running,
    stamp,
    trigger_of,
    until,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as found:
        forget_sessions()
        only_connections(environment, **{CONNECTION: found.connection})
        define_karpenter(KubernetesHook(access_of(found.kubeconfig)).client())
        yield found


@pytest.fixture
def queue(cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setattr(queue_stream, "SETTLE_S", 0.0)
    found = Queue(cloud)
    yield found
    found.close()


@pytest.fixture
def access(cloud: SandboxCloud) -> ClusterAccess:
    return access_of(cloud.kubeconfig)


@pytest.fixture
def kube(cloud: SandboxCloud, access: ClusterAccess) -> Iterator[KubeClient]:
    client = KubernetesHook(access).client()
    yield client
    cloud.settings.faults.clear()
    for kind in (NODE, NODE_CLAIM):
        for item in client.list(kind):
            client.patch(ObjectRef(kind, item["metadata"]["name"]), {"metadata": {"finalizers": None}})
            client.delete(ObjectRef(kind, item["metadata"]["name"]))


def access_of(path: Path) -> ClusterAccess:
    return ClusterAccess("kubeconfig", None, None, None, path=str(path))


async def test_a_notice_marks_and_cordons_the_node_and_becomes_one_event(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    add_claim(kube, "claim-1", instance)
    notice = event(SPOT, instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(notice)
        await until(lambda: bool(triggerer.cases))
        found = node(kube, "n1")
        assert cordoned(found)
        assert found["metadata"]["annotations"]["gpu-fleet.io/cordoned-by"] == f"interruption/{notice['id']}"
        written = mark(found)
        assert (written["kind"], written["instance"], written["event"]) == ("SpotInterruption", instance, notice["id"])
        assert written["deadline"] == written["at"] + 120
        (payload,) = triggerer.payloads
        (case,) = payload["notices"]
        assert payload["cluster"] == "demo"
        assert {key: case[key] for key in ("instance", "node", "nodeUid", "claim", "pool", "nodeGroup")} == {
            "instance": instance,
            "node": "n1",
            "nodeUid": found["metadata"]["uid"],
            "claim": "claim-1",
            "pool": "spot-a10g",
            "nodeGroup": "",
        }
        assert (case["marked"], case["cordoned"], case["problem"]) == (True, True, None)
        assert abs(case["sent"] - time.time()) < 10
        await until(lambda: queue.left() == 0)


async def test_ten_copies_write_once(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    notice = event(SPOT, instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(notice)
        await until(lambda: bool(triggerer.cases))
        version = node(kube, "n1")["metadata"]["resourceVersion"]
        queue.send(*[notice] * 10)
        await until(lambda: queue.left() == 0)
        assert len(triggerer.payloads) >= 2
        assert node(kube, "n1")["metadata"]["resourceVersion"] == version
        assert list(by_instance(map(Payload.from_json, triggerer.payloads))) == [instance]


async def test_out_of_order_the_most_urgent_wins(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    events = [event(REBALANCE, instance), event(SPOT, instance), event(STATE, instance, state="shutting-down")]
    async with running(trigger_of(access, queue.name)) as triggerer:
        for each in (events[2], events[0], events[1]):
            queue.send(each)
            await until(lambda: queue.left() == 0)
        assert mark(node(kube, "n1"))["kind"] == "InstanceTerminating"
        case = by_instance(map(Payload.from_json, triggerer.payloads))[instance]
        assert case.notice.kind == "InstanceTerminating"


async def test_a_rebalance_recommendation_is_marked_and_cordons_nothing(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(REBALANCE, instance))
        await until(lambda: bool(triggerer.cases))
        found = node(kube, "n1")
        assert mark(found)["kind"] == "RebalanceRecommendation"
        assert not cordoned(found)
        queue.send(event(SPOT, instance))
        await until(lambda: len(triggerer.cases) == 2)
        assert cordoned(node(kube, "n1"))


async def test_an_ignored_recommendation_leaves_no_trace(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    instance = new_instance()
    before = add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name, rebalance="ignore")) as triggerer:
        queue.send(event(REBALANCE, instance))
        await until(lambda: queue.left() == 0)
        assert triggerer.payloads == []
        assert node(kube, "n1")["metadata"] == before["metadata"]


async def test_the_nodes_of_others_are_never_touched(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    foreign, cpu, gpu, nobody = (new_instance() for _ in range(4))
    names = ["foreign", "cpu"]
    before = [
        add_node(kube, "foreign", foreign, pool="theirs"),
        add_node(kube, "cpu", cpu, pool=None, **{"eks.amazonaws.com/nodegroup": "gpus"}),
    ]
    present = {"eks.amazonaws.com/nodegroup": "gpus", "nvidia.com/gpu.present": "true"}
    add_node(kube, "gpu", gpu, pool=None, **present)
    add_node(kube, "other", new_instance(), pool=None, **present)
    async with running(trigger_of(access, queue.name, node_groups=["gpus"])) as triggerer:
        queue.send(*(event(SPOT, each) for each in (foreign, cpu, gpu, nobody)))
        await until(lambda: queue.left() == 0)
        assert [node(kube, name)["metadata"] for name in names] == [item["metadata"] for item in before]
        assert cordoned(node(kube, "gpu"))
        assert not cordoned(node(kube, "other"))
        (case,) = triggerer.cases
        assert (case["node"], case["pool"], case["nodeGroup"], case["claim"]) == ("gpu", "", "gpus", None)
        assert sum(payload["skipped"].get("unknown", 0) for payload in triggerer.payloads) == 3


async def test_an_instance_that_is_still_launching_is_known_by_its_node_claim(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    async with running(trigger_of(access, queue.name)) as triggerer:
        await asyncio.sleep(0.3)  # the cluster was looked at before the NodeClaim existed
        add_claim(kube, "claim-1", instance)
        queue.send(event(SPOT, instance))
        await until(lambda: bool(triggerer.cases))
        (case,) = triggerer.cases
        assert (case["node"], case["claim"], case["marked"], case["problem"]) == (None, "claim-1", False, None)
        add_node(kube, "n1", instance)
        queue.send(event(SPOT, instance))
        await until(lambda: len(triggerer.cases) == 2)
        assert cordoned(node(kube, "n1"))


@pytest.mark.parametrize(
    ("after_s", "emitted"), [(-30, False), (30, True)], ids=["removed before", "removed because of it"]
)
async def test_a_state_change_that_follows_an_ordinary_removal_is_no_interruption(
    queue: Queue, access: ClusterAccess, kube: KubeClient, after_s: int, emitted: bool
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
    kube.delete(ObjectRef(NODE, "n1"))
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(STATE, instance, at=time.time() - after_s, state="shutting-down"))
        await until(lambda: queue.left() == 0)
        assert bool(triggerer.cases) is emitted
        assert bool(mark(node(kube, "n1"))) is emitted


async def test_the_end_that_karpenter_gave_an_instance_does_not_hide_what_announced_it(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    """A triggerer that begins late reads both at once: what Karpenter drained must be reported and replaced."""
    instance = new_instance()
    add_node(kube, "n1", instance)
    kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
    kube.delete(ObjectRef(NODE, "n1"))
    now = time.time()
    queue.send(event(SPOT, instance, at=now - 30))
    queue.send(event(STATE, instance, at=now + 5, state="shutting-down"))
    async with running(trigger_of(access, queue.name)) as triggerer:
        await until(lambda: queue.left() == 0)
        cases = {case["kind"] for case in triggerer.cases}
        assert cases == {"SpotInterruption"}
        assert mark(node(kube, "n1"))["kind"] == "SpotInterruption"


async def test_a_removal_by_force_is_no_ordinary_one(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    """Karpenter ends a node so whose status checks fail, and nothing has announced it."""
    instance = new_instance()
    add_node(kube, "n1", instance)
    kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
    add_claim(kube, "c1", instance)
    now = time.time()
    deadline = {"karpenter.sh/nodeclaim-termination-timestamp": stamp(now - 1)}
    kube.patch(
        ObjectRef(NODE_CLAIM, "c1"),
        {"metadata": {"finalizers": ["karpenter.sh/termination"], "annotations": deadline}},
    )
    kube.delete(ObjectRef(NODE_CLAIM, "c1"))
    kube.delete(ObjectRef(NODE, "n1"))
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(STATE, instance, at=now + 30, state="shutting-down"))
        await until(lambda: queue.left() == 0)
        (case,) = triggerer.cases
        assert (case["kind"], case["node"]) == ("InstanceTerminating", "n1")


@pytest.mark.parametrize(("by", "emitted"), [(None, True), ("gpu_drain.demo/r", False)])
async def test_the_end_of_a_node_with_a_scheduled_change_is_told_unless_a_run_of_ours_drained_it(
    queue: Queue, access: ClusterAccess, kube: KubeClient, by: str | None, emitted: bool
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    notice = Notice(Kind.SCHEDULED, instance, time.time() - 60, time.time() + 86400)
    annotations = {"gpu-fleet.io/interruption": Mark(notice, time.time() - 60).text()}
    spec: dict[str, Any] = {}
    if by is not None:
        annotations["gpu-fleet.io/cordoned-by"], spec["unschedulable"] = by, True
    body = {"metadata": {"finalizers": ["karpenter.sh/termination"], "annotations": annotations}, "spec": spec}
    kube.patch(ObjectRef(NODE, "n1"), body)
    kube.delete(ObjectRef(NODE, "n1"))
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(STATE, instance, at=time.time() + 30, state="shutting-down"))
        await until(lambda: queue.left() == 0)
        assert bool(triggerer.cases) is emitted


async def test_a_cordon_of_others_stays_theirs_and_that_of_a_run_is_taken_over(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    theirs, ours = new_instance(), new_instance()
    add_node(kube, "theirs", theirs)
    add_node(kube, "ours", ours)
    kube.patch(ObjectRef(NODE, "theirs"), {"spec": {"unschedulable": True}})
    by_run = {"metadata": {"annotations": {"gpu-fleet.io/cordoned-by": "gpu_teardown.demo/x"}}}
    kube.patch(ObjectRef(NODE, "ours"), {**by_run, "spec": {"unschedulable": True}})
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(SPOT, theirs), event(SPOT, ours))
        await until(lambda: len(triggerer.cases) == 2)
    assert "gpu-fleet.io/cordoned-by" not in node(kube, "theirs")["metadata"]["annotations"]
    assert node(kube, "ours")["metadata"]["annotations"]["gpu-fleet.io/cordoned-by"].startswith("interruption/")
    assert all(mark(node(kube, name)) for name in ("theirs", "ours"))
    assert all(case["cordoned"] for case in triggerer.cases)


async def test_a_node_whose_name_another_instance_got_is_not_touched(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    first, second = new_instance(), new_instance()
    add_node(kube, "ip-10-0-0-1", first)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(REBALANCE, first))
        await until(lambda: bool(triggerer.cases))
        kube.delete(ObjectRef(NODE, "ip-10-0-0-1"))
        add_node(kube, "ip-10-0-0-1", second)
        queue.send(event(SPOT, first))
        await until(lambda: queue.left() == 0)
        assert len(triggerer.cases) == 1  # nothing is left of the first instance
        assert not cordoned(node(kube, "ip-10-0-0-1"))
        assert mark(node(kube, "ip-10-0-0-1")) == {}


@pytest.mark.parametrize("successor", ["the name of another instance", "nothing"])
async def test_a_node_that_goes_between_look_and_patch(
    queue: Queue, access: ClusterAccess, kube: KubeClient, monkeypatch: pytest.MonkeyPatch, successor: str
) -> None:
    first, second = new_instance(), new_instance()
    add_node(kube, "ip-10-0-0-1", first)
    give = NodeFirstAid.give
    tried: list[str] = []

    def replace_node() -> None:
        kube.delete(ObjectRef(NODE, "ip-10-0-0-1"))
        if successor != "nothing":
            add_node(kube, "ip-10-0-0-1", second)

    async def late(self: NodeFirstAid, found: dict[str, Any], aid: FirstAid) -> dict[str, Any]:
        if not tried:
            tried.append(found["metadata"]["uid"])
            await asyncio.to_thread(replace_node)
        return await give(self, found, aid)

    monkeypatch.setattr(NodeFirstAid, "give", late)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(SPOT, first))
        await until(lambda: queue.left() == 0)
        assert tried
        assert triggerer.cases == []
        if successor != "nothing":
            assert not cordoned(node(kube, "ip-10-0-0-1"))
            assert mark(node(kube, "ip-10-0-0-1")) == {}


async def test_a_node_that_others_change_all_the_time(
    queue: Queue, access: ClusterAccess, kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Karpenter taints it at the same moment: look again, and keep what the others wrote."""
    instance = new_instance()
    add_node(kube, "n1", instance)
    give = NodeFirstAid.give
    changes: list[int] = []

    async def late(self: NodeFirstAid, found: dict[str, Any], aid: FirstAid) -> dict[str, Any]:
        if len(changes) < 3:
            changes.append(1)
            body = {"metadata": {"labels": {f"change-{len(changes)}": "x"}}}
            await asyncio.to_thread(kube.patch, ObjectRef(NODE, "n1"), body)
        return await give(self, found, aid)

    monkeypatch.setattr(NodeFirstAid, "give", late)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(SPOT, instance))
        await until(lambda: bool(triggerer.cases))
    assert (triggerer.cases[0]["cordoned"], triggerer.cases[0]["problem"]) == (True, None)
    assert {f"change-{number}" for number in (1, 2, 3)} <= set(node(kube, "n1")["metadata"]["labels"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("not json", "NotJson"),
        ("[]", "NotAnEvent"),
        ('{"detail-type": "EC2 Spot Instance Interruption Warning"}', "NotAnEvent"),
        (json.dumps(event(SPOT, "no-instance")), "UnknownShape"),
    ],
)
async def test_what_cannot_be_read_goes_to_the_dead_letter_queue_with_the_reason(
    queue: Queue, access: ClusterAccess, kube: KubeClient, body: str, reason: str
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(body, event(SPOT, instance))
        await until(lambda: queue.left() == 0)
        assert cordoned(node(kube, "n1"))
        assert len(triggerer.payloads) == 1
    (letter,) = queue.dead_letters()
    assert (letter["body"], letter["reason"]) == (body, reason)
    assert letter["error"]


async def test_without_a_dead_letter_queue_the_unreadable_is_deleted(
    cloud: SandboxCloud, access: ClusterAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_stream, "SETTLE_S", 0.0)
    queue = Queue(cloud, dead_letters=False)
    async with running(trigger_of(access, queue.name)):
        queue.send("not json", event(STATE, new_instance(), state="running"))
        await until(lambda: queue.left() == 0)
    queue.close()


async def test_a_message_is_deleted_only_after_its_event_is_stored(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name), confirms=False) as triggerer:
        queue.send(event(SPOT, instance))
        await until(lambda: bool(triggerer.waiting))
        await asyncio.sleep(1.0)
        assert queue.left() == 1
        assert cordoned(node(kube, "n1"))
        triggerer.confirm()
        await until(lambda: queue.left() == 0)


async def test_what_was_not_stored_comes_back_to_the_next_triggerer(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    """Handed back when the first one stops, and not only after the visibility timeout."""
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name), confirms=False) as first:
        queue.send(event(SPOT, instance))
        await until(lambda: bool(first.cases))
    async with running(trigger_of(access, queue.name)) as second:
        await until(lambda: bool(second.cases), seconds=5)
        assert second.cases[0]["instance"] == instance
        await until(lambda: queue.left() == 0)


async def test_an_event_that_is_never_stored_ends_the_trigger_without_an_error(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    """Airflow starts it again; the message stays."""
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name), confirms=False, ack_timeout=0.5) as triggerer:
        queue.send(event(SPOT, instance))
        await until(lambda: triggerer.ended == [0])
        assert triggerer._tasks[0].exception() is None
        assert queue.left() == 1


async def test_two_triggerers_at_once(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    instances = [new_instance() for _ in range(30)]
    for place, instance in enumerate(instances):
        add_node(kube, f"n{place}", instance)
    bodies = [event(SPOT, instance) for instance in instances] * 2
    random.Random(7).shuffle(bodies)
    one, two = trigger_of(access, queue.name), trigger_of(access, queue.name)
    async with running(one) as first, running(two) as second:
        queue.send(*bodies)
        await until(lambda: queue.left() == 0)
    assert {case["instance"] for case in first.cases + second.cases} == set(instances)
    assert not any(case["problem"] for case in first.cases + second.cases)
    for place, instance in enumerate(instances):
        found = node(kube, f"n{place}")
        assert cordoned(found)
        assert mark(found)["instance"] == instance


async def test_two_clusters_on_one_stream(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    mine, other = new_instance(), new_instance()
    add_node(kube, "mine", mine)
    add_node(kube, "other", other, pool="other")
    triggers = [
        trigger_of(access, queue.name),
        trigger_of(access, queue.name, cluster="second", pools=["other"]),
    ]
    async with running(*triggers) as triggerer:
        queue.send(event(SPOT, mine), event(SPOT, other))
        await until(lambda: queue.left() == 0)
    assert {(p["cluster"], c["instance"]) for p in triggerer.payloads for c in p["notices"]} == {
        ("demo", mine),
        ("second", other),
    }


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_an_api_server_that_is_away_for_a_while(
    cloud: SandboxCloud, queue: Queue, access: ClusterAccess, kube: KubeClient, code: int
) -> None:
    """The event does not wait for it, and first aid is given as soon as it answers."""
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        await asyncio.sleep(0.3)
        cloud.settings.faults.set("request-faults", {"rules": [{"status": code, "resource": "nodes"}]})
        queue.send(event(SPOT, instance))
        await until(lambda: bool(triggerer.cases))
        assert triggerer.cases[0]["problem"]
        assert not triggerer.cases[0]["marked"]
        cloud.settings.faults.clear()
        await until(lambda: cordoned(node(kube, "n1")), seconds=8)
        assert len(triggerer.cases) == 1


async def test_a_short_failure_is_not_even_in_the_event(
    cloud: SandboxCloud, queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        await asyncio.sleep(0.3)
        rule = {"status": 500, "resource": "nodes", "count": 2}
        cloud.settings.faults.set("request-faults", {"rules": [rule]})
        queue.send(event(SPOT, instance))
        await until(lambda: bool(triggerer.cases))
        assert (triggerer.cases[0]["cordoned"], triggerer.cases[0]["problem"]) == (True, None)


async def test_whoever_may_not_write_nodes_says_so_in_the_event(
    cloud: SandboxCloud, queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    rule = {"status": 403, "verb": "patch", "resource": "nodes"}
    cloud.settings.faults.set("request-faults", {"rules": [rule]})
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(event(SPOT, instance))
        await until(lambda: bool(triggerer.cases))
    (case,) = triggerer.cases
    assert (case["node"], case["marked"]) == ("n1", False)
    assert case["problem"].startswith("Forbidden")


async def test_a_storm_makes_few_events(queue: Queue, access: ClusterAccess, kube: KubeClient) -> None:
    instances = [new_instance() for _ in range(100)]
    for place, instance in enumerate(instances):
        add_node(kube, f"n{place}", instance)
    async with running(trigger_of(access, queue.name)) as triggerer:
        queue.send(*(event(SPOT, instance) for instance in instances))
        await until(lambda: len(triggerer.cases) == 100, seconds=30)
        assert len(triggerer.payloads) <= 30
        assert all(cordoned(item) for item in kube.list(NODE))


async def test_nothing_is_left_of_a_trigger_that_was_stopped(queue: Queue, access: ClusterAccess) -> None:
    """The long poll of 20 s is not waited for."""
    async with running(trigger_of(access, queue.name)):
        await asyncio.sleep(0.5)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    assert {task.get_name() for task in asyncio.all_tasks()} == {asyncio.current_task().get_name()}  # type: ignore[union-attr]
    waiting = [each for each in threading.enumerate() if each.name.startswith("gpu-fleet-queue")]
    assert all(each.daemon for each in waiting)


async def test_a_message_that_comes_to_a_poll_that_nobody_waits_for_is_handed_back(
    queue: Queue, access: ClusterAccess, kube: KubeClient
) -> None:
    instance = new_instance()
    add_node(kube, "n1", instance)
    async with running(trigger_of(access, queue.name)):
        await asyncio.sleep(0.5)  # it is in its long poll
    queue.send(event(SPOT, instance))
    async with running(trigger_of(access, queue.name)) as second:
        await until(lambda: bool(second.cases), seconds=5)


def test_arguments_survive_airflows_database() -> None:
    """Else Airflow would see another trigger at each parse, and start it anew (``add_asset_trigger_references``)."""
    from airflow.models.trigger import Trigger
    from airflow.serialization.encoders import encode_trigger
    from airflow.triggers.base import BaseEventTrigger

    made = ClusterAccess("eks", "aws_demo", "us-west-2", "demo-gpu")
    original = trigger_of(made, "q", node_groups=["a"])
    encoded = encode_trigger(original)
    stored = Trigger(classpath=encoded["classpath"], kwargs=encoded["kwargs"])
    assert BaseEventTrigger.hash(stored.classpath, stored.kwargs) == BaseEventTrigger.hash(
        encoded["classpath"], encoded["kwargs"]
    )
    path, arguments = original.serialize()
    again: Any = type(original)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
    assert again.shared_stream_key() == original.shared_stream_key()


@pytest.mark.parametrize("queue_name", [None, "demo-gpu-fleet"])
def test_the_asset_of_a_cluster_file(queue_name: str | None) -> None:
    from airflow.serialization.encoders import encode_asset_like

    text = (ROOT / "include" / "clusters" / "demo.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    document["interruptions"] = {"queue": queue_name, "nodeGroups": ["z", "a"]}
    spec = ClusterSpec.model_validate(document)
    asset = interruptions_asset(spec)
    if queue_name is None:
        assert asset is None
        return
    assert asset is not None
    assert (asset.name, asset.uri) == ("gpu-fleet://demo/interruptions", "gpu-fleet://demo/interruptions")
    (watcher,) = asset.watchers
    assert watcher.trigger.serialize()[1]["pools"] == sorted(pool.name for pool in spec.node_pools)
    assert watcher.trigger.serialize()[1]["node_groups"] == ["a", "z"]
    assert watcher.trigger.serialize()[1]["handler"] == "karpenter"
    again = interruptions_asset(ClusterSpec.model_validate(document))
    assert again is not None
    assert json.dumps(encode_asset_like(asset)) == json.dumps(encode_asset_like(again))


def test_a_dag_file_with_the_asset_loads_no_client() -> None:
    code = """
import sys
import airflow.sdk, airflow.triggers.base
from gpu_fleet.triggers.interruptions import InterruptionTrigger, interruptions_asset
print(*sorted({"boto3", "botocore", "aiohttp", "urllib3.connectionpool"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr[-2000:]


# --- triggers only read, with one exception ---------------------------------------------------------------------------
WRITES = {"apply", "create", "delete", "evict", "give", "patch", "put", "raw", "replace", "update"}
#: (module, call): of first aid, of the queue's own messages, and of dictionaries and dataclasses.
ALLOWED = {("first_aid", "give"), ("queue_stream", "delete")}


def test_triggers_only_read_but_for_first_aid() -> None:
    """First aid is the one write, and it is in one place; see the decisions in docs/architecture.md."""
    package = ROOT / "plugins" / "gpu_fleet"
    found = set()
    for path in sorted((package / "triggers").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in WRITES:
                found.add((path.stem, call.func.attr))
    assert found == ALLOWED
    writers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "merge=" in path.read_text(encoding="utf-8") and "_call(" in path.read_text(encoding="utf-8")
    }
    assert writers == {"hooks/kubernetes/first_aid.py"}


@pytest.mark.parametrize(
    ("metadata", "annotations"),
    [
        ({"name": "n", "uid": "u"}, {"gpu-fleet.io/interruption": "{}"}),
        ({"name": "n", "uid": "u", "resourceVersion": "7"}, {"karpenter.sh/do-not-disrupt": "true"}),
    ],
    ids=["of no version", "of others"],
)
def test_what_first_aid_refuses_to_write(metadata: dict[str, str], annotations: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="no first aid"):
        patch_of({"metadata": metadata}, FirstAid(annotations, cordon=True))
