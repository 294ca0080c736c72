"""Fault ``request-faults``: API failures, read from the fault board at every request.

``request-faults`` holds ``{"rules": [...]}`` (or is one rule itself). A rule: ``{verb, resource, kind, name, namespace,
subresource, userAgent, status, message, reason, retryAfter, latency, cut, count, after}``. All match fields are
optional, a name may end in ``*``; ``after`` skips the first N matches, ``count`` limits how often the rule applies,
``latency`` is real seconds, ``cut`` closes the connection without an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sandbox.faults import FaultBoard

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True)
class Injection:
    """What to do to one request."""

    latency: float
    cut: bool
    status: int | None
    reason: str
    message: str
    retry_after: int | None


@dataclass(frozen=True)
class Target:
    """The request, as far as rules look at it."""

    verb: str
    resource: str
    kind: str
    subresource: str
    namespace: str
    name: str
    user_agent: str


@dataclass
class RequestFaults:
    """Applies the rules and remembers how often each one matched."""

    board: FaultBoard
    _matches: dict[str, int] = field(default_factory=dict)

    def find(self, target: Target) -> Injection | None:
        params = self.board.active("request-faults")
        if not params:
            self._matches.clear()
            return None
        rules: list[dict[str, Any]] = params.get("rules", [params] if params else [])
        for index, rule in enumerate(rules):
            if not _applies(rule, target):
                continue
            key = f"{index}:{sorted(rule.items(), key=lambda item: item[0])}"
            seen = self._matches[key] = self._matches.get(key, 0) + 1
            seen -= int(rule.get("after", 0))
            if seen <= 0 or (rule.get("count") is not None and seen > int(rule["count"])):
                continue
            status = rule.get("status")
            retry_after = rule.get("retryAfter")
            return Injection(
                latency=float(rule.get("latency", 0)),
                cut=bool(rule.get("cut")),
                status=None if status is None else int(status),
                reason=str(rule.get("reason", _REASONS.get(int(status or 0), ""))),
                message=str(rule.get("message", "injected by the sandbox")),
                retry_after=None if retry_after is None else int(retry_after),
            )
        return None


def _applies(rule: dict[str, Any], target: Target) -> bool:
    if "userAgent" in rule and rule["userAgent"] not in target.user_agent:
        return False
    wanted = {
        "verb": target.verb,
        "resource": target.resource,
        "kind": target.kind,
        "subresource": target.subresource,
        "namespace": target.namespace,
    }
    for key, value in wanted.items():
        if key in rule and rule[key] not in ("*", value):
            return False
    name = rule.get("name")
    if name is None:
        return True
    return target.name.startswith(name[:-1]) if str(name).endswith("*") else target.name == name
