"""Whether the policy of an SQS queue lets a rule of EventBridge send to it. Pure.

Semantics: IAM User Guide, "Policy evaluation logic" (a Deny that applies wins) and "IAM JSON policy elements: Condition
operators"; the keys that EventBridge sets: EventBridge User Guide, "Using resource-based policies" (``aws:SourceArn``),
and aws/aws-cdk ``packages/aws-cdk-lib/aws-events-targets/lib/sqs.ts`` (``aws:SourceAccount``). What is not evaluated
here (other keys and operators, ``NotAction`` and the like) is unknown: ``None``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.preflight.event_patterns import Verdict, all_of, any_of

_SERVICE = "events.amazonaws.com"
_ACTION = "sqs:sendmessage"
_EXACT = frozenset({"stringequals", "bool"})
_PATTERNS = frozenset({"stringlike", "arnequals", "arnlike"})  # ArnEquals and ArnLike behave identically


def may_send(policy: str, queue_arn: str, rule_arn: str) -> Verdict:
    """
    :param policy: JSON, as GetQueueAttributes answers; empty without a policy, which lets no service send.
    """
    if not policy:
        return False
    try:
        parsed = json.loads(policy)
    except ValueError:
        return None
    statements = _many(parsed.get("Statement")) if isinstance(parsed, Mapping) else []
    if not all(isinstance(each, Mapping) for each in statements):
        return None
    context = {
        "aws:sourcearn": rule_arn,
        "aws:sourceaccount": rule_arn.split(":")[4] if rule_arn.count(":") > 4 else "",
        "aws:securetransport": "true",
        "aws:principalisawsservice": "true",
        "aws:principalservicename": _SERVICE,
    }
    allowed = any_of(_applies(each, queue_arn, context) for each in statements if each.get("Effect") == "Allow")
    denied = any_of(_applies(each, queue_arn, context) for each in statements if each.get("Effect") == "Deny")
    return all_of([allowed, None if denied is None else not denied])


def _applies(statement: Mapping[str, Any], queue_arn: str, context: Mapping[str, str]) -> Verdict:
    if {"NotPrincipal", "NotAction", "NotResource"} & statement.keys():
        return None
    principal = statement.get("Principal")
    services = _many(principal.get("Service")) + _many(principal.get("AWS")) if isinstance(principal, Mapping) else []
    return all_of(
        [
            principal == "*" or "*" in services or _SERVICE in services,
            any(_like(str(action).lower(), _ACTION) for action in _many(statement.get("Action"))),
            any(_like(str(each), queue_arn) for each in _many(statement.get("Resource"))),
            _holds(statement.get("Condition") or {}, context),
        ]
    )


def _holds(conditions: Any, context: Mapping[str, str]) -> Verdict:
    if not isinstance(conditions, Mapping):
        return None
    found: list[Verdict] = []
    for operator, keys in conditions.items():
        kind = str(operator).lower().removesuffix("ifexists")
        for key, wanted in keys.items() if isinstance(keys, Mapping) else ():
            value = context.get(str(key).lower())
            if value is None or kind not in _EXACT | _PATTERNS:
                found.append(None)
            elif kind in _EXACT:
                found.append(value in [str(each).lower() if kind == "bool" else str(each) for each in _many(wanted)])
            else:
                found.append(any(_like(str(each), value) for each in _many(wanted)))
    return all_of(found)


def _many(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _like(pattern: str, value: str) -> bool:
    """``*`` and ``?`` as in IAM's policies."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, value, re.DOTALL) is not None
