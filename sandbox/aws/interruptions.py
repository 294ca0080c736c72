"""Interruption messages as EventBridge puts them into SQS, and what then happens to the instance.

Formats: docs.aws.amazon.com/AWSEC2/latest/UserGuide (spot interruption notices, rebalance recommendations, state
change), docs.aws.amazon.com/health (aws.health events). Every message is sent to
Karpenter's queue and to the package's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.settings import Clock, Settings

SPOT_NOTICE = 120.0  # seconds between a spot interruption warning and the instance's end


class Kind(StrEnum):
    """What ``python -m sandbox interrupt --kind`` takes."""

    SPOT = "spot"
    REBALANCE = "rebalance"
    SCHEDULED = "scheduled"
    STATE = "state"


class UnknownInstance(LookupError):
    """No instance of that id is running."""


def message(kind: Kind, instance: str, zone: str, settings: Settings, now: datetime) -> dict[str, Any]:
    """The EventBridge event. ``zone`` is the instance's availability zone (a spot warning's ARN names it)."""
    arn = f"arn:aws:ec2:{settings.region}:{settings.account}:instance/{instance}"
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    event: dict[str, Any] = {
        "version": "0",
        "id": str(uuid.uuid4()),
        "account": settings.account,
        "time": stamp,
        "region": settings.region,
        "resources": [arn],
        "source": "aws.ec2",
    }
    match kind:
        case Kind.SPOT:
            event["detail-type"] = "EC2 Spot Instance Interruption Warning"
            event["resources"] = [f"arn:aws:ec2:{zone}:instance/{instance}"]
            event["detail"] = {"instance-id": instance, "instance-action": "terminate"}
        case Kind.REBALANCE:
            event["detail-type"] = "EC2 Instance Rebalance Recommendation"
            event["detail"] = {"instance-id": instance}
        case Kind.STATE:
            event["detail-type"] = "EC2 Instance State-change Notification"
            event["detail"] = {"instance-id": instance, "state": "stopping"}
        case Kind.SCHEDULED:
            event["detail-type"] = "AWS Health Event"
            event["source"] = "aws.health"
            event["resources"] = [instance]
            event["detail"] = {
                "eventArn": f"arn:aws:health:{settings.region}::event/EC2/AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED/"
                f"AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED_{uuid.uuid4().hex[:12]}",
                "service": "EC2",
                "eventTypeCode": "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED",
                "eventTypeCategory": "scheduledChange",
                "startTime": stamp,
                "affectedEntities": [{"entityValue": instance}],
            }
    return event


class Interruptions:
    """Sends interruptions; :meth:`finish` is to be run in the background by the caller."""

    def __init__(self, settings: Settings, clock: Clock, aws: Aws, queue_urls: Iterable[str]) -> None:
        self._settings = settings
        self._clock = clock
        self._aws = aws
        self._queues = list(queue_urls)

    async def announce(self, instance: str, kind: Kind) -> dict[str, Any]:
        """
        Puts the event on every queue.

        :raises UnknownInstance: there is no such instance, or it is already being terminated.
        """
        found = await self._describe(instance)
        state = found["State"]["Name"]
        if state not in ("pending", "running", "stopping", "stopped"):
            raise UnknownInstance(f"instance {instance} is {state}")
        event = message(kind, instance, found["Placement"]["AvailabilityZone"], self._settings, datetime.now(UTC))
        for queue in self._queues:
            await self._aws.call("sqs", "send_message", QueueUrl=queue, MessageBody=json.dumps(event))
        return event

    async def finish(self, instance: str, kind: Kind) -> None:
        """What follows the warning: a spot instance ends after two simulated minutes, a stopping one stops now."""
        if kind is Kind.SPOT:
            await self._clock.sleep(SPOT_NOTICE)
            if (await self._describe(instance))["State"]["Name"] in ("pending", "running"):
                await self._aws.call("ec2", "terminate_instances", InstanceIds=[instance])
        elif kind is Kind.STATE:
            await self._aws.call("ec2", "stop_instances", InstanceIds=[instance])

    async def _describe(self, instance: str) -> dict[str, Any]:
        try:
            reply = await self._aws.call("ec2", "describe_instances", InstanceIds=[instance])
        except ClientError as error:
            if error.response["Error"]["Code"].startswith("InvalidInstanceID"):
                raise UnknownInstance(f"there is no instance {instance}") from error
            raise
        found: dict[str, Any] = reply["Reservations"][0]["Instances"][0]
        return found
