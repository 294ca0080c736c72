"""When nodes are drained that need not be drained at once: on rebalance recommendations and scheduled changes. Pure.

A recommendation is acted on at once, because the instance may end at any time. AWS announces a scheduled change days
ahead; its node waits for the window of the cluster file, if that comes in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpu_fleet.core.interruptions.messages import Kind
from gpu_fleet.core.spec.interruptions import MaintenanceWindow


@dataclass(frozen=True)
class PlannedNode:
    """A node that a run of ``gpu_drain`` is to drain.

    :ivar instance: by which the run knows it: a later instance may get the node's name.
    :ivar deadline: when its instance ends, epoch seconds; ``None`` if that is unknown.
    """

    node: str
    instance: str
    kind: Kind
    deadline: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"node": self.node, "instance": self.instance, "kind": self.kind.value, "deadline": self.deadline}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PlannedNode:
        """
        :raises ValueError: if the mapping is no such node.
        """
        try:
            deadline = value.get("deadline")
            return cls(
                node=str(value["node"]),
                instance=str(value["instance"]),
                kind=Kind(value["kind"]),
                deadline=None if deadline is None else float(deadline),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no planned node: {error!r}") from error


@dataclass(frozen=True)
class Start:
    """When a drain begins.

    :ivar at: epoch seconds; ``None``: at once.
    :ivar why: a clause, for the log.
    """

    at: float | None
    why: str


def start_of(node: PlannedNode, window: MaintenanceWindow | None, now: float, *, lead_s: float) -> Start:
    """When the node's drain begins.

    :param window: ``interruptions.maintenance``.
    :param now: epoch seconds.
    :param lead_s: seconds that a drain may take (``drain.timeout``): it has to begin so long before the instance ends.
    """
    if node.kind is not Kind.SCHEDULED:
        return Start(None, "its instance may end at any time")
    if window is None:
        return Start(None, "the cluster file has no maintenance window (interruptions.maintenance)")
    if window_under_way(window, now):
        return Start(None, "a maintenance window is under way")
    begins = next_window(window, now)
    if node.deadline is not None and begins > node.deadline - lead_s:
        return Start(None, "the next maintenance window begins too late for the end of its instance")
    return Start(begins, "in the next maintenance window")


def next_window(window: MaintenanceWindow, now: float) -> float:
    """When the next window begins, epoch seconds; later than now."""
    return float(_cron(window, now).get_next(datetime).timestamp())


def window_under_way(window: MaintenanceWindow, now: float) -> bool:
    """Whether a window has begun and is not over."""
    # croniter's previous moment lies strictly before its start: a window that begins in this second counts, too.
    began = float(_cron(window, now + 1.0).get_prev(datetime).timestamp())
    return began <= now < began + float(window.duration)


def _cron(window: MaintenanceWindow, moment: float) -> Any:
    # Imported late, because it takes longer than the rest of the decision; Airflow has it loaded.
    from croniter import croniter

    # Cron knows no fractions of a second; with one, croniter's answers are off by up to a second.
    start = datetime.fromtimestamp(moment, UTC).replace(microsecond=0)
    return croniter(window.schedule, start_time=start)


def split(
    nodes: Iterable[PlannedNode], window: MaintenanceWindow | None, now: float, *, lead_s: float
) -> tuple[list[PlannedNode], list[PlannedNode], float | None]:
    """Those whose drain begins at once, those for which it begins in the next window, and when that is.

    All wait for the same window, so one run drains them together.
    """
    at_once, later, at = [], [], None
    for node in nodes:
        start = start_of(node, window, now, lead_s=lead_s)
        if start.at is None:
            at_once.append(node)
        else:
            later.append(node)
            at = start.at
    return at_once, later, at


def moment(at: float) -> datetime:
    """For ``run_after``."""
    return datetime.fromtimestamp(at, UTC)
