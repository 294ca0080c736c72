"""What a gate says when it looks: Ready, Progressing or Failed, always with a reason.

The shape follows Kubernetes conditions: a CamelCase reason for programs, a sentence that names the object for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.errors import GateBlind, GateFailed, GateRefused, GpuFleetError


class Phase(StrEnum):
    """The three outcomes of a look."""

    READY = "Ready"
    PROGRESSING = "Progressing"
    FAILED = "Failed"


@dataclass(frozen=True)
class Verdict:
    """One look at the observed state.

    :ivar phase: the outcome.
    :ivar reason: CamelCase reason.
    :ivar message: a sentence that names the object and says what is missing or what failed.
    :ivar permanent: for FAILED: a retry cannot help.
    :ivar data: JSON-able findings for the next task (node names, counts); small.
    :ivar blind: the gate could not look, so this says nothing about the objects.
    """

    phase: Phase
    reason: str
    message: str
    permanent: bool = False
    data: dict[str, Any] | None = None
    blind: bool = False

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY

    @property
    def failed(self) -> bool:
        return self.phase is Phase.FAILED

    def error(self) -> GpuFleetError:
        """The typed error of a FAILED verdict."""
        if self.blind:
            return GateBlind(self.message, reason=self.reason)
        error = (GateRefused if self.permanent else GateFailed)(self.message, reason=self.reason)
        error.findings = dict(self.data or {})
        return error

    def to_json(self) -> dict[str, Any]:
        return {
            "phase": self.phase.value,
            "reason": self.reason,
            "message": self.message,
            "permanent": self.permanent,
            "data": self.data,
            "blind": self.blind,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Verdict:
        return cls(
            phase=Phase(value["phase"]),
            reason=value["reason"],
            message=value["message"],
            permanent=bool(value.get("permanent", False)),
            data=value.get("data"),
            blind=bool(value.get("blind", False)),
        )


def ready(reason: str, message: str, **data: Any) -> Verdict:
    """A READY verdict."""
    return Verdict(Phase.READY, reason, message, data=data or None)


def progressing(reason: str, message: str, **data: Any) -> Verdict:
    """A PROGRESSING verdict: not yet, and why."""
    return Verdict(Phase.PROGRESSING, reason, message, data=data or None)


def failed(reason: str, message: str, *, permanent: bool = True, **data: Any) -> Verdict:
    """A FAILED verdict: waiting longer does not help."""
    return Verdict(Phase.FAILED, reason, message, permanent=permanent, data=data or None)


def unseen(reason: str, message: str, *, permanent: bool) -> Verdict:
    """The verdict of a gate that could not look: FAILED if waiting does not cure that, else PROGRESSING."""
    return Verdict(Phase.FAILED if permanent else Phase.PROGRESSING, reason, message, permanent, blind=True)


def combine(verdicts: list[Verdict], *, nothing: Verdict) -> Verdict:
    """The verdict over several objects: the first FAILED, else the first PROGRESSING, else READY.

    :param nothing: what to say of an empty list; a gate is never true of nothing, so this must not be READY.
    """
    if nothing.ready:
        raise ValueError("a gate must not be Ready of nothing")
    if not verdicts:
        return nothing
    for phase in (Phase.FAILED, Phase.PROGRESSING):
        for verdict in verdicts:
            if verdict.phase is phase:
                return verdict
    if len(verdicts) == 1:
        return verdicts[0]
    merged: dict[str, Any] = {}
    for verdict in verdicts:
        merged.update(verdict.data or {})
    return Verdict(Phase.READY, verdicts[0].reason, "; ".join(v.message for v in verdicts), data=merged or None)
