"""What a probe task keeps: the plan of a wave, and its progress; and the removal of its pods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.core.probes.plan import NodeRound, pinned_to
from gpu_fleet.core.validation.report import NodeReport
from gpu_fleet.core.validation.waves import waves
from gpu_fleet.operators.base import attempt
from gpu_fleet.operators.packing import pack, unpack
from gpu_fleet.operators.pods import delete_pods

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: Keys in Airflow's task state store, which a retry of the task still finds: its progress, and the reports of each wave
#: that is over.
PROGRESS, WAVE = "progress", "wave-{index}"


@dataclass(frozen=True)
class Plan:
    """What is done in one wave.

    :ivar rounds: what runs on each node that is fit for it.
    :ivar unfit: the verdicts on the other nodes.
    :ivar since: epoch seconds.
    """

    rounds: list[NodeRound]
    unfit: list[NodeReport]
    since: float

    def without(self, reports: Mapping[str, NodeReport]) -> Plan:
        """The plan without some nodes, whose verdicts are known already."""
        left = [round_ for round_ in self.rounds if round_.node not in reports]
        return Plan(left, [*self.unfit, *reports.values()], self.since)

    def to_json(self) -> dict[str, Any]:
        return {
            "rounds": [round_.to_json() for round_ in self.rounds],
            "unfit": [report.to_json() for report in self.unfit],
            "since": self.since,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        return cls(
            [NodeRound.from_json(each) for each in value["rounds"]],
            [NodeReport.from_json(each) for each in value["unfit"]],
            float(value["since"]),
        )


@dataclass
class Progress:
    """How far a probe task has come, kept over its retries.

    A task that a person clears starts again.

    :ivar ended: how many waves are over.
    :ivar attempt: see :func:`gpu_fleet.operators.base.attempt`.
    """

    waves: list[list[str]]
    ended: int
    since: float
    attempt: int

    @classmethod
    def begin(cls, context: Mapping[str, Any], nodes: Sequence[str], at_once: int) -> Progress:
        """The progress of an earlier try of this task, if it is about the same nodes; else a new one."""
        kept = context["task_state_store"].get(PROGRESS)
        if isinstance(kept, Mapping) and kept.get("attempt") == attempt(context):
            found = cls.load(context)
            if [node for wave in found.waves for node in wave] == list(nodes):
                return found
        fresh = cls(waves(nodes, at_once), 0, time.time(), attempt(context))
        fresh._save(context)
        return fresh

    @classmethod
    def load(cls, context: Mapping[str, Any]) -> Progress:
        kept = context["task_state_store"].get(PROGRESS)
        return cls([list(wave) for wave in kept["waves"]], int(kept["ended"]), float(kept["since"]), kept["attempt"])

    @staticmethod
    def forget(context: Mapping[str, Any]) -> None:
        """Let the next try start with the first wave."""
        context["task_state_store"].set(PROGRESS, {"attempt": None})

    def _save(self, context: Mapping[str, Any]) -> None:
        value = {"waves": self.waves, "ended": self.ended, "since": self.since, "attempt": self.attempt}
        context["task_state_store"].set(PROGRESS, value)

    def wave(self) -> list[str] | None:
        """The nodes that are next, or ``None``."""
        return self.waves[self.ended] if self.ended < len(self.waves) else None

    def end_wave(self, context: Mapping[str, Any], reports: Iterable[NodeReport]) -> None:
        # The reports first: a kill in between repeats the wave; in the other order it would lose it.
        store = context["task_state_store"]
        store.set(WAVE.format(index=self.ended), pack([report.to_json() for report in reports]))
        self.ended += 1
        self._save(context)

    def reports(self, context: Mapping[str, Any]) -> list[NodeReport]:
        """The verdicts of all waves that are over."""
        store = context["task_state_store"]
        kept = [store.get(WAVE.format(index=index)) for index in range(self.ended)]
        return [NodeReport.from_json(value) for wave in kept if wave for value in unpack(wave)]


def remove_pods(
    kube: KubeClient,
    namespace: str,
    selector: str,
    patience_s: float,
    *,
    which: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    pause_s: float = 0.25,
) -> tuple[list[str], dict[str, list[str]]]:
    """Delete probe pods and wait until they are gone: a pod that is still terminating still holds its GPU.

    :param which: whether a pod has to be deleted.
    :returns: the names of those that were deleted, and node -> the names of those that are still there after
        ``patience_s``.
    """
    deleted: list[str] = []
    deadline = time.monotonic() + patience_s
    while True:
        left = [pod for pod in kube.list(POD, namespace, label_selector=selector) if which(pod)]
        deleted += delete_pods(kube, [pod for pod in left if not pod["metadata"].get("deletionTimestamp")])
        if not left or time.monotonic() >= deadline:
            stay: dict[str, list[str]] = {}
            for pod in left:
                stay.setdefault(pinned_to(pod), []).append(pod["metadata"]["name"])
            return deleted, stay
        time.sleep(pause_s)
