"""What the package's own queue for interruptions needs: to be its own, a dead-letter queue, rules that fill it. Pure.

``include/cloudformation/interruptions.yaml`` creates all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.preflight.event_patterns import ANNOUNCEMENTS, Announcement, Verdict, any_of, delivers
from gpu_fleet.core.preflight.facts import SHOWN, Prerequisite, State, Unseen, met, unknown
from gpu_fleet.core.preflight.queue_policy import may_send

#: The id of the target in Karpenter's own rules: of its CloudFormation (aws/karpenter-provider-aws v1.14.1
#: ``getting-started-with-karpenter/cloudformation.yaml``), which Terraform modules copied.
KARPENTERS_TARGET = "KarpenterInterruptionQueueTarget"
DEPLOY = "deploy include/cloudformation/interruptions.yaml (guide: Spot interruptions)"

_OWN = "interruption queue of gpu-fleet"
_DEAD_LETTERS = "dead-letter queue of the interruption queue"
_RULES = "rules of the interruption queue"
_POLICY = "policy of the interruption queue"


@dataclass(frozen=True)
class RuleFacts:
    """A rule of EventBridge with our queue as a target.

    :ivar pattern: JSON; empty for a schedule.
    :ivar target_ids: ids of the targets that are our queue.
    :ivar transformed: such a target replaces the event by something else (Input, InputPath, InputTransformer).
    """

    name: str
    arn: str
    enabled: bool = True
    pattern: str = ""
    target_ids: tuple[str, ...] = ()
    transformed: bool = False


@dataclass(frozen=True)
class QueueFacts:
    """What was found; ``Unseen`` where the look failed, ``None`` where none was made.

    :ivar exists: whether there is a queue of that name in the account and region.
    :ivar attributes: the queue's, as SQS names them: ``QueueArn``, ``Policy``, ``RedrivePolicy``.
    :ivar dead_letters: whether the queue that ``RedrivePolicy`` names exists.
    :ivar rules: those that target it; single ones may be unseen, because permission is given per rule.
    """

    exists: bool | Unseen | None = None
    attributes: Mapping[str, str] | Unseen | None = None
    dead_letters: bool | Unseen | None = None
    rules: Sequence[RuleFacts | Unseen] | Unseen | None = None


@dataclass
class _Rules:
    """The rules that deliver samples of one announcement, and those of which it cannot be told."""

    unsure: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    transformed: list[str] = field(default_factory=list)


def judge_queue(name: str | None, karpenters: str | None, region: str, facts: QueueFacts) -> list[Prerequisite]:
    """Every prerequisite of the queue; none if the spec names no queue.

    :param name: of the package's queue (``interruptions.queue``).
    :param karpenters: of Karpenter's (``karpenter.interruptionQueue``).
    """
    if not name:
        return []
    if name == karpenters:
        return [_shared(f"{name} is karpenter.interruptionQueue")]
    if facts.exists is None or isinstance(facts.exists, Unseen):
        return [unknown(_OWN, facts.exists or Unseen("there was no answer"))]
    if not facts.exists:
        return [
            Prerequisite(
                _OWN,
                State.MISSING,
                f"there is no SQS queue {name} in {region}, so no interruption would be noticed",
                f"correct interruptions.queue, or {DEPLOY}",
            )
        ]
    rules = facts.rules if isinstance(facts.rules, Sequence) else ()
    theirs = [rule.name for rule in rules if isinstance(rule, RuleFacts) and KARPENTERS_TARGET in rule.target_ids]
    if theirs:
        return [_shared(f"{name} is the target {KARPENTERS_TARGET} of rule {_names(theirs)}")]
    if facts.attributes is None or isinstance(facts.attributes, Unseen):
        blind = facts.attributes or Unseen("there was no answer")
        return [met(_OWN, f"{name} exists"), *(unknown(each, blind) for each in (_DEAD_LETTERS, _RULES, _POLICY))]
    return [
        met(_OWN, f"{name} exists"),
        _dead_letters(facts.attributes, facts.dead_letters, region),
        *_announcements(str(facts.attributes.get("QueueArn")), facts.rules),
        *_policy(facts.attributes, facts.rules),
    ]


def dead_letter_target(attributes: Mapping[str, str]) -> str:
    """The ARN of the dead-letter queue; empty without one."""
    try:
        redrive: Any = json.loads(attributes.get("RedrivePolicy") or "{}")
    except ValueError:
        return ""
    return str(redrive.get("deadLetterTargetArn") or "") if isinstance(redrive, Mapping) else ""


def _shared(why: str) -> Prerequisite:
    return Prerequisite(
        _OWN,
        State.MISSING,
        f"{why}: each message would reach only one of the two, and Karpenter would miss interruptions",
        f"give gpu-fleet a queue of its own: {DEPLOY}, and name that in interruptions.queue",
    )


def _dead_letters(attributes: Mapping[str, str], exists: bool | Unseen | None, region: str) -> Prerequisite:
    arn = dead_letter_target(attributes)
    if not arn:
        return Prerequisite(
            _DEAD_LETTERS,
            State.MISSING,
            "the queue has no RedrivePolicy, so messages that cannot be read would come back for ever",
            DEPLOY,
        )
    name = arn.rpartition(":")[2]
    if exists is None or isinstance(exists, Unseen):
        return unknown(_DEAD_LETTERS, exists or Unseen("there was no answer"))
    if not exists:
        return Prerequisite(
            _DEAD_LETTERS,
            State.MISSING,
            f"the queue's RedrivePolicy names {name}, and there is no such queue in {region}",
            DEPLOY,
        )
    return met(_DEAD_LETTERS, f"{name} exists")


# --- rules -----------------------------------------------------------------------------------------------------------
def _announcements(queue_arn: str, rules: Sequence[RuleFacts | Unseen] | Unseen | None) -> Iterator[Prerequisite]:
    """One prerequisite per kind of event."""
    if rules is None or isinstance(rules, Unseen):
        yield unknown(_RULES, rules or Unseen("there was no answer"))
        return
    parts = queue_arn.split(":")
    region, account = (parts[3], parts[4]) if len(parts) > 5 else ("", "")
    for announcement in ANNOUNCEMENTS:
        yield _announcement(announcement, account, region, rules)


def _announcement(
    announcement: Announcement, account: str, region: str, rules: Sequence[RuleFacts | Unseen]
) -> Prerequisite:
    name = f"rule for {announcement.detail_type}"
    seen = [rule for rule in rules if isinstance(rule, RuleFacts)]
    blind = next((rule for rule in rules if isinstance(rule, Unseen)), None)
    lacking: list[str] = []
    unsure = _Rules()
    for sample in announcement.samples(account, region):
        matching = {rule.name: delivers(rule.pattern, sample) for rule in seen}
        if any_of(_whole(rule, matching[rule.name]) for rule in seen):
            continue
        lacking.append(str(sample["detail"].get("state", "")))
        unsure.unsure += [rule.name for rule in seen if _whole(rule, matching[rule.name]) is None]
        unsure.disabled += [rule.name for rule in seen if matching[rule.name] and not rule.enabled]
        unsure.transformed += [rule.name for rule in seen if matching[rule.name] and rule.transformed]
    if not lacking:
        return met(name, "it is delivered")
    states = [state for state in lacking if state]
    what = announcement.detail_type
    if states and len(states) < len(announcement.details):
        what += f" of the states {', '.join(states)}"
    if unsure.unsure:
        return Prerequisite(
            name,
            State.UNKNOWN,
            f"whether rule {_names(unsure.unsure)} delivers {what} depends on parts of its pattern that are not "
            "evaluated",
            "check it yourself",
        )
    if blind:
        return unknown(name, blind)
    return Prerequisite(name, State.MISSING, _why(what, unsure, announcement.missed), _cure(unsure))


def _whole(rule: RuleFacts, matches: Verdict) -> Verdict:
    """Whether the rule delivers the event, as it is, in the state in which the rule is now."""
    return matches if rule.enabled and not rule.transformed else False


def _why(what: str, rules: _Rules, missed: str) -> str:
    if rules.disabled:
        return f"rule {_names(rules.disabled)} for {what} is disabled; {missed}"
    if rules.transformed:
        return (
            f"rule {_names(rules.transformed)} delivers {what} in another form (its target has Input, InputPath or "
            f"InputTransformer); {missed}"
        )
    return f"no rule delivers {what}; {missed}"


def _cure(rules: _Rules) -> str:
    if rules.disabled:
        return f"aws events enable-rule --name {rules.disabled[0]}"
    if rules.transformed:
        return "let the target receive the matched event, unchanged"
    return DEPLOY


# --- the queue's policy ----------------------------------------------------------------------------------------------
def _policy(
    attributes: Mapping[str, str], rules: Sequence[RuleFacts | Unseen] | Unseen | None
) -> Iterator[Prerequisite]:
    """Whether every rule that is known may send; nothing where there is no rule, which is said already."""
    seen = [rule for rule in rules if isinstance(rule, RuleFacts)] if isinstance(rules, Sequence) else []
    if not seen:
        blind = rules if isinstance(rules, Unseen) else next(iter(rules or ()), None)
        if isinstance(blind, Unseen):
            yield unknown(_POLICY, blind)
        return
    text, queue_arn = attributes.get("Policy") or "", str(attributes.get("QueueArn"))
    verdicts = {rule.name: may_send(text, queue_arn, rule.arn) for rule in seen}
    refused = [name for name, verdict in verdicts.items() if verdict is False]
    unsure = [name for name, verdict in verdicts.items() if verdict is None]
    if refused:
        yield Prerequisite(
            _POLICY,
            State.MISSING,
            f"it does not let events.amazonaws.com send for rule {_names(refused)}, so nothing of it would arrive",
            DEPLOY,
        )
    elif unsure:
        yield Prerequisite(
            _POLICY,
            State.UNKNOWN,
            f"whether it lets events.amazonaws.com send for rule {_names(unsure)} depends on parts of it that are not "
            "evaluated",
            "check it yourself",
        )
    else:
        yield met(_POLICY, "it lets EventBridge send")


def _names(names: Sequence[str]) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{', '.join(found[:SHOWN])}{more}"
