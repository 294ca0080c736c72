"""Messages of EventBridge in Karpenter's own queue.

After aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption/controller.go``, ``utils.go`` and
``pkg/providers/sqs/sqs.go``: a batch of ten at a time, handled side by side. A message is deleted when it was handled,
when it is about none of Karpenter's instances, and when it cannot be read; not when handling it failed, so SQS delivers
it again. There is no deadline in it: pods that a budget or ``karpenter.sh/do-not-disrupt`` protects stay until the
node's ``terminationGracePeriod``, or the hardware, is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from sandbox.karpenter.cloudprovider.catalog import INSTANCE_TYPE, ZONE
from sandbox.karpenter.cloudprovider.cloud import instance_id
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers import messages
from sandbox.karpenter.controllers.messages import Kind, Message, Unreadable
from sandbox.karpenter.objects import deleting, labels, name, provider_id, uid
from sandbox.kube.resources import ApiError

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

_BATCH = 10
#: Seconds. A message that was not deleted is visible again after that long.
_VISIBILITY = 20
#: Seconds of one long poll, real ones. The controller asks for 20; a thread of boto3 cannot be called back, and one
#: that polls on after this Karpenter has ended would take its successor's messages.
_WAIT = 1
#: Real seconds after a failure (controller-runtime's rate limiter grows from 5 ms to 1000 s).
_RETRY = 0.5


class Interruption:
    """Reads the queue, deletes claims; the messages are deleted afterwards.

    :param queue: its name, as in the chart's ``settings.interruptionQueue``.
    """

    def __init__(self, context: Context, queue: str) -> None:
        self._context = context
        self._queue = queue
        self._url = ""

    async def run(self) -> None:
        while True:
            try:
                await self._reconcile()
            except (ClientError, BotoCoreError, ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                log.warning("interruption queue %s: %s", self._queue, error)
                await asyncio.sleep(_RETRY)

    async def _reconcile(self) -> None:
        """One batch.

        :raises Exception: what the first message failed with, after all were tried.
        """
        aws = self._context.aws
        if not self._url:
            self._url = (await aws.call("sqs", "get_queue_url", QueueName=self._queue))["QueueUrl"]
        answer = await aws.call(
            "sqs",
            "receive_message",
            QueueUrl=self._url,
            MaxNumberOfMessages=_BATCH,
            VisibilityTimeout=_VISIBILITY,
            WaitTimeSeconds=_WAIT,
            AttributeNames=["SentTimestamp"],
        )
        received = answer.get("Messages") or []
        results = await asyncio.gather(*(self._take(each) for each in received), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _take(self, received: Object) -> None:
        try:
            message = messages.parse(received["Body"])
        except Unreadable as error:
            log.error("failed parsing interruption message: parsing sqs message, %s", error)
        else:
            await self._handle(message)
        await self._context.aws.call(
            "sqs", "delete_message", QueueUrl=self._url, ReceiptHandle=received["ReceiptHandle"]
        )

    async def _handle(self, message: Message) -> None:
        """Acts on every claim of the message's instances; an instance that has none is ignored."""
        if message.kind is Kind.NO_OP:
            return
        wanted = set(message.instances)
        for claim in self._context.claims.items():
            if provider_id(claim) and instance_id(provider_id(claim)) in wanted:
                await self._act(message, claim)

    async def _act(self, message: Message, claim: Object) -> None:
        context = self._context
        node = context.state.node_of(claim)
        objects = [each for each in (claim, node) if each is not None]
        reason, text = messages.EVENTS[message.kind]
        context.events.interrupted(objects, reason, text, warning=message.kind in messages.ENDING)
        if message.kind is Kind.SPOT_INTERRUPTION and labels(claim).get(ZONE) and labels(claim).get(INSTANCE_TYPE):
            context.cloud.mark_spot_unavailable(labels(claim)[INSTANCE_TYPE], labels(claim)[ZONE])
        if message.kind not in messages.ENDING or deleting(claim):
            return
        if not await context.kube.delete("NodeClaim", name(claim), uid=uid(claim)):
            return
        log.info("initiating delete from interruption message: %s, NodeClaim %s", message.kind, name(claim))
        for each in objects:
            noun = "Node" if each is node else "NodeClaim"
            said = f"Interruption triggered termination for the {noun}"
            context.events.interrupted([each], "TerminatingOnInterruption", said)
