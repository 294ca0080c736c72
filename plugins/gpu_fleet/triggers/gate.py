"""The trigger behind every gate: observes, judges at each change, and yields one typed event.

Events: ``{"type": "verdict", "gate", "verdict"}`` when the verdict is Ready or Failed, and ``{"type": "deadline",
"gate", "verdict"}`` with the last verdict when the absolute deadline passes. A trigger that starts at or after its
deadline, because the triggerer was down meanwhile, still looks once. It only reads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.queries import AwsQuery
from gpu_fleet.core.verdict import Verdict, unseen
from gpu_fleet.triggers.looking import gate_named, judge, verdict_of_error, with_clocks
from gpu_fleet.triggers.observers import AwsPoller, KubeExplanation, KubeWatcher, Observer, refresh_all

#: Seconds between judgements without any change: some verdicts depend on the clock.
TICK_S = 1.0
#: Seconds to wait after a change, so that a burst of changes is judged once.
SETTLE_S = 0.02
#: Seconds from the start that the first look may take, whatever the deadline: longer than an answer may take to begin
#: (``hooks/kubernetes/aio.py``, ``OPEN_TIMEOUT_S``), so that there is a verdict in any case, if only on why nothing can
#: be seen.
FIRST_LOOK_S = 45.0


class GateTrigger(BaseTrigger):
    """
    :param gate: name of the gate.
    :param args: its JSON-able arguments.
    :param access: ``ClusterAccess.to_json()``; no credentials.
    :param deadline: epoch seconds.
    :param started: epoch seconds of the first look, by the API server's clock; ``None`` if the worker had no answer
        yet: then that of this trigger's first complete look.
    :param last: the verdict that the worker has already logged, so that only changes of it are logged here.
    """

    def __init__(
        self,
        gate: str,
        args: dict[str, Any],
        access: dict[str, Any],
        deadline: float,
        started: float | None,
        last: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.args = args
        self.access = access
        self.deadline = deadline
        self.started = started
        self.last = last
        self._tasks: list[asyncio.Task[None]] = []
        self._client: Any = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{GateTrigger.__module__}.{GateTrigger.__qualname__}",
            {
                "gate": self.gate,
                "args": self.args,
                "access": self.access,
                "deadline": self.deadline,
                "started": self.started,
                "last": self.last,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        verdict = Verdict.from_json(self.last) if self.last else None
        looked, begun = False, time.monotonic()
        changed = asyncio.Event()
        try:
            try:
                observers = self._observe(changed)
            except Exception as error:
                # The worker looked through this gate before it deferred: this triggerer has other code, or lacks some.
                self.log.exception("gate %s cannot be observed", self.gate)
                message = f"this triggerer cannot observe gate {self.gate}: {error!r}"
                broken = unseen("GateBroken", message, permanent=True)
                yield TriggerEvent({"type": "verdict", "gate": self.gate, "verdict": broken.to_json()})
                return
            while True:
                found = await self._judge(observers)
                if found is not None:
                    self._report(verdict, found)
                    verdict, looked = found, True
                    if found.ready or found.failed:
                        yield TriggerEvent({"type": "verdict", "gate": self.gate, "verdict": found.to_json()})
                        return
                left = self.deadline - time.time()
                if not looked:
                    left = max(left, begun + FIRST_LOOK_S - time.monotonic())
                if left <= 0:
                    missed = "the deadline passed before the first complete look"
                    if verdict is not None and not looked:
                        # The worker's verdict is as old as the wait: what is there now has not been seen.
                        missed += f"; the worker had seen {verdict.reason}: {verdict.message}"
                    last = verdict if verdict and looked else unseen("NotObserved", missed, permanent=False)
                    yield TriggerEvent({"type": "deadline", "gate": self.gate, "verdict": last.to_json()})
                    return
                changed.clear()
                try:
                    await asyncio.wait_for(changed.wait(), min(TICK_S, left))
                    await asyncio.sleep(SETTLE_S)
                except TimeoutError:
                    pass
        finally:
            await self.cleanup()

    def _observe(self, changed: asyncio.Event) -> list[Observer]:
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
        from gpu_fleet.hooks.settings import Settings

        access = ClusterAccess.from_json(self.access)
        self._client = KubernetesHook(access).async_client()
        interval_s = Settings.from_environment().poll_interval_s
        observers: list[Observer] = []
        now = self._client.now()
        args = with_clocks(self.args, now, now if self.started is None else self.started)
        for query in gate_named(self.gate).queries(args):
            if isinstance(query, AwsQuery):
                observers.append(AwsPoller(query, access, changed, interval_s))
            elif query.watch:
                observers.append(KubeWatcher(query, self._client, changed))
            else:
                observers.append(KubeExplanation(query, self._client, changed))
        self._tasks = [asyncio.create_task(self._guard(observer)) for observer in observers]
        return observers

    async def _guard(self, observer: Observer) -> None:
        """An observer must not die silently: the gate would wait until its deadline for nothing."""
        try:
            await observer.run()
        except Exception as error:
            self.log.exception("observer of %s broke", observer.key)
            observer.error = GpuFleetError(f"cannot observe {observer.key}: {error!r}", reason="ObserverBroken")

    async def _judge(self, observers: list[Observer]) -> Verdict | None:
        """The verdict now; ``None`` before everything was seen once."""
        await refresh_all(observers)
        for observer in observers:
            if observer.error is not None:
                return verdict_of_error(observer.error)
        snapshot = {}
        for observer in observers:
            if observer.objects is None:
                return None
            snapshot[observer.key] = observer.objects
        try:
            now = self._client.now()
            if self.started is None:
                self.started = now
            return judge(self.gate, snapshot, self.args, now=now, started=self.started)
        except Exception as error:
            self.log.exception("gate %s broke", self.gate)
            message = f"gate {self.gate} cannot judge what it sees: {error!r}; this is a bug"
            return unseen("GateBroken", message, permanent=True)

    def _report(self, before: Verdict | None, now: Verdict) -> None:
        if before is None or (before.phase, before.reason, before.message) != (now.phase, now.reason, now.message):
            self.log.info("gate %s: %s %s: %s", self.gate, now.phase.value, now.reason, now.message)

    async def cleanup(self) -> None:
        """Stop observing and close the connections; harmless to repeat."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def on_kill(self) -> None:
        """Nothing: it is also called when a paused triggerer wakes up after others have taken over its triggers."""


__all__ = ["GateTrigger"]
