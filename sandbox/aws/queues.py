"""SQS as its users meet it: long polls that end with their caller, and queues that fail.

Faults; all take ``queue`` (a name) and ``actions`` (as IAM calls them, ``sqs:ReceiveMessage``), which limit them:

* ``sqs-throttled``: SQS refuses with ``RequestThrottled``;
* ``sqs-dropped``: the connection is closed without a reply;
* ``sqs-deleted``: there is no such queue (to its users; what it holds is there again when the fault is cleared).
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from sandbox.aws.signature import Request
from sandbox.faults import FaultBoard

THROTTLED, DROPPED, DELETED = "sqs-throttled", "sqs-dropped", "sqs-deleted"
RECEIVE = "sqs:ReceiveMessage"
#: Real seconds that one request to moto waits. Moto waits on for a caller that has left, and then hides the messages
#: that nobody gets for their visibility timeout; so a long poll is made of short ones.
PIECE = 1
_TYPE = "application/x-amz-json-1.0"


class ConnectionLost(Exception):
    """The fault ``sqs-dropped`` is set for this request."""


def answer(faults: FaultBoard, seen: Request, action: str) -> web.Response | None:
    """The reply that a fault gives to this request, if one does.

    :raises ConnectionLost: there is to be none.
    """
    queue = queue_of(seen)
    if _hit(faults, DROPPED, queue, action):
        raise ConnectionLost
    if _hit(faults, THROTTLED, queue, action):
        return _error("RequestThrottled", "RequestThrottled", "Request is throttled.")
    if _hit(faults, DELETED, queue, action):
        return _error(
            "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist."
        )
    return None


def queue_of(seen: Request) -> str:
    """The name of the queue that a request is about."""
    body = _body(seen)
    return str(body.get("QueueName") or str(body.get("QueueUrl", "")).rpartition("/")[2])


def wait_of(seen: Request) -> int:
    """The seconds that a ReceiveMessage asks to wait."""
    wait = _body(seen).get("WaitTimeSeconds", 0)
    return wait if isinstance(wait, int) else 0


def waiting(seen: Request, seconds: int) -> bytes:
    """The body of that request with another wait."""
    return json.dumps({**_body(seen), "WaitTimeSeconds": seconds}).encode()


def is_empty(response: web.Response) -> bool:
    """Whether a ReceiveMessage succeeded and brought nothing."""
    if response.status != 200 or not isinstance(response.body, bytes):
        return False
    return not json.loads(response.body or b"{}").get("Messages")


def _body(seen: Request) -> dict[str, Any]:
    try:
        found = json.loads(seen.body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _hit(faults: FaultBoard, name: str, queue: str, action: str) -> bool:
    params = faults.active(name)
    if params is None or params.get("queue", queue) != queue or action not in params.get("actions", [action]):
        return False
    return faults.take(name) is not None


def _error(shape: str, code: str, message: str) -> web.Response:
    """In the JSON protocol, with the code of the older query protocol in a header (SQS API reference, 'Errors')."""
    body = {"__type": f"com.amazonaws.sqs#{shape}", "message": message}
    headers = {"x-amzn-query-error": f"{code};Sender"}
    return web.Response(status=400, text=json.dumps(body), headers=headers, content_type=_TYPE)
