"""Drains nodes in one task, side by side: each by its own deadline, or as patiently as the cluster file says.

It observes (``feed``), decides (``core/drain/actions.py``) and acts (``executor``), and keeps what it did (``ledger``).
All decisions are made in the calling thread, one event at a time. It neither cordons nor removes nodes.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.drain.actions import SETTLED, Action, Do, next_action, urgency
from gpu_fleet.core.drain.answers import Answer, Word, slowdown_s
from gpu_fleet.core.drain.drained import Drained, Target
from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.drain.rules import DrainRules, Fate
from gpu_fleet.core.spec.operations import Drain
from gpu_fleet.operators.draining.eviction import ask
from gpu_fleet.operators.draining.executor import WORKERS, Executor
from gpu_fleet.operators.draining.feed import Blind, Changed, Feed, Listed, NodeGone, Observation
from gpu_fleet.operators.draining.ledger import Ledger, Store
from gpu_fleet.operators.draining.tracked import Tracked, record_of

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

log = logging.getLogger(__name__)

#: Seconds that the first requests wait for the lists of the other nodes, so that one write announces all their pods.
GATHER_S = 0.3


@dataclass(frozen=True)
class _Answered:
    uid: str
    action: Action
    answer: Answer


@dataclass(frozen=True)
class _Woken:
    """A write has ended."""


def drain_nodes(
    kube: KubeClient,
    targets: Iterable[Target],
    *,
    rules: DrainRules,
    policy: Drain,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    on_progress: Store | None = None,
    on_change: Callable[[PodRecord], None] | None = None,
    wanted: Callable[[Mapping[str, Any]], bool] = lambda pod: True,  # noqa: ARG005
    workers: int = WORKERS,
    clock: Callable[[], float] = time.time,
) -> Drained:
    """Drain the nodes and return when nothing is left to do on any of them, or the time of each is up.

    Safe to repeat with the records of a killed try: pods that terminate are only waited for, and every request names
    the pod's UID.

    :param targets: the nodes. On one with a deadline no pod is refused: it ends anyway, and the rules decide only how a
        pod is treated and what the report says. On one without, pods that the rules refuse are left.
    :param rules: of the cluster file; see :meth:`DrainRules.of`.
    :param policy: ``drain`` of the cluster file: grace period, and whether eviction is disabled.
    :param records: what an earlier try of the same task has stored, UID to JSON.
    :param on_progress: stores the records, all of them each time: before a pod is asked to go for the first time, and
        at most once a second after that. Called in a thread of its own; an error in it is logged.
    :param on_change: told of every pod whose outcome has changed, for logs.
    :param wanted: which pods the drain is about; the others are not even recorded.
    :param workers: requests under way at most.
    :param clock: epoch seconds of this machine; injected by tests.
    """
    return _Run(kube, targets, rules, policy, records or {}, on_progress, on_change, wanted, workers, clock).run()


class _Run:
    def __init__(
        self,
        kube: KubeClient,
        targets: Iterable[Target],
        rules: DrainRules,
        policy: Drain,
        records: Mapping[str, Mapping[str, Any]],
        on_progress: Store | None,
        on_change: Callable[[PodRecord], None] | None,
        wanted: Callable[[Mapping[str, Any]], bool],
        workers: int,
        clock: Callable[[], float],
    ) -> None:
        self.kube, self.rules, self.policy, self.on_change = kube, rules, policy, on_change
        self.wanted = wanted
        self.limits = {target.node: target.limits for target in targets}
        # One offset for the whole drain: the server's clock is known to a second only, and must not appear to jump.
        ahead = kube.ahead or 0.0
        self.now: Callable[[], float] = lambda: clock() + ahead
        self.began = self.now()
        self.inbox: queue.SimpleQueue[Observation | _Answered | _Woken] = queue.SimpleQueue()
        self.records = {uid: PodRecord.from_json(row) for uid, row in records.items()}
        self.pods: dict[str, Tracked] = {}
        self.blind: dict[str, str] = {}
        self.unlisted = set(self.limits)
        self.gone_nodes: set[str] = set()
        self.told = {uid: record.outcome for uid, record in self.records.items()}
        self.executor = Executor(workers)
        self.in_flight = 0
        self.ledger = Ledger(on_progress, lambda: self.inbox.put(_Woken()))
        self.counter = itertools.count()
        #: What may be asked now, most urgent first; and what is to be decided again later. Entries of an older version
        #: of their pod are void.
        self.due: list[tuple[tuple[Any, ...], int, str, int, Action]] = []
        self.later: list[tuple[float, int, str, int]] = []
        self.waiting_for_ledger: dict[str, tuple[tuple[Any, ...], int, str, int, Action]] = {}
        self.active: set[str] = set()

    def run(self) -> Drained:
        feed = Feed(self.kube.access, self.limits, self.inbox.put)
        feed.start()
        try:
            while True:
                self._decide_again()
                wake = self._act()
                if self._is_over():
                    break
                self._receive(wake)
        finally:
            feed.close()
            self.executor.close()
            while not self.inbox.empty():
                self._take(self.inbox.get())
            self.ledger.close(self.records)
        ordered = sorted(self.records.values(), key=lambda record: (record.node, str(record)))
        unseen = {node: self.blind.get(node, "its pods were not listed in time") for node in sorted(self.unlisted)}
        return Drained(ordered, unseen, self.now() - self.began)

    def _is_over(self) -> bool:
        if self.active or self.in_flight:
            return False
        now = self.now()
        return all(now >= self.limits[node].last_moment or node in self.gone_nodes for node in self.unlisted)

    # --- observing -----------------------------------------------------------------------------------------------

    def _receive(self, until: float) -> None:
        """Take what has come; wait for it until then at most."""
        try:
            self._take(self.inbox.get(timeout=max(0.001, min(until - self.now(), 60.0))))
            while True:
                self._take(self.inbox.get_nowait())
        except queue.Empty:
            return

    def _take(self, event: Observation | _Answered | _Woken) -> None:
        now = self.now()
        match event:
            case Listed(node, pods):
                self._listed(node, pods, now)
            case Changed(_, pod, gone):
                self._see(pod, now, gone=gone)
            case NodeGone(node):
                self.gone_nodes.add(node)
                for uid, tracked in self.pods.items():
                    if tracked.record.node == node and not tracked.settled:
                        tracked.node_gone(now)
                        self._decide(uid)
            case Blind(node, why):
                if node not in self.blind:
                    log.warning("the pods of node %s cannot be seen: %s", node, why)
                self.blind[node] = why
            case _Answered(uid, action, answer):
                self._answered(uid, action, answer, now)
            case _Woken():
                pass  # it is enough that the loop goes round

    def _listed(self, node: str, pods: list[dict[str, Any]], now: float) -> None:
        self.blind.pop(node, None)
        self.unlisted.discard(node)
        present = {str(pod["metadata"]["uid"]) for pod in pods}
        for uid, record in list(self.records.items()):
            if record.node == node and uid not in present:
                self._gone(uid, now)
        for pod in pods:
            self._see(pod, now, gone=False)

    def _see(self, pod: Mapping[str, Any], now: float, *, gone: bool) -> None:
        uid = str(pod["metadata"]["uid"])
        if gone:
            self._gone(uid, now)
            return
        if uid not in self.pods and not self._track(uid, pod):
            return
        self.pods[uid].observe(pod, now)
        self._decide(uid)

    def _track(self, uid: str, pod: Mapping[str, Any]) -> bool:
        """Begin to follow a pod; whether the drain has anything to do with it."""
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        limits = self.limits.get(node)
        if limits is None or (uid in self.records and self.records[uid].outcome is Outcome.LEFT):
            return False
        if not self.wanted(pod):
            return False
        goes_anyway = limits.watch or limits.deadline is not None
        rules = self.rules.of_a_lost_node() if goes_anyway else self.rules
        record, fate = record_of(pod, rules, limits, self.policy.grace_period)
        record = self.records.setdefault(uid, record)
        record.deadline = limits.deadline
        if fate in (Fate.LEAVE, Fate.REFUSE):
            record.outcome = Outcome.LEFT
            self._tell(uid)
            return False
        self.pods[uid] = Tracked(record, limits, unsure=record.outcome is Outcome.ASKED)
        self.active.add(uid)
        return True

    def _gone(self, uid: str, now: float) -> None:
        if uid in self.pods:
            self.pods[uid].gone(now)
            self._decide(uid)
        elif uid in self.records and self.records[uid].gone_at is None:
            self.records[uid].leave(now)
            self._tell(uid)

    def _answered(self, uid: str, action: Action, answer: Answer, now: float) -> None:
        self.in_flight -= 1
        tracked = self.pods[uid]
        direct = Outcome.DELETED if self.policy.disable_eviction else Outcome.EVICTED
        outcome = Outcome.FORCED if action.do is Do.DELETE else direct
        tracked.answered(answer, now, random.random(), outcome=outcome, why=action.why)  # noqa: S311  (jitter)
        self._decide(uid)

    # --- deciding ------------------------------------------------------------------------------------------------

    def _decide_again(self) -> None:
        """Whatever was put off until now."""
        now = self.now()
        while self.later and self.later[0][0] <= now:
            _, _, uid, version = heapq.heappop(self.later)
            if self.pods[uid].version == version:
                self._decide(uid)

    def _decide(self, uid: str) -> None:
        tracked = self.pods[uid]
        if not tracked.in_flight:
            action = next_action(tracked.view(), self.now(), tracked.limits)
            if action.do in SETTLED:
                self._settle(uid, tracked, action)
            elif not tracked.settled:
                self._plan(uid, tracked, action)
        self._tell(uid)

    def _plan(self, uid: str, tracked: Tracked, action: Action) -> None:
        record = tracked.record
        if action.do is Do.WAIT:
            if action.why and not record.reason:
                record.reason = action.why
            if action.at < float("inf"):
                heapq.heappush(self.later, (action.at, next(self.counter), uid, tracked.version))
            return
        key = urgency(record.deadline, record.grace, holds_gpu=record.gpus > 0)
        heapq.heappush(self.due, (key, next(self.counter), uid, tracked.version, action))

    def _settle(self, uid: str, tracked: Tracked, action: Action) -> None:
        record, again = tracked.record, tracked.settled
        tracked.settled = True
        self.active.discard(uid)
        if action.do is Do.GONE or again:
            return
        record.outcome = {Do.STUCK: Outcome.STUCK, Do.LOST: Outcome.LOST, Do.GIVE_UP: Outcome.LEFT}[action.do]
        blind = self.blind.get(record.node)
        why = f"{action.why} (its node's pods could not be seen: {blind})" if blind else action.why
        record.reason = f"{record.reason}; {why}" if record.granted == Outcome.FORCED and record.reason else why

    def _tell(self, uid: str) -> None:
        record = self.records[uid]
        if self.told.get(uid) is record.outcome:
            return
        self.told[uid] = record.outcome
        self.ledger.changed()
        if self.on_change is not None and record.outcome is not Outcome.ASKED:
            self.on_change(record)

    # --- acting --------------------------------------------------------------------------------------------------

    def _act(self) -> float:
        """Send what is due, as far as there are threads for it.

        :returns: when there is something to do at the latest.
        """
        now = self.now()
        gathering = bool(self.unlisted) and now - self.began < GATHER_S and not self.in_flight
        while self.due and not gathering and self.in_flight < 2 * self.executor.workers:
            entry = heapq.heappop(self.due)
            _, _, uid, version, action = entry
            tracked = self.pods[uid]
            if tracked.version != version or tracked.in_flight or tracked.settled:
                continue
            if self.ledger.is_announced(uid):
                self._send(uid, tracked, action, now)
            else:
                self.waiting_for_ledger[uid] = entry
        wake = self._write(now)
        if gathering:
            wake = min(wake, self.began + GATHER_S)
        if self.later:
            wake = min(wake, self.later[0][0])
        for node in self.unlisted:
            wake = min(wake, self.limits[node].last_moment)
        return wake

    def _write(self, now: float) -> float:
        for uid in self.waiting_for_ledger:
            self.pods[uid].announce(now)
        wake = self.ledger.tick(now, self.records, self.waiting_for_ledger)
        announced = [uid for uid in self.waiting_for_ledger if self.ledger.is_announced(uid)]
        for uid in announced:
            heapq.heappush(self.due, self.waiting_for_ledger.pop(uid))
        return now if announced else wake

    def _send(self, uid: str, tracked: Tracked, action: Action, now: float) -> None:
        tracked.asking(now)
        self.in_flight += 1
        grace = None if self.policy.grace_period < 0 else self.policy.grace_period
        delete = action.do is Do.DELETE or self.policy.disable_eviction
        request = partial(ask, self.kube, tracked.record, delete=delete, grace_seconds=grace)
        self.executor.submit(partial(self._request, uid, action, request))

    def _request(self, uid: str, action: Action, request: Callable[[], Answer]) -> None:
        """In a thread of the executor."""
        try:
            answer = request()
        except Exception as error:  # whatever it is, the other pods need their time
            log.exception("the request for pod %s has failed", uid)
            answer = Answer(Word.UNAVAILABLE, f"{type(error).__name__}: {error}")
        self.executor.slow_down(slowdown_s(answer))
        self.inbox.put(_Answered(uid, action, answer))
