"""Messages of EventBridge in Karpenter's own queue (aws/karpenter-provider-aws ``pkg/controllers/interruption``)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.karpenter.cloudprovider.catalog import INSTANCE_TYPE, ZONE
from sandbox.karpenter.cloudprovider.cloud import instance_id
from sandbox.karpenter.context import Context
from sandbox.karpenter.objects import deleting, labels, name, provider_id, uid

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

#: Simulated seconds between two looks into the queue, and the least real ones. (The real controller polls long.)
POLL, LEAST_POLL = 2.0, 0.5
_STATES = {"stopping": "InstanceStopping", "stopped": "InstanceStopping"}


def actions(message: Object) -> tuple[list[str], str, str, bool]:
    """Instance ids, event reason, event text, and whether the claims are deleted.

    :raises KeyError: for a message of another shape.
    """
    kind, detail = message["detail-type"], message["detail"]
    if kind == "EC2 Spot Instance Interruption Warning":
        return [detail["instance-id"]], "SpotInterrupted", "Spot interruption warning was triggered", True
    if kind == "EC2 Instance Rebalance Recommendation":
        text = "Spot rebalance recommendation was triggered"
        return [detail["instance-id"]], "SpotRebalanceRecommendation", text, False
    if kind == "EC2 Instance State-change Notification":
        state = detail["state"]
        if state not in ("stopping", "stopped", "shutting-down", "terminated"):
            return [], "", "", False
        stopping = state in _STATES
        reason = "InstanceStopping" if stopping else "InstanceTerminating"
        return [detail["instance-id"]], reason, f"Instance is {'stopping' if stopping else 'terminating'}", True
    if kind == "AWS Health Event":
        if detail.get("service") != "EC2" or detail.get("eventTypeCategory") != "scheduledChange":
            return [], "", "", False
        ids = [entity["entityValue"] for entity in detail["affectedEntities"]]
        return ids, "InstanceUnhealthy", "An unhealthy warning was triggered for the instance", True
    if kind == "EC2 Capacity Reservation Instance Interruption Warning":
        text = "Capacity Reservation interruption warning was triggered"
        return [detail["instance-id"]], "CapacityReservationInstanceInterrupted", text, True
    return [], "", "", False


class Interruption:
    """Reads the queue, deletes claims; the messages are deleted afterwards.

    :param queue: its name, as in the chart's ``settings.interruptionQueue``.
    """

    def __init__(self, context: Context, queue: str) -> None:
        self._context = context
        self._queue = queue

    async def run(self) -> None:
        clock, aws = self._context.clock, self._context.aws
        pause = max(LEAST_POLL, clock.real(POLL))
        url: str | None = None
        while True:
            try:
                if url is None:
                    url = (await aws.call("sqs", "get_queue_url", QueueName=self._queue))["QueueUrl"]
                answer = await aws.call("sqs", "receive_message", QueueUrl=url, MaxNumberOfMessages=10)
                for received in answer.get("Messages") or []:
                    await self._handle(received["Body"])
                    await aws.call("sqs", "delete_message", QueueUrl=url, ReceiptHandle=received["ReceiptHandle"])
            except (ClientError, BotoCoreError) as error:
                log.warning("interruption queue %s: %s", self._queue, error)
            await asyncio.sleep(pause)

    async def _handle(self, body: str) -> None:
        try:
            message = json.loads(body)
            ids, reason, text, ends = actions(message)
        except (ValueError, KeyError, TypeError) as error:
            log.error("parsing message from queue: %r", error)
            return
        context = self._context
        for claim in context.claims.items():
            if instance_id(provider_id(claim)) not in ids:
                continue
            node = context.state.node_of(claim)
            objects = [each for each in (node, claim) if each is not None]
            context.events.interrupted(objects, reason, text, warning=ends)
            if reason == "SpotInterrupted" and labels(claim).get(ZONE):
                context.cloud.mark_spot_unavailable(labels(claim).get(INSTANCE_TYPE, ""), labels(claim)[ZONE])
            if ends and not deleting(claim):
                noun = "Interruption triggered termination for the "
                for each in objects:
                    kind = "Node" if each is node else "NodeClaim"
                    context.events.interrupted([each], "TerminatingOnInterruption", noun + kind)
                await context.kube.delete("NodeClaim", name(claim), uid=uid(claim))
