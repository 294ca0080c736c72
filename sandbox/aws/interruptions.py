"""Interruptions of instances: whom they hit, what is announced, and what then happens to the instance."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.audit import timestamp
from sandbox.aws import notices
from sandbox.aws.client import Aws
from sandbox.aws.eventbridge import EventBridge
from sandbox.aws.moto import Moto
from sandbox.aws.notices import Action, Check, Kind, Malformed
from sandbox.settings import Clock, Settings

Object = dict[str, Any]
_ALIVE = ("pending", "running", "stopping", "stopped")
_POOL, _GROUP = "karpenter.sh/nodepool", "eks:nodegroup-name"
#: Simulated seconds between two looks for an instance that a storm could hit.
_LOOK = 1.0
_STATES = {"stopping": "stop", "stopped": "stop", "shutting-down": "terminate", "terminated": "terminate"}


class UnknownInstance(LookupError):
    """No instance of that id is running, or none is there that could be meant."""


@dataclass(frozen=True)
class Wanted:
    """One call: whom, what, and how.

    :ivar instances: ids; or, without them, all running instances of the cluster that ``pool`` (a NodePool or a managed
        node group), ``zone`` and ``spot`` leave.
    :ivar storm: hit so many random ones of them, spot instances only,
    :ivar within: at random moments of so many simulated seconds; 0: all at once.
    :ivar times: how often each message is delivered.
    :ivar notice: real seconds from the warning to the end; ``None``: 120, divided by the speed.
    :ivar starts_in: real seconds from now to the start of a scheduled change; its instances are stopped then.
    :ivar skew: seconds by which the event's time is wrong.
    :ivar malformed: one message of this kind, and nothing else.
    :ivar foreign: the messages are about an instance of somebody else.
    :ivar silent: the messages only: nothing happens to the instances.
    :ivar completed: a scheduled change that is over: no message, and EC2 shows its event as completed.
    :ivar impaired: this status check of the instances fails from now on; there is no message of that.
    :ivar recovered: their status checks pass again, and scheduled events that they have are over.
    """

    kind: Kind = Kind.SPOT
    instances: tuple[str, ...] = ()
    pool: str | None = None
    zone: str | None = None
    spot: bool = False
    storm: int = 0
    within: float = 0.0
    action: Action = Action.TERMINATE
    state: str = "stopping"
    times: int = 1
    notice: float | None = None
    starts_in: float | None = None
    code: str = notices.RETIREMENT
    skew: float = 0.0
    malformed: Malformed | None = None
    foreign: bool = False
    silent: bool = False
    completed: bool = False
    impaired: Check | None = None
    recovered: bool = False

    @property
    def chooses(self) -> bool:
        """Whether it says whom it hits."""
        chosen = self.instances or self.pool or self.zone or self.spot or self.storm
        return bool(chosen or self.malformed or self.foreign)


@dataclass(frozen=True)
class Victim:
    instance: str
    zone: str


class Interruptions:
    """:ivar announced: what was announced so far, oldest first: kind, instances, event id, time and end of each."""

    def __init__(
        self, settings: Settings, clock: Clock, aws: Aws, moto: Moto, events: EventBridge, queues: list[str]
    ) -> None:
        """
        :param queues: names of those that malformed messages go to.
        """
        self.announced: list[Object] = []
        self._settings = settings
        self._clock = clock
        self._aws = aws
        self._moto = moto
        self._events = events
        self._queues = queues
        self._random = random.Random(f"{settings.seed}:interruptions")
        self._tasks: set[asyncio.Task[None]] = set()

    async def interrupt(self, wanted: Wanted) -> Object:
        """Announce it, and let what follows happen in the background.

        :returns: ``detail-type``, ``instances``, ``events``, ``ends`` (epoch seconds by instance) and the number of
            ``messages``; if it is one event, also its fields.
        :raises UnknownInstance: there is no such instance, or it is already being terminated.
        """
        if wanted.malformed is not None:
            body = notices.malformed(wanted.malformed, self._settings, datetime.now(UTC))
            sent = await self._events.place([body], self._queues, wanted.times)
            return {"detail-type": "", "instances": [], "events": [], "ends": {}, "messages": sent}
        if wanted.foreign:
            number = f"i-0f{self._random.getrandbits(60):015x}"
            return await self._announce(replace(wanted, silent=True), [Victim(number, f"{self._settings.region}a")])
        if wanted.storm and wanted.within:
            moments = sorted(self._random.uniform(0, wanted.within) for _ in range(wanted.storm))
            self._keep(self._storm(wanted, moments))
            kind = notices.DETAIL_TYPES[wanted.kind]
            return {"detail-type": kind, "instances": [], "events": [], "ends": {}, "messages": 0}
        victims = await self._victims(wanted)
        if wanted.storm:
            victims = self._random.sample(victims, wanted.storm)
        if wanted.impaired or wanted.recovered or wanted.completed:
            return self._diagnose(wanted, [each.instance for each in victims])
        return await self._announce(wanted, victims)

    def _diagnose(self, wanted: Wanted, instances: list[str]) -> Object:
        """Changes what DescribeInstanceStatus says, and nothing else."""
        book, moment = self._settings.statuses, datetime.now(UTC).timestamp()
        for instance in instances:
            if wanted.impaired is not None:
                book.impair(instance, wanted.impaired, moment)
            if wanted.recovered:
                book.recover(instance)
                book.complete(instance)
            if wanted.completed:
                self._schedule(wanted, instance, moment)
                book.complete(instance)
        what = f"a failed {wanted.impaired} status check" if wanted.impaired else "a completed scheduled event"
        shown = "passing status checks" if wanted.recovered else what
        return {"detail-type": shown, "instances": instances, "events": [], "ends": {}, "messages": 0}

    def _schedule(self, wanted: Wanted, instance: str, starts: float) -> None:
        code = notices.event_code(wanted.code)
        text = f"The instance has an event of the type {code}"
        self._settings.statuses.schedule(instance, code, text, starts, starts + notices.LASTS.total_seconds())

    async def close(self) -> None:
        """Instances whose time has not come stay."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- whom ----------------------------------------------------------------------------------------------------

    async def _victims(self, wanted: Wanted) -> list[Victim]:
        if wanted.instances:
            filters = [{"Name": "instance-id", "Values": list(wanted.instances)}]
        else:
            owned = f"tag:kubernetes.io/cluster/{self._settings.cluster_name}"
            filters = [{"Name": owned, "Values": ["owned"]}, {"Name": "instance-state-name", "Values": ["running"]}]
        found = {
            each["InstanceId"]: each
            for each in await self._aws.paginate(
                "ec2", "describe_instances", "Reservations[].Instances[]", Filters=filters
            )
        }
        for instance in wanted.instances:
            if instance not in found:
                raise UnknownInstance(f"there is no instance {instance}")
            if (state := found[instance]["State"]["Name"]) not in _ALIVE:
                raise UnknownInstance(f"instance {instance} is {state}")
        chosen = (
            [found[each] for each in wanted.instances]
            if wanted.instances
            else sorted(
                (each for each in found.values() if _meant(each, wanted)), key=lambda each: str(each["InstanceId"])
            )
        )
        if not chosen or len(chosen) < wanted.storm:
            raise UnknownInstance(f"{len(chosen)} running instances of the cluster are meant; choose others")
        return [Victim(each["InstanceId"], each["Placement"]["AvailabilityZone"]) for each in chosen]

    async def _storm(self, wanted: Wanted, moments: list[float]) -> None:
        """One random instance at each moment, none twice; where none is there, as soon as there is one."""
        began = asyncio.get_running_loop().time()
        hit: set[str] = set()
        for moment in moments:
            await asyncio.sleep(max(0.0, began + self._clock.real(moment) - asyncio.get_running_loop().time()))
            while True:
                try:
                    one = replace(wanted, storm=1)
                    left = [each for each in await self._victims(one) if each.instance not in hit]
                except UnknownInstance:
                    left = []
                if left:
                    break
                await self._clock.sleep(_LOOK)
            victim = self._random.choice(left)
            hit.add(victim.instance)
            await self._announce(wanted, [victim])

    # --- what ----------------------------------------------------------------------------------------------------

    async def _announce(self, wanted: Wanted, victims: list[Victim]) -> Object:
        moment = datetime.now(UTC)
        ends = self._end(wanted, moment)
        events = self._messages(wanted, victims, moment + timedelta(seconds=wanted.skew), ends)
        names = [each.instance for each in victims]
        if wanted.kind is Kind.SCHEDULED and not wanted.silent:
            for name in names:
                self._schedule(wanted, name, (ends or moment + notices.AHEAD).timestamp())
        sent = 0
        if wanted.kind is not Kind.STATE or wanted.silent:
            sent = await self._events.publish(events, wanted.times)
        shown = {} if ends is None or wanted.silent else {each: ends.timestamp() for each in names}
        self.announced += [
            {
                "kind": str(wanted.kind),
                "instances": names if wanted.kind is Kind.SCHEDULED else [event["detail"]["instance-id"]],
                "event": event["id"],
                "time": moment.timestamp(),
                "ends": None if ends is None or wanted.silent else ends.timestamp(),
            }
            for event in events
        ]
        if ends is not None and not wanted.silent:
            if ends <= moment:
                await self._finish(wanted, names)
            else:
                self._keep(self._finish_at(ends, wanted, names))
        one = events[0] if len(events) == 1 else {}
        kind = notices.DETAIL_TYPES[wanted.kind]
        return {**one, "detail-type": kind, "instances": names, "events": events, "ends": shown, "messages": sent}

    def _end(self, wanted: Wanted, moment: datetime) -> datetime | None:
        """When EC2 acts on the instance; ``None`` if it does not."""
        notice = self._clock.real(notices.NOTICE) if wanted.notice is None else wanted.notice
        match wanted.kind:
            case Kind.SPOT if wanted.action is Action.HIBERNATE:
                return moment  # 'hibernation begins immediately'
            case Kind.SPOT | Kind.RESERVATION:
                return moment + timedelta(seconds=notice)
            case Kind.STATE:
                return moment
            case Kind.SCHEDULED if wanted.starts_in is not None:
                return moment + timedelta(seconds=wanted.starts_in)
        return None

    def _messages(self, wanted: Wanted, victims: list[Victim], moment: datetime, ends: datetime | None) -> list[Object]:
        if wanted.kind is Kind.SCHEDULED:
            names = [each.instance for each in victims]
            return [notices.scheduled_change(names, self._settings, moment, ends, wanted.code)]
        return [
            notices.message(
                wanted.kind,
                each.instance,
                each.zone,
                self._settings,
                moment,
                action=wanted.action,
                state=wanted.state,
                ends=ends,
            )
            for each in victims
        ]

    async def _finish_at(self, ends: datetime, wanted: Wanted, instances: list[str]) -> None:
        await asyncio.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
        await self._finish(wanted, instances)

    async def _finish(self, wanted: Wanted, instances: list[str]) -> None:
        """What EC2 does at the end. Its changes of state become messages by themselves."""
        match wanted.kind:
            case Kind.SPOT:
                action = "terminate" if wanted.action is Action.TERMINATE else "stop"
            case Kind.STATE:
                action = _STATES[wanted.state]
            case (
                Kind.SCHEDULED
            ):  # an instance with an EBS root volume is stopped (EC2 User Guide, 'Instance retirement')
                action = "stop"
            case _:
                action = "terminate"
        taken = await self._moto.reclaim(instances, action)
        if wanted.kind is Kind.SCHEDULED:
            for instance in instances:
                self._settings.statuses.complete(instance)
        if taken and wanted.kind is Kind.SPOT:
            self._record(taken)

    def _record(self, instances: list[str]) -> None:
        """CloudTrail's record (EC2 User Guide, 'Determine whether Amazon EC2 terminated a Spot Instance')."""
        self._settings.audit.append(
            {
                "eventVersion": "1.11",
                "eventID": str(uuid.uuid4()),
                "eventTime": timestamp(datetime.now(UTC).timestamp()),
                "eventSource": "ec2.amazonaws.com",
                "eventName": "BidEvictedEvent",
                "awsRegion": self._settings.region,
                "userIdentity": {"invokedBy": "ec2.amazonaws.com"},
                "sourceIPAddress": "ec2.amazonaws.com",
                "readOnly": False,
                "userAgent": "ec2.amazonaws.com",
                "requestParameters": None,
                "responseElements": None,
                "eventType": "AwsServiceEvent",
                "serviceEventDetails": {"instanceIdSet": instances},
            }
        )

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _meant(instance: Object, wanted: Wanted) -> bool:
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags") or []}
    pool = tags.get(_POOL) or tags.get(_GROUP)
    zone = instance["Placement"]["AvailabilityZone"]
    spot = instance.get("InstanceLifecycle") == "spot"
    return wanted.pool in (None, pool) and wanted.zone in (None, zone) and (spot or not (wanted.spot or wanted.storm))
