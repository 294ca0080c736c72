"""What a drain knows of each pod, for its report and for the try that follows a killed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What has become of a pod so far."""

    WAITING = "Waiting"  # nothing was asked for yet, or everything so far was refused
    ASKED = "Asked"  # a request was about to be sent: all that is known of it after a killed try
    EVICTED = "Evicted"
    DELETED = "Deleted"  # instead of an eviction (drain.disableEviction)
    FORCED = "Forced"  # deleted directly, because its time had come
    TERMINATING = "Terminating"  # not by this drain
    TERMINATED = "Terminated"  # the same, and gone
    GONE = "Gone"  # before anything was asked for
    LEFT = "Left"
    LOST = "Lost"  # it ended with its node
    STUCK = "StuckTerminating"  # its containers have ended, and its object stays


#: Requests of this drain that the server has granted.
GRANTED = frozenset({Outcome.EVICTED, Outcome.DELETED, Outcome.FORCED})


@dataclass
class PodRecord:
    """One pod of the report. Moments are epoch seconds by the cluster's clock.

    :ivar rule: the reason of the rule that decided how the pod is treated (``core/drain/rules.py``).
    :ivar note: that rule's sentence, without the pod's name: for example, what is lost with the pod.
    :ivar granted: the outcome of the request of this drain that the server has granted; empty without one.
    :ivar reason: why it was forced, left or lost, in words.
    :ivar asked_at: when it was first asked to go.
    :ivar refused: how often that was refused, or got no answer.
    :ivar words: the server's, of the last refusal.
    :ivar gone_at: when it was seen to be gone.
    :ivar grace: seconds between its SIGTERM and its SIGKILL.
    :ivar deadline: when its node ends.
    :ivar gpus: how many GPUs, or shares of one, it holds.
    :ivar workload: what would start it again: ``Kind/name``; empty for a pod without a controller.
    :ivar owner_uid: of that controller.
    :ivar started_at: when it began to run; ``None`` if it never did.
    """

    namespace: str
    name: str
    uid: str
    node: str
    rule: str
    note: str = ""
    outcome: Outcome = Outcome.WAITING
    granted: str = ""
    reason: str = ""
    asked_at: float | None = None
    refused: int = 0
    words: str = ""
    gone_at: float | None = None
    grace: float = 0.0
    deadline: float | None = None
    gpus: int = 0
    workload: str = ""
    owner_uid: str = ""
    started_at: float | None = None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome.value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PodRecord:
        """The record that :meth:`to_json` has written; fields of another version of the package are passed over."""
        known = {each.name for each in fields(cls)}
        found = {name: given for name, given in value.items() if name in known}
        return cls(**{**found, "outcome": Outcome(found.get("outcome", Outcome.WAITING))})

    def leave(self, moment: float) -> None:
        """The pod is gone. After a killed try it is unknown whether our request ended it: it counts as ours."""
        self.gone_at = moment
        self.outcome = Outcome(self.granted) if self.outcome is Outcome.STUCK and self.granted else _GONE[self.outcome]

    def grant(self, outcome: Outcome, reason: str = "") -> None:
        """The server has granted a request of this drain."""
        self.outcome, self.granted = outcome, outcome.value
        self.reason = reason or self.reason


#: What a pod's outcome becomes when it is gone.
_GONE = {
    Outcome.WAITING: Outcome.GONE,
    Outcome.ASKED: Outcome.EVICTED,
    Outcome.TERMINATING: Outcome.TERMINATED,
    Outcome.STUCK: Outcome.TERMINATED,
    **{
        each: each
        for each in (
            Outcome.EVICTED,
            Outcome.DELETED,
            Outcome.FORCED,
            Outcome.TERMINATED,
            Outcome.GONE,
            Outcome.LEFT,
            Outcome.LOST,
        )
    },
}
