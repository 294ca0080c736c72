"""A pod under a drain: what was observed of it, what was asked, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.drain.actions import Limits, PodState, PodView
from gpu_fleet.core.drain.answers import DONE, LONGEST_PAUSE_S, Answer, Word, pause_s
from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.drain.rules import DrainRules, Fate, judge_pod
from gpu_fleet.core.kubernetes.objects import deleting, epoch, gpus_requested
from gpu_fleet.core.kubernetes.pod_end import controller_of, grace_of, has_stopped, is_finished

OTHERS = "was not terminated by this drain"


@dataclass
class Tracked:
    """One pod that the drain waits for.

    :ivar limits: those of its node.
    :ivar version: raised by every observation and answer; what was decided for an older one is void.
    :ivar in_flight: a request is under way.
    :ivar unsure: a request without a known answer, perhaps of a killed try, may have been executed.
    """

    record: PodRecord
    limits: Limits
    state: PodState = PodState.RUNNING
    since: float = 0.0
    ends_by: float | None = None
    version: int = 0
    in_flight: bool = False
    unsure: bool = False
    settled: bool = False
    next_try: float = 0.0
    next_deletion: float = 0.0

    def view(self) -> PodView:
        return PodView(
            self.state,
            self.record.grace,
            self.since,
            self.ends_by,
            self.record.refused,
            self.record.words,
            self.next_try,
            self.next_deletion,
        )

    def observe(self, pod: Mapping[str, Any], now: float) -> None:
        """The pod as a list or a watch has shown it."""
        self.version += 1
        if deleting(pod):
            self._ended_by_others()
            state = PodState.STOPPED if has_stopped(pod) else PodState.TERMINATING
            self.ends_by = epoch(pod["metadata"].get("deletionTimestamp"))
            if self.record.outcome is Outcome.WAITING:
                self.record.outcome, self.record.reason = Outcome.TERMINATING, OTHERS
            elif self.record.outcome is Outcome.ASKED and not self.in_flight:
                self.record.grant(Outcome.EVICTED)
        elif self.state is PodState.ACCEPTED:
            return
        else:
            state = PodState.FINISHED if is_finished(pod) else PodState.RUNNING
        self._become(state, now)

    def node_gone(self, now: float) -> None:
        if self.state not in (PodState.GONE, PodState.STOPPED):
            self.version += 1
            self._become(PodState.NODE_GONE, now)

    def gone(self, now: float) -> None:
        self.version += 1
        self._become(PodState.GONE, now)
        if self.record.gone_at is None:
            self._ended_by_others()
            self.record.leave(now)

    def announce(self, now: float) -> None:
        """What is stored of a pod before it is asked: that it is about to be."""
        self.record.asked_at = self.record.asked_at or now
        if self.record.outcome is Outcome.WAITING:
            self.record.outcome = Outcome.ASKED

    def asking(self, now: float) -> None:
        """A request is about to be sent."""
        self.in_flight = True
        self.announce(now)

    def _ended_by_others(self) -> None:
        """A pod that ends although no request has been sent for it since it was last known: Karpenter, a person."""
        if self.record.outcome is Outcome.ASKED and not (self.in_flight or self.unsure):
            self.record.outcome = Outcome.WAITING

    def answered(self, answer: Answer, now: float, chance: float, *, outcome: Outcome, why: str) -> None:
        """What the server has said.

        :param outcome: what the pod's outcome is if the request was granted.
        :param chance: random, for the next pause.
        """
        self.version += 1
        self.in_flight = False
        if self.state is PodState.GONE:
            if answer.word is Word.ACCEPTED:
                self.record.grant(outcome, why)
            elif not (self.unsure or self.record.granted) and answer.word is not Word.UNAVAILABLE:
                self.record.outcome = Outcome.GONE  # it was seen to go while our request was under way, in vain
            return
        if answer.word is Word.GONE:
            self.gone(now)
        elif answer.word in DONE:
            self.record.grant(outcome, why)
            if self.state in (PodState.RUNNING, PodState.FINISHED):
                self._become(PodState.ACCEPTED, now)
        else:
            self._refused(answer, now, chance, deleted=outcome is Outcome.FORCED)

    def _refused(self, answer: Answer, now: float, chance: float, *, deleted: bool) -> None:
        record = self.record
        record.refused += 1
        record.words = answer.message
        self.unsure = self.unsure or answer.word is Word.UNAVAILABLE
        if record.outcome is Outcome.ASKED and not self.unsure:
            record.outcome = Outcome.WAITING
            if self.state in (PodState.TERMINATING, PodState.STOPPED):
                record.outcome, record.reason = Outcome.TERMINATING, OTHERS
        pause = LONGEST_PAUSE_S if answer.word is Word.DENIED else pause_s(record.refused, answer.retry_after, chance)
        if deleted:
            # The moment for a pod's grace to begin has come: there is no time for long pauses.
            self.next_deletion = now + min(pause, pause_s(1, None, chance))
        else:
            self.next_try = now + pause

    def _become(self, state: PodState, now: float) -> None:
        if state is not self.state or not self.since:
            self.state, self.since = state, now


def record_of(pod: Mapping[str, Any], rules: DrainRules, limits: Limits, grace_asked: int) -> tuple[PodRecord, Fate]:
    """The record of a pod that is seen for the first time, and what the rules say of it.

    :param grace_asked: ``drain.gracePeriod``.
    """
    metadata, verdict, owner = pod["metadata"], judge_pod(pod, rules), controller_of(pod)
    record = PodRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
        rule=verdict.reason,
        note=verdict.message,
        grace=grace_of(pod, grace_asked),
        deadline=limits.deadline,
        gpus=gpus_requested(pod),
        workload="" if owner is None else f"{owner.get('kind')}/{owner.get('name')}",
        owner_uid="" if owner is None else str(owner.get("uid") or ""),
        started_at=epoch((pod.get("status") or {}).get("startTime")),
    )
    return record, verdict.fate
