"""How far a run has climbed down a pool's ladder: what it has tried, and what came of it. Pure.

Kept in the waiting task's state, so that a new try continues where a killed one stopped, and told in log, XCom, report
and asset event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from gpu_fleet.core.aws.costs import Price, PriceList
from gpu_fleet.core.capacity.ladder import Step, is_launched, made_for_placeholder
from gpu_fleet.core.kubernetes.names import LABEL_CAPACITY_TYPE, LABEL_INSTANCE_TYPE, LABEL_ZONE
from gpu_fleet.core.kubernetes.objects import Object, labels_of, name_of

#: Characters of EC2's words that an attempt keeps; Karpenter cuts them after 300.
_SAID = 600
#: NodeClaims of an attempt that a sentence names.
_NAMED = 3


class Result(StrEnum):
    """What came of an attempt."""

    TRYING = "Trying"
    GIVEN_UP = "GivenUp"
    PARTLY = "Partly"
    CAPACITY = "Capacity"


@dataclass(frozen=True)
class Bought:
    """An instance that EC2 launched in an attempt."""

    claim: str
    instance_type: str
    capacity_type: str
    zone: str
    price: Price

    @classmethod
    def of(cls, claim: Object, prices: PriceList) -> Bought:
        labels = labels_of(claim)
        kind, capacity = labels.get(LABEL_INSTANCE_TYPE, ""), labels.get(LABEL_CAPACITY_TYPE, "")
        return cls(name_of(claim), kind, capacity, labels.get(LABEL_ZONE, ""), prices.instance(kind, capacity))

    def to_json(self) -> dict[str, Any]:
        return {
            "nodeClaim": self.claim,
            "instanceType": self.instance_type,
            "capacityType": self.capacity_type,
            "zone": self.zone,
            "usdPerHour": self.price.usd,
            "usdPerHourIsAtMost": self.price.at_most,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Bought:
        return cls(
            str(value["nodeClaim"]),
            str(value["instanceType"]),
            str(value["capacityType"]),
            str(value["zone"]),
            Price(value.get("usdPerHour"), bool(value.get("usdPerHourIsAtMost"))),
        )


@dataclass(frozen=True)
class Attempt:
    """One rung, tried once.

    :ivar rung: its number, from 1.
    :ivar what: its choice, in words.
    :ivar began: epoch seconds.
    :ivar ended: epoch seconds; ``None``: not yet.
    :ivar reason: why it was given up; empty otherwise.
    :ivar said: the words of EC2 and Karpenter.
    :ivar price: list price per node and hour of the rung's cheapest type.
    :ivar first: that of the first rung.
    """

    rung: int
    what: str
    began: float
    price: Price
    first: Price
    ended: float | None = None
    result: Result = Result.TRYING
    reason: str = ""
    said: str = ""
    bought: tuple[Bought, ...] = ()

    def more(self) -> str:
        """The price per node and hour against the first rung's, in words; empty for the first rung.

        Of what EC2 launched the dearest counts.
        """
        price = max((each.price for each in self.bought if each.price.usd), key=_usd, default=self.price)
        if self.rung == 1 or price.usd is None or self.first.usd is None:
            return ""
        difference = price.usd - self.first.usd
        if self.first.at_most and not price.at_most:
            return f"at least {difference:+.2f} USD/h against the first rung"
        about = "about " if price.at_most else ""
        return f"{about}{difference:+.2f} USD/h against the first rung"

    def __str__(self) -> str:
        took = "" if self.ended is None else f" for {self.ended - self.began:.0f} s"
        got = ""
        if self.bought:
            names = ", ".join(f"{each.claim} ({each.instance_type} in {each.zone})" for each in self.bought[:_NAMED])
            more = f" and {len(self.bought) - _NAMED} more" if len(self.bought) > _NAMED else ""
            got = f": EC2 launched {len(self.bought)}: {names}{more}"
        why = f": {self.reason}: {self.said}" if self.reason else ""
        return f"rung {self.rung} ({self.what}, {self.price}){took}{got}{why}"

    def to_json(self) -> dict[str, Any]:
        return {
            "rung": self.rung,
            "what": self.what,
            "began": self.began,
            "ended": self.ended,
            "from": _iso(self.began),
            "to": _iso(self.ended),
            "result": str(self.result),
            "reason": self.reason,
            "said": self.said,
            "bought": [each.to_json() for each in self.bought],
            "usdPerHour": self.price.usd,
            "usdPerHourIsAtMost": self.price.at_most,
            "firstUsdPerHour": self.first.usd,
            "firstUsdPerHourIsAtMost": self.first.at_most,
            "difference": self.more(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Attempt:
        return cls(
            rung=int(value["rung"]),
            what=str(value["what"]),
            began=float(value["began"]),
            ended=None if value.get("ended") is None else float(value["ended"]),
            price=Price(value.get("usdPerHour"), bool(value.get("usdPerHourIsAtMost"))),
            first=Price(value.get("firstUsdPerHour"), bool(value.get("firstUsdPerHourIsAtMost"))),
            result=Result(value["result"]),
            reason=str(value.get("reason", "")),
            said=str(value.get("said", "")),
            bought=tuple(Bought.from_json(each) for each in value.get("bought") or ()),
        )


@dataclass(frozen=True)
class Climb:
    """
    :ivar of: how many rungs the ladder has.
    :ivar attempts: in their order; the last one is under way unless it has ended.
    :ivar before: names of the NodeClaims that were there before the first attempt.
    :ivar heard: UIDs of the events about a lack of capacity that are older than the attempt under way.
    :ivar content_with: nodes that are waited for after the last rung, where fewer than wanted are enough.
    """

    of: int
    attempts: tuple[Attempt, ...]
    before: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()
    content_with: int | None = None

    @property
    def now(self) -> Attempt:
        return self.attempts[-1]

    @property
    def climbs(self) -> bool:
        """Whether the last attempt is under way."""
        return self.now.ended is None

    @property
    def lower(self) -> bool:
        """Whether capacity came from another rung than the first."""
        return any(each.rung > 1 and each.bought for each in self.attempts)

    def begin(self, step: Step, now: float, prices: PriceList, first: Step, heard: Iterable[str]) -> Climb:
        """The attempt of a rung begins; the same again if it has begun."""
        if self.attempts and self.climbs and self.now.rung == step.number:
            return self
        fresh = Attempt(step.number, str(step), now, step.price(prices), first.price(prices))
        return replace(self, attempts=(*self.attempts, fresh), heard=tuple(sorted(heard)))

    def end(
        self, result: Result, now: float, claims: Iterable[Object], prices: PriceList, reason: str = "", said: str = ""
    ) -> Climb:
        """The attempt under way ends, with what EC2 has launched in it."""
        if not self.climbs:
            return self
        known = {*self.before, *(each.claim for done in self.attempts for each in done.bought)}
        bought = tuple(
            Bought.of(claim, prices)
            for claim in sorted(claims, key=name_of)
            if made_for_placeholder(claim) and is_launched(claim) and name_of(claim) not in known
        )
        if result is Result.GIVEN_UP and bought:
            result = Result.PARTLY
        over = replace(self.now, ended=now, result=result, reason=reason, said=said[:_SAID], bought=bought)
        return replace(self, attempts=(*self.attempts[:-1], over))

    def account(self) -> str:
        """All that was tried, in one sentence."""
        return "; ".join(map(str, self.attempts))

    def summary(self) -> str:
        """That the capacity came from a lower rung, and why; empty if it did not."""
        if not self.lower:
            return ""
        used = [each for each in self.attempts if each.bought]
        told = [f"{len(each.bought)} node(s) on rung {each.rung} of {self.of}: {each.what}" for each in used]
        more = used[-1].more()
        given_up = [f"rung {each.rung} ({each.what}): {each.reason}" for each in self.attempts if each.reason]
        before = f"; given up: {', '.join(given_up)}" if given_up else ""
        return f"capacity came on a lower rung: {'; '.join(told)}{f' ({more})' if more else ''}{before}"

    def to_json(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "attempts": [each.to_json() for each in self.attempts],
            "before": list(self.before),
            "heard": list(self.heard),
            "contentWith": self.content_with,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Climb:
        content = value.get("contentWith")
        return cls(
            of=int(value["of"]),
            attempts=tuple(Attempt.from_json(each) for each in value["attempts"]),
            before=tuple(map(str, value.get("before") or ())),
            heard=tuple(map(str, value.get("heard") or ())),
            content_with=None if content is None else int(content),
        )


def _usd(price: Price) -> float:
    return price.usd or 0.0


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
