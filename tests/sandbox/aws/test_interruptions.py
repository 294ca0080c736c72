"""Interruptions from the call to the queues and to the end of the instance; read with boto3, as the package does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import boto3
import pytest
import pytest_asyncio

from sandbox.aws import eventrules
from sandbox.aws.account import RULES
from sandbox.aws.client import Aws
from sandbox.aws.eventbridge import EventBridge
from sandbox.aws.interruptions import Interruptions, UnknownInstance, Wanted
from sandbox.aws.notices import Action, Kind, Malformed
from sandbox.aws.testing import RunningCloud
from sandbox.settings import Clock

pytestmark = pytest.mark.asyncio(loop_scope="module")
Object = dict[str, Any]
QUEUES = ("demo-gpu", "demo-gpu-gpu-fleet")


@dataclass
class World:
    cloud: RunningCloud
    interruptions: Interruptions
    events: EventBridge
    sqs: Any

    @property
    def aws(self) -> Aws:
        return self.cloud.aws

    async def call(self, operation: str, queue: str, **params: Any) -> Object:
        """A call of boto3; in a thread, because the shim that answers it lives in this one."""
        url = await asyncio.to_thread(self.sqs.get_queue_url, QueueName=queue)
        answer: Object = await asyncio.to_thread(getattr(self.sqs, operation), QueueUrl=url["QueueUrl"], **params)
        return answer

    async def bodies(self, queue: str = QUEUES[1]) -> list[str]:
        """All messages of a queue, which are deleted."""
        found: list[str] = []
        while True:
            answer = await self.call("receive_message", queue, MaxNumberOfMessages=10)
            if not answer.get("Messages"):
                return found
            found += [each["Body"] for each in answer["Messages"]]
            entries = [{"Id": each["MessageId"], "ReceiptHandle": each["ReceiptHandle"]} for each in answer["Messages"]]
            await self.call("delete_message_batch", queue, Entries=entries)

    async def read(self, queue: str = QUEUES[1]) -> list[Object]:
        return [json.loads(each) for each in await self.bodies(queue)]

    async def arrived(self, count: int) -> list[Object]:
        """So many messages, once they are there."""
        found: list[Object] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                found += await self.read()
        return found

    async def launch(self, *, spot: bool = True, zone: int = 0, tags: dict[str, str] | None = None) -> str:
        """A running instance of the cluster."""
        shown = {"kubernetes.io/cluster/demo-gpu": "owned"} | (tags or {})
        images = await self.aws.call("ec2", "describe_images", Filters=[{"Name": "name", "Values": ["*nvidia-1.35*"]}])
        market: Object = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
        answer = await self.aws.call(
            "ec2",
            "run_instances",
            ImageId=images["Images"][0]["ImageId"],
            InstanceType="g5.xlarge",
            MinCount=1,
            MaxCount=1,
            SubnetId=self.cloud.account.subnet_ids[zone],
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in shown.items()]}
            ],
            **market,
        )
        instance = str(answer["Instances"][0]["InstanceId"])
        await self.state(instance, "running")
        return instance

    async def state(self, instance: str, wanted: str) -> float:
        """Wait for it; the moment at which it was seen."""
        async with asyncio.timeout(20):
            while True:
                answer = await self.aws.call("ec2", "describe_instances", InstanceIds=[instance])
                if answer["Reservations"][0]["Instances"][0]["State"]["Name"] == wanted:
                    return time.time()
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(loop_scope="module")
async def world(cloud: RunningCloud) -> AsyncIterator[World]:
    clock = Clock(cloud.settings.speed)
    events = EventBridge(cloud.settings, clock, cloud.moto)
    interruptions = Interruptions(cloud.settings, clock, cloud.aws, cloud.moto, events, list(QUEUES))
    session = boto3.session.Session(
        cloud.account.access_key_id, cloud.account.secret_access_key, region_name=cloud.settings.region
    )
    made = World(cloud, interruptions, events, session.client("sqs", endpoint_url=cloud.shim.url))
    for queue in QUEUES:
        await made.bodies(queue)
    yield made
    cloud.settings.faults.clear()
    await interruptions.close()
    await events.close()
    for queue in QUEUES:
        await made.bodies(queue)


# --- the account ---


async def test_the_account_has_five_rules_with_two_targets_each(world: World) -> None:
    call = world.aws.call
    rules = (await call("events", "list_rules"))["Rules"]
    patterns = [json.loads(rule["EventPattern"]) for rule in rules]
    assert sorted((each["source"][0], each["detail-type"][0]) for each in patterns) == sorted(RULES.values())
    assert {rule["State"] for rule in rules} == {"ENABLED"}
    for rule in rules:
        targets = (await call("events", "list_targets_by_rule", Rule=rule["Name"]))["Targets"]
        assert [each["Arn"].rpartition(":")[2] for each in targets] == list(QUEUES)
    arn = f"arn:aws:sqs:us-west-2:123456789012:{QUEUES[1]}"
    named = (await call("events", "list_rule_names_by_target", TargetArn=arn))["RuleNames"]
    assert sorted(named) == sorted(rule["Name"] for rule in rules)


async def test_queues_are_encrypted_open_to_eventbridge_and_closed_to_plain_http(world: World) -> None:
    for queue, sent_to in ((QUEUES[0], True), (QUEUES[1], True), ("demo-gpu-gpu-fleet-dlq", False)):
        answer = (await world.call("get_queue_attributes", queue, AttributeNames=["All"]))["Attributes"]
        assert answer["SqsManagedSseEnabled"] == "true"
        policy = json.loads(answer["Policy"])
        denied = [each for each in policy["Statement"] if each["Effect"] == "Deny"]
        assert [each["Condition"] for each in denied] == [{"Bool": {"aws:SecureTransport": "false"}}]
        assert eventrules.may_send(policy, "arn:rule", "123456789012") is sent_to
        if queue == QUEUES[1]:
            redrive = json.loads(answer["RedrivePolicy"])
            assert redrive["deadLetterTargetArn"].endswith(":demo-gpu-gpu-fleet-dlq")


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ({}, True),
        ({"Principal": {"Service": "sns.amazonaws.com"}}, False),
        ({"Principal": "*"}, True),
        ({"Action": "SQS:*"}, True),
        ({"Action": ["sqs:ReceiveMessage"]}, False),
        ({"Condition": {"ArnEquals": {"aws:SourceArn": "arn:rule"}}}, True),
        ({"Condition": {"ArnEquals": {"aws:SourceArn": "arn:other"}}}, False),
        ({"Condition": {"StringEquals": {"aws:SourceAccount": ["1", "2"]}}}, True),
        ({"Condition": {"StringEquals": {"aws:SourceAccount": "3"}}}, False),
        ({"Effect": "Deny"}, False),
    ],
)
async def test_a_queue_s_policy_decides_who_may_send(statement: Object, allowed: bool) -> None:
    first = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage"}
    assert eventrules.may_send({"Statement": [{**first, **statement}]}, "arn:rule", "1") is allowed
    assert not eventrules.may_send({}, "arn:rule", "1")


async def test_nobody_can_pretend_to_be_an_aws_service(world: World) -> None:
    """EventBridge API reference, PutEventsResultEntry: NotAuthorizedForSourceException."""
    detail = json.dumps({"instance-id": "i-1", "state": "stopped"})
    entries = [
        {"Source": source, "DetailType": "EC2 Instance State-change Notification", "Detail": detail}
        for source in ("aws.ec2", "my.app")
    ]
    answer = await world.aws.call("events", "put_events", Entries=entries)
    assert [each.get("ErrorCode") for each in answer["Entries"]] == ["NotAuthorizedForSourceException", None]
    assert await world.read() == []


# --- whom and what ---


async def test_an_interruption_reaches_both_queues_and_ends_the_instance_at_its_deadline(world: World) -> None:
    victim = await world.launch()
    began = time.time()
    done = await world.interruptions.interrupt(Wanted(instances=(victim,)))
    for queue in QUEUES:
        assert await world.read(queue) == done["events"]
    assert done["detail"] == {"instance-id": victim, "instance-action": "terminate"}
    # 120 s, fifty times as fast.
    assert done["ends"][victim] == pytest.approx(began + 2.4, abs=1.5)
    assert await world.state(victim, "shutting-down") >= done["ends"][victim]
    described = await world.aws.call("ec2", "describe_instances", InstanceIds=[victim])
    reason = described["Reservations"][0]["Instances"][0]["StateReason"]
    assert reason["Code"] == "Server.SpotInstanceTermination"
    with pytest.raises(UnknownInstance, match=f"{victim} is (shutting-down|terminated)"):
        await world.interruptions.interrupt(Wanted(instances=(victim,)))
    with pytest.raises(UnknownInstance, match="there is no instance i-0123456789abcdef0"):
        await world.interruptions.interrupt(Wanted(instances=("i-0123456789abcdef0",)))
    last = json.loads(world.cloud.settings.audit.since(0).entries[-1])
    assert (last["eventName"], last["serviceEventDetails"]) == ("BidEvictedEvent", {"instanceIdSet": [victim]})


async def test_a_notice_has_the_length_that_it_is_given(world: World) -> None:
    victim = await world.launch()
    done = await world.interruptions.interrupt(Wanted(instances=(victim,), notice=0.3))
    assert await world.state(victim, "shutting-down") - done["ends"][victim] < 2.0


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        (Wanted(action=Action.STOP, notice=0.1), "stopped"),
        (Wanted(action=Action.HIBERNATE), "stopped"),
        (Wanted(kind=Kind.RESERVATION, notice=0.1), "terminated"),
        (Wanted(kind=Kind.SCHEDULED, starts_in=0.1), "stopped"),
        (Wanted(kind=Kind.STATE, state="stopping"), "stopped"),
        (Wanted(kind=Kind.STATE, state="terminated"), "terminated"),
        (Wanted(kind=Kind.REBALANCE), "running"),
        (Wanted(kind=Kind.SCHEDULED), "running"),
        (Wanted(silent=True, notice=0.0), "running"),
    ],
)
async def test_what_becomes_of_an_instance(world: World, wanted: Wanted, state: str) -> None:
    victim = await world.launch()
    await world.interruptions.interrupt(replace(wanted, instances=(victim,)))
    if state == "running":
        await asyncio.sleep(0.5)
    await world.state(victim, state)


async def test_instances_are_chosen_by_pool_zone_and_market(world: World) -> None:
    pool, group = {"karpenter.sh/nodepool": "chosen"}, {"eks:nodegroup-name": "team"}
    first, second = await world.launch(zone=0, tags=pool), await world.launch(zone=1, tags=pool)
    demand, grouped = await world.launch(spot=False, zone=1, tags=pool), await world.launch(spot=False, tags=group)
    for wanted, hit in (
        (Wanted(pool="chosen"), {first, second, demand}),
        (Wanted(pool="chosen", spot=True), {first, second}),
        (Wanted(pool="chosen", zone="us-west-2b"), {second, demand}),
        (Wanted(pool="team"), {grouped}),
    ):
        done = await world.interruptions.interrupt(replace(wanted, silent=True))
        assert set(done["instances"]) == hit
        assert {each["detail"]["instance-id"] for each in await world.read()} == hit
    with pytest.raises(UnknownInstance, match="0 running instances of the cluster are meant"):
        await world.interruptions.interrupt(Wanted(pool="nobody's"))


async def test_a_message_is_delivered_a_hundred_times_with_one_id(world: World) -> None:
    victim = await world.launch()
    done = await world.interruptions.interrupt(Wanted(instances=(victim,), silent=True, times=100))
    assert done["messages"] == 200
    assert {each["id"] for each in await world.read()} == {done["id"]}


async def test_a_storm_hits_random_spot_instances_the_same_for_the_same_seed(world: World) -> None:
    made = {await world.launch(tags={"karpenter.sh/nodepool": "stormy"}) for _ in range(4)}
    await world.launch(spot=False, tags={"karpenter.sh/nodepool": "stormy"})
    wanted = Wanted(pool="stormy", storm=2, silent=True)
    hits = []
    for _ in range(2):
        clock = Clock(world.cloud.settings.speed)
        fresh = Interruptions(world.cloud.settings, clock, world.aws, world.cloud.moto, world.events, [])
        hits.append((await fresh.interrupt(wanted))["instances"])
    assert hits[0] == hits[1]
    assert len(set(hits[0])) == 2
    assert set(hits[0]) < made
    with pytest.raises(UnknownInstance, match="4 running instances of the cluster are meant"):
        await world.interruptions.interrupt(Wanted(pool="stormy", storm=5))
    await world.bodies()
    # Within a time: each one at a moment of its own, and none twice.
    await world.interruptions.interrupt(Wanted(pool="stormy", storm=4, within=50.0, silent=True))
    async with asyncio.timeout(10):
        while len(world.interruptions.announced) < 4:  # noqa: ASYNC110 - a list
            await asyncio.sleep(0.05)
    assert {each["instances"][0] for each in world.interruptions.announced} == made
    assert len({each["time"] for each in world.interruptions.announced}) == 4


async def test_one_event_of_aws_health_names_several_instances(world: World) -> None:
    victims = (await world.launch(spot=False), await world.launch(spot=False))
    await world.interruptions.interrupt(Wanted(kind=Kind.SCHEDULED, instances=victims))
    [event] = await world.read()
    assert tuple(each["entityValue"] for each in event["detail"]["affectedEntities"]) == victims


async def test_messages_about_nobody_s_instances_and_messages_that_are_none(world: World) -> None:
    done = await world.interruptions.interrupt(Wanted(foreign=True, kind=Kind.SPOT))
    [event] = await world.read()
    stranger = event["detail"]["instance-id"]
    assert done["instances"] == [stranger]
    found = await world.aws.paginate("ec2", "describe_instances", "Reservations[].Instances[].InstanceId")
    assert stranger not in found
    for variant in Malformed:
        done = await world.interruptions.interrupt(Wanted(malformed=variant, times=2))
        assert done["messages"] == 4
        assert len(await world.bodies(QUEUES[0])) >= 2
        bodies = await world.bodies()
        assert len(bodies) == 2
        assert bodies[0] == bodies[1]


# --- changes of state ---


async def test_every_change_of_state_becomes_an_event_whoever_caused_it(world: World) -> None:
    following = asyncio.create_task(world.events.follow())
    try:
        await asyncio.sleep(0.2)
        victim = await world.launch()
        await world.aws.call("ec2", "stop_instances", InstanceIds=[victim])
        await world.state(victim, "stopped")
        await world.aws.call("ec2", "start_instances", InstanceIds=[victim])
        await world.state(victim, "running")
        await world.aws.call("ec2", "terminate_instances", InstanceIds=[victim])
        await world.state(victim, "terminated")
        await asyncio.sleep(0.3)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    events = [each for each in await world.read() if each["detail"]["instance-id"] == victim]
    assert [each["detail"]["state"] for each in events] == [
        *("pending", "running", "stopping", "stopped", "pending", "running", "shutting-down", "terminated")
    ]
    assert {each["detail-type"] for each in events} == {"EC2 Instance State-change Notification"}


async def test_what_was_to_come_of_an_instance_is_off_when_it_is_ended(world: World) -> None:
    before = await world.cloud.moto.transitions(0)
    victim = await world.launch()
    await world.aws.call("ec2", "stop_instances", InstanceIds=[victim])
    await world.aws.call("ec2", "terminate_instances", InstanceIds=[victim])
    await world.state(victim, "terminated")
    after = await world.cloud.moto.transitions(len(before) + 1)
    states = [each["state"] for each in after if each["instance"] == victim]
    assert states == ["pending", "running", "stopping", "shutting-down", "terminated"]


# --- delivery ---


async def test_without_a_rule_a_target_or_a_permission_there_is_no_message(world: World) -> None:
    call = world.aws.call
    [rule] = [each for each in (await call("events", "list_rules"))["Rules"] if "RebalanceRule" in each["Name"]]
    [target] = [
        each
        for each in (await call("events", "list_targets_by_rule", Rule=rule["Name"]))["Targets"]
        if each["Arn"].endswith(QUEUES[1])
    ]
    wanted = Wanted(foreign=True, kind=Kind.REBALANCE)

    async def counts() -> tuple[int, int]:
        await world.interruptions.interrupt(wanted)
        return len(await world.read(QUEUES[0])), len(await world.read(QUEUES[1]))

    assert await counts() == (1, 1)
    await call("events", "remove_targets", Rule=rule["Name"], Ids=[target["Id"]])
    assert await counts() == (1, 0)
    await call("events", "put_targets", Rule=rule["Name"], Targets=[target])
    await call("events", "disable_rule", Name=rule["Name"])
    assert await counts() == (0, 0)
    await call("events", "enable_rule", Name=rule["Name"])
    policy = (await world.call("get_queue_attributes", QUEUES[1], AttributeNames=["Policy"]))["Attributes"]
    await world.call("set_queue_attributes", QUEUES[1], Attributes={"Policy": ""})
    assert await counts() == (1, 0)
    await world.call("set_queue_attributes", QUEUES[1], Attributes=policy)
    assert await counts() == (1, 1)


async def test_messages_are_duplicated_delayed_shuffled_and_lost(world: World) -> None:
    faults = world.cloud.settings.faults
    wanted = Wanted(foreign=True)
    faults.set("events-duplicated", {"times": 3, "queue": QUEUES[1]})
    await world.interruptions.interrupt(wanted)
    found = await world.read()
    assert (len(found), len({each["id"] for each in found}), len(await world.read(QUEUES[0]))) == (3, 1, 1)
    faults.clear()

    faults.set("events-delayed", {"seconds": 150, "detailType": "EC2 Spot Instance Interruption Warning"})
    await world.interruptions.interrupt(wanted)
    await world.interruptions.interrupt(Wanted(foreign=True, kind=Kind.REBALANCE))
    assert [each["detail-type"] for each in await world.read()] == ["EC2 Instance Rebalance Recommendation"]
    assert [each["detail-type"] for each in await world.arrived(1)] == ["EC2 Spot Instance Interruption Warning"]
    faults.clear()

    faults.set("events-shuffled", {"seconds": 20})
    sent = [(await world.interruptions.interrupt(wanted))["id"] for _ in range(12)]
    received = [each["id"] for each in await world.arrived(12)]
    assert sorted(received) == sorted(sent)
    assert received != sent
    faults.clear()

    faults.set("events-lost", {"queue": QUEUES[1]}, count=1)
    await world.bodies(QUEUES[0])
    await world.interruptions.interrupt(wanted)
    assert (len(await world.read(QUEUES[0])), len(await world.read())) == (1, 0)
    await world.interruptions.interrupt(wanted)
    assert len(await world.read()) == 1
