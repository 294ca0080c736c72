"""Work that was lost: pods that were still running when their machine went.

Counted is a pod of which a container ran at that moment, other than one of a DaemonSet or a static (mirror) pod, which
belong to the node. A pod that was told to end and ended within its grace period ran no more, so it is not lost; one
that was still in its grace period is.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Loss:
    """
    :ivar time: when the machine went, in epoch seconds.
    :ivar seconds: real seconds that its longest running container had run.
    :ivar terminating: it had been told to end, and its grace period was not over.
    :ivar state: of the instance, as EC2 showed it.
    """

    namespace: str
    name: str
    uid: str
    node: str
    instance: str
    pool: str
    time: float
    seconds: float
    terminating: bool
    state: str


class LossBook:
    """All losses since the start, or since :meth:`clear`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._losses: list[Loss] = []

    def add(self, losses: list[Loss]) -> None:
        with self._lock:
            self._losses += losses

    def clear(self) -> None:
        with self._lock:
            self._losses.clear()

    def shown(self) -> list[dict[str, Any]]:
        """Oldest first."""
        with self._lock:
            return [asdict(each) for each in self._losses]
