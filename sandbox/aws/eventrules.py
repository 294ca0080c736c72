"""What EventBridge's rules in moto say of an event, and messages into moto's queues; in moto's process only.

Services' own events reach a bus from inside: PutEvents refuses a source that begins with ``aws.``. So the rules and
targets of the account decide here whether a message is sent and where: without them, there is none. (Moto's PutEvents
looks neither at a rule's state nor at a queue's policy.) The whole event is sent; ``InputTransformer`` and the like are
not evaluated.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]
_SERVICE = "events.amazonaws.com"
_SEND = "sqs:SendMessage"


def match(account: str, region: str, event: Object) -> list[Object]:
    """
    The queues that an event goes to: ``rule``, ``target``, ``queue`` (its name), and ``refused`` with a reason.

    After docs.aws.amazon.com/eventbridge/latest/userguide: 'Event patterns', and 'Resource-based policies' (a queue's
    policy must allow the service to send).
    """
    from moto.events.models import events_backends
    from moto.sqs.models import sqs_backends

    found: list[Object] = []
    rules = events_backends[account][region].event_buses["default"].rules
    for rule in list(rules.values()):
        if rule.state == "DISABLED" or not rule.event_pattern.dump() or not rule.event_pattern.matches_event(event):
            continue
        for target in rule.targets:
            parts = str(target["Arn"]).split(":")
            if parts[2] != "sqs":
                continue
            queue = sqs_backends[account][region].queues.get(parts[-1])
            refused = ""
            if queue is None:
                refused = "the queue does not exist"
            elif not may_send(json.loads(queue.policy or "{}"), rule.arn, account):
                refused = "the queue's policy does not allow it"
            found.append({"rule": rule.name, "target": target["Id"], "queue": parts[-1], "refused": refused})
    return found


def send(account: str, region: str, messages: Iterable[Object]) -> int:
    """Put messages (``queue``, ``body``) into queues; how many were put. A queue that was deleted gets none."""
    from moto.sqs.exceptions import QueueDoesNotExist
    from moto.sqs.models import sqs_backends

    sent = 0
    for message in messages:
        try:
            sqs_backends[account][region].send_message(message["queue"], message["body"])
        except QueueDoesNotExist:
            continue
        sent += 1
    return sent


def may_send(policy: Object, rule_arn: str, account: str) -> bool:
    """Whether a queue's policy lets EventBridge send for a rule: allowed by a statement and denied by none."""
    context = {"aws:sourcearn": rule_arn, "aws:sourceaccount": account, "aws:securetransport": "true"}
    allowed = False
    for statement in _listed(policy.get("Statement")):
        if not _concerns(statement, context):
            continue
        if statement.get("Effect") == "Deny":
            return False
        allowed = True
    return allowed


def _concerns(statement: Object, context: dict[str, str]) -> bool:
    principal = statement.get("Principal")
    services = _listed(principal.get("Service")) if isinstance(principal, dict) else []
    anybody = principal == "*" or (isinstance(principal, dict) and principal.get("AWS") == "*")
    if not anybody and _SERVICE not in services:
        return False
    actions = [str(each).lower() for each in _listed(statement.get("Action"))]
    if not any(fnmatch.fnmatchcase(_SEND.lower(), each) for each in actions):
        return False
    conditions = statement.get("Condition") or {}
    return all(
        any(fnmatch.fnmatchcase(context.get(key.lower(), "").lower(), str(each).lower()) for each in _listed(wanted))
        for operator in conditions.values()
        for key, wanted in operator.items()
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def refuse_sources_of_aws() -> None:
    """As the real PutEvents: an entry whose source begins with ``aws.`` fails (API reference, PutEventsResultEntry)."""
    from moto.events.models import EventsBackend

    put_events = EventsBackend.put_events

    def put_foreign_events(self: Any, events: list[Object]) -> list[Object]:
        refused = {"ErrorCode": "NotAuthorizedForSourceException", "ErrorMessage": "Not authorized for the source."}
        own = [str(each.get("Source", "")).startswith("aws.") for each in events]
        others = iter(put_events(self, [each for each, mine in zip(events, own, strict=True) if not mine]))
        return [refused if mine else next(others) for mine in own]

    EventsBackend.put_events = put_foreign_events
