"""An SQS queue with its dead-letter queue. Blocking; its errors are the package's typed ones.

Sources: Amazon SQS API Reference (``ReceiveMessage``, ``DeleteMessageBatch``, ``ChangeMessageVisibilityBatch``,
``SendMessage``), Amazon SQS Developer Guide ('Amazon SQS short and long polling', 'Amazon SQS visibility timeout',
'Using dead-letter queues in Amazon SQS').
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.errors import GpuFleetError, Invalid
from gpu_fleet.hooks.aws.session import AwsSession

log = logging.getLogger(__name__)

#: Seconds that a receive waits for a message: the most that SQS allows.
LONG_POLL_S = 20
#: Messages per call, for each of the calls: the most that SQS allows.
BATCH = 10
#: Seconds for which a message that was received is hidden. Its asset event is stored within a second or two. After
#: a triggerer that died in between the message must come back while the instance still lives (two minutes' notice).
VISIBILITY_S = 30

_ARN = re.compile(r"arn:[^:]+:sqs:[^:]*:(?P<account>\d*):(?P<name>.+)", re.ASCII)
#: Characters that a message attribute may not have (SQS API Reference, ``SendMessage``: those of XML 1.0).
_NOT_IN_TEXT = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: The handle has expired, or belongs to an earlier receive: the message is another reader's by now, or deleted.
_STALE_HANDLE = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight"})


@dataclass(frozen=True)
class Message:
    """A message as it was received this time.

    :ivar handle: deletes it, as long as nobody else has received it since.
    :ivar sent: when SQS got it, epoch seconds; ``None`` if SQS does not say.
    :ivar received: how often it has been received.
    """

    id: str
    handle: str
    body: str
    sent: float | None = None
    received: int = 1


class SqsQueue:
    """Safe for threads.

    :param name: name of the queue, in the account and region of the session.
    """

    def __init__(self, session: AwsSession, name: str) -> None:
        self.name = name
        self._session = session
        self._url = ""
        #: URL of the dead-letter queue; empty if there is none, ``None`` before it was asked for.
        self._dead: str | None = None

    def receive(self, wait_s: int = LONG_POLL_S) -> list[Message]:
        """Up to :data:`BATCH` messages, hidden from other readers for :data:`VISIBILITY_S`.

        :raises GpuFleetError: also if the queue does not exist (any more).
        """
        answer = self._call(
            "receive_message",
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=wait_s,
            VisibilityTimeout=VISIBILITY_S,
            AttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
        )
        return [_message(each) for each in answer.get("Messages") or []]

    def delete(self, handles: Sequence[str]) -> list[str]:
        """Delete messages; returns the handles of those that could not be deleted now, to be tried again."""
        left: list[str] = []
        for part in _parts(handles):
            entries = [{"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(part)]
            failed = self._call("delete_message_batch", Entries=entries).get("Failed") or []
            left += [part[int(each["Id"])] for each in failed if each.get("Code") not in _STALE_HANDLE]
        return left

    def release(self, handles: Sequence[str]) -> None:
        """Show messages to other readers at once, instead of after :data:`VISIBILITY_S`."""
        for part in _parts(handles):
            entries = [
                {"Id": str(place), "ReceiptHandle": handle, "VisibilityTimeout": 0} for place, handle in enumerate(part)
            ]
            self._call("change_message_visibility_batch", Entries=entries)

    def dead_letter(self, message: Message, reason: str, error: str) -> bool:
        """Move a message to the dead-letter queue, with why as attributes; without such a queue it is only deleted.

        Sent first: killed in between, the message is in both queues, and is moved again.

        :returns: whether there is a dead-letter queue.
        """
        url = self._dead_letter_url()
        if url:
            attributes = {"reason": reason, "error": error, "message": message.id}
            self._session.call(
                "sqs",
                "send_message",
                QueueUrl=url,
                MessageBody=message.body,
                MessageAttributes={name: _attribute(text) for name, text in attributes.items()},
            )
        left = self.delete([message.handle])
        if left:
            log.info("queue %s: message %s is in the dead-letter queue and not yet deleted", self.name, message.id)
        return bool(url)

    # --- internals ---------------------------------------------------------------------------------------------

    def _dead_letter_url(self) -> str:
        if self._dead is None:
            answer = self._call("get_queue_attributes", AttributeNames=["RedrivePolicy"])
            policy = str((answer.get("Attributes") or {}).get("RedrivePolicy") or "{}")
            try:
                found = _ARN.fullmatch(str(json.loads(policy).get("deadLetterTargetArn") or ""))
            except (ValueError, AttributeError) as error:
                raise Invalid(f"queue {self.name}: its RedrivePolicy cannot be read; correct it") from error
            self._dead = self._url_of(found["name"], found["account"]) if found else ""
        return self._dead

    def _url_of(self, name: str, account: str = "") -> str:
        owner = {"QueueOwnerAWSAccountId": account} if account else {}
        return str(self._session.call("sqs", "get_queue_url", QueueName=name, **owner)["QueueUrl"])

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            if not self._url:
                self._url = self._url_of(self.name)
            return self._session.call("sqs", operation, QueueUrl=self._url, **parameters)
        except GpuFleetError:
            # It may have been created anew, or the connection may name another account by now.
            self._url, self._dead = "", None
            raise


def _message(value: Mapping[str, Any]) -> Message:
    attributes = value.get("Attributes") or {}
    sent = str(attributes.get("SentTimestamp") or "")
    count = str(attributes.get("ApproximateReceiveCount") or "")
    return Message(
        id=str(value.get("MessageId") or ""),
        handle=str(value["ReceiptHandle"]),
        body=str(value.get("Body") or ""),
        sent=int(sent) / 1000 if sent.isdecimal() else None,
        received=int(count) if count.isdecimal() else 1,
    )


def _parts(handles: Sequence[str]) -> Iterator[list[str]]:
    for begin in range(0, len(handles), BATCH):
        yield list(handles[begin : begin + BATCH])


def _attribute(text: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": _NOT_IN_TEXT.sub("?", text)[:1000] or "none"}


def handles_of(messages: Iterable[Message]) -> tuple[str, ...]:
    return tuple(message.handle for message in messages)
