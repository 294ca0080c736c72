"""Changing AWS requests as CloudTrail records.

After docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html. Management
events only: what is read, and messages in queues (data events), are in no record.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from sandbox.audit import AuditLog, timestamp

#: Names of operations that change nothing.
_READS = re.compile(r"^(Describe|Get|List|Head|Lookup|Search|Simulate|BatchGet|Scan|Query|AssumeRole)")
_DATA = frozenset(
    {"SendMessage", "SendMessageBatch", "ReceiveMessage", "DeleteMessage", "DeleteMessageBatch"}
    | {"ChangeMessageVisibility", "ChangeMessageVisibilityBatch"}
)
#: Parameters that are left out: those of the protocol itself,
_PROTOCOL = frozenset({"Action", "Version"})
#: and those that are long or secret.
_HIDDEN = frozenset({"UserData", "LaunchTemplateData.UserData", "Password", "SecretString"})
_CODE = re.compile(rb"<Code>([^<]+)</Code>")


def operation_of(method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a call: of the query protocol, of the JSON protocol, or of REST."""
    target = headers.get("x-amz-target", "")
    if target:
        return target.rpartition(".")[2], _json(body)
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        pairs = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        action = pairs.get("Action", "")
        return action, {key: value for key, value in pairs.items() if key not in _PROTOCOL}
    verb = {"GET": "Get", "HEAD": "Head", "POST": "Post", "PUT": "Put", "DELETE": "Delete"}.get(method, method)
    return f"{verb} {path}", _json(body)


def is_write(operation: str) -> bool:
    return bool(operation) and not _READS.match(operation) and operation not in _DATA


class Trail:
    """Writes records into the audit log."""

    def __init__(self, log: AuditLog, region: str) -> None:
        self._log = log
        self._region = region

    def record(
        self,
        service: str,
        operation: tuple[str, dict[str, Any]],
        headers: Mapping[str, str],
        caller: Mapping[str, Any],
        answer: tuple[int, bytes],
    ) -> None:
        """
        :param caller: ``arn`` and ``accessKeyId``.
        :param answer: status and body of the reply.
        """
        name, parameters = operation
        status, body = answer
        entry: dict[str, Any] = {
            "eventVersion": "1.11",
            "eventID": str(uuid.uuid4()),
            "eventTime": timestamp(time.time()),
            "eventSource": f"{service}.amazonaws.com",
            "eventName": name,
            "awsRegion": self._region,
            "userIdentity": dict(caller),
            "userAgent": headers.get("user-agent", ""),
            "requestParameters": {key: "***" if key in _HIDDEN else value for key, value in parameters.items()},
            "readOnly": False,
        }
        if status >= 400:
            entry["errorCode"] = _error_code(status, body)
        self._log.append(entry)


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body) if body else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _error_code(status: int, body: bytes) -> str:
    """The code in an XML or JSON error."""
    found = _CODE.search(body)
    if found:
        return found.group(1).decode(errors="replace")
    return str(_json(body).get("__type", status)).rpartition("#")[2]
