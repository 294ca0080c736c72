"""Looks up the package's own queue for interruptions, and the rules of EventBridge that fill it; changes nothing."""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.preflight.facts import Unseen
from gpu_fleet.core.preflight.interruption_queue import QueueFacts, RuleFacts, dead_letter_target
from gpu_fleet.operators.preflight.asking import Asking

#: What is asked of the queue.
ATTRIBUTES = ["QueueArn", "Policy", "RedrivePolicy"]
#: What makes a target receive something else than the event (EventBridge API, PutTargets).
TRANSFORMING = ("Input", "InputPath", "InputTransformer")


class QueueLook(Asking):
    """Two calls for the queue, one for its dead-letter queue, one for the rules, and two for each rule."""

    def __init__(self, beside: Asking) -> None:
        """
        :param beside: whose session is used, and what it has found to be silent.
        """
        super().__init__(beside._aws)
        self._silent = beside._silent

    def facts(self, name: str) -> QueueFacts:
        url = self._url(name)
        if not url or isinstance(url, Unseen):
            return QueueFacts(exists=url if isinstance(url, Unseen) else False)
        found = self._ask(
            "sqs", "GetQueueAttributes", "get_queue_attributes", QueueUrl=url, AttributeNames=list(ATTRIBUTES)
        )
        if isinstance(found, Unseen):
            return QueueFacts(exists=True, attributes=found)
        attributes = {str(key): str(value) for key, value in (found.get("Attributes") or {}).items()}
        return QueueFacts(
            exists=True,
            attributes=attributes,
            dead_letters=self._dead_letters(attributes),
            rules=self._rules(attributes["QueueArn"]),
        )

    def _url(self, name: str) -> str | Unseen:
        """Empty if there is no such queue."""
        found = self._ask("sqs", "GetQueueUrl", "get_queue_url", absent={}, QueueName=name)
        return found if isinstance(found, Unseen) else str(found.get("QueueUrl") or "")

    def _dead_letters(self, attributes: dict[str, str]) -> bool | Unseen | None:
        arn = dead_letter_target(attributes)
        if not arn:
            return None
        url = self._url(arn.rpartition(":")[2])
        return url if isinstance(url, Unseen) else bool(url)

    def _rules(self, queue_arn: str) -> list[RuleFacts | Unseen] | Unseen:
        names = self._list(
            "events", "ListRuleNamesByTarget", "list_rule_names_by_target", "RuleNames", TargetArn=queue_arn
        )
        if isinstance(names, Unseen):
            return names
        found = [self._rule(str(name), queue_arn) for name in names]
        return [each for each in found if each is not None]

    def _rule(self, name: str, queue_arn: str) -> RuleFacts | Unseen | None:
        """``None`` if the rule has been deleted meanwhile, or its target has."""
        rule = self._ask("events", "DescribeRule", "describe_rule", absent={}, Name=name)
        if isinstance(rule, Unseen) or not rule:
            return rule if isinstance(rule, Unseen) else None
        every = self._list("events", "ListTargetsByRule", "list_targets_by_rule", "Targets", Rule=name)
        if isinstance(every, Unseen):
            return every
        targets: list[dict[str, Any]] = [each for each in every if each.get("Arn") == queue_arn]
        if not targets:
            return None
        return RuleFacts(
            name=name,
            arn=str(rule["Arn"]),
            enabled=rule.get("State") != "DISABLED",
            pattern=str(rule.get("EventPattern") or ""),
            target_ids=tuple(str(each["Id"]) for each in targets),
            # If one of several targets receives the event itself, the queue does.
            transformed=all(any(each.get(key) for key in TRANSFORMING) for each in targets),
        )
