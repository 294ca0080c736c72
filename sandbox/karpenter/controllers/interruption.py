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

from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers import messages
from sandbox.karpenter.controllers.interruptionhandler import handle
from sandbox.karpenter.controllers.messages import Unreadable
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
            await handle(self._context, message)
        await self._context.aws.call(
            "sqs", "delete_message", QueueUrl=self._url, ReceiptHandle=received["ReceiptHandle"]
        )
