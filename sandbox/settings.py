"""What every part of the sandbox is started with. Frozen; units in the field docs."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.audit import AuditLog
from sandbox.faults import FaultBoard
from sandbox.losses import LossBook
from sandbox.statusbook import StatusBook


@dataclass(frozen=True)
class Settings:
    """
    :ivar state_dir: where state.json, certificates, kubeconfigs and logs live (mode 0700).
    :ivar speed: simulated latencies are divided by this; 1.0 is real time.
    :ivar seed: makes sampled latencies repeatable.
    :ivar region: AWS region.
    :ivar account: AWS account id that moto answers with.
    :ivar cluster_name: the EKS cluster that exists from the start.
    :ivar kubernetes_version: its version.
    :ivar audit: every write; in memory only unless it is given a folder.
    :ivar losses: pods that were running when their machine went.
    :ivar statuses: failed status checks and scheduled events of instances.
    """

    state_dir: Path
    speed: float = 5.0
    seed: int = 1
    region: str = "us-west-2"
    account: str = "123456789012"
    cluster_name: str = "demo-gpu"
    kubernetes_version: str = "1.35"
    faults: FaultBoard = field(default_factory=FaultBoard)
    audit: AuditLog = field(default_factory=AuditLog)
    losses: LossBook = field(default_factory=LossBook)
    statuses: StatusBook = field(default_factory=StatusBook)

    @property
    def control_plane(self) -> str:
        """The version that the control plane has now: ``kubernetes_version``, or what it was upgraded to.

        ``python -m sandbox fault set control-plane version=1.36`` is the upgrade; nodes keep the version of their AMI.
        """
        upgraded = self.faults.active("control-plane") or {}
        return str(upgraded.get("version", self.kubernetes_version))


@dataclass(frozen=True)
class Wait:
    """One injected wait: what was waited for, and the wall clock (epoch seconds) of its two ends."""

    label: str
    started: float
    ended: float


class Clock:
    """Simulated waits: ``await clock.sleep(60)`` lasts 60 / speed real seconds.

    A wait with a label is an *injected* one (a latency of the simulated world, not a controller polling)
    and is recorded in :attr:`waits`, so that a run's time can be split into injected waits and overhead.
    """

    def __init__(self, speed: float, seed: int = 1) -> None:
        if speed <= 0:
            raise ValueError("speed must be greater than 0")
        self.speed = speed
        self.random = random.Random(seed)
        self.waits: deque[Wait] = deque(maxlen=20_000)

    async def sleep(self, simulated_seconds: float, label: str | None = None) -> None:
        started = time.time()
        try:
            await asyncio.sleep(max(0.0, simulated_seconds) / self.speed)
        finally:
            if label is not None:
                self.waits.append(Wait(label, started, time.time()))

    def real(self, simulated_seconds: float) -> float:
        """Real seconds that a simulated duration lasts."""
        return simulated_seconds / self.speed
