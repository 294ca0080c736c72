"""Helm and the Lease of one release: opened for a call of the engine, closed when it ends, cancelled from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_fleet.core.releases.lease import LEASE_SECONDS, TAKEOVER_GRACE_SECONDS
from gpu_fleet.core.releases.request import ReleaseRequest
from gpu_fleet.hooks.helm.actions.base import ActionContext
from gpu_fleet.hooks.helm.binary.command import Helm
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.lease import ReleaseLease
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient


class ReleaseSession:
    """What the calls of one engine share.

    :param me: identity for the Lease, distinct per process.
    :param run: ``<dag_id>/<run_id>``, for the ledger.
    :param wait_s: seconds to wait for another holder of the Lease.
    :param seconds: seconds without renewal after which a holder has lost the Lease.
    :param grace_s: seconds after that until its helm is surely dead, and the Lease may be taken.
    :ivar done: what the calls have done so far, in words.
    """

    def __init__(
        self,
        client: KubeClient,
        storage: ReleaseStorage,
        *,
        me: str,
        run: str,
        wait_s: float = 120.0,
        seconds: int = LEASE_SECONDS,
        grace_s: float = TAKEOVER_GRACE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client, self.storage, self.me, self.run = client, storage, me, run
        self.wait_s, self.seconds, self.grace_s = wait_s, seconds, grace_s
        self.clock = clock
        self.done: list[str] = []
        self._cancelled = ""
        self._lease: ReleaseLease | None = None

    def cancel(self, why: str) -> None:
        """End a running helm soon. Safe in a signal handler: it only sets a word."""
        self._cancelled = why

    def cancelled(self) -> str:
        """Why the task was told to end; empty while it was not."""
        return self._cancelled

    def stopped(self) -> str:
        """Why a running helm must end: the task was told to end, or the Lease is lost."""
        return self._cancelled or (self._lease.lost if self._lease is not None else "")

    @contextmanager
    def helm(self) -> Iterator[Helm]:
        """A supported helm, with access to the cluster.

        :raises ToolError: there is none.
        """
        with Helm(self.client.access, stop=self.stopped) as helm:
            _ = helm.version
            yield helm

    @contextmanager
    def holding(self) -> Iterator[ReleaseLease]:
        """Hold the Lease.

        :raises ClusterBusy: another worker holds it for longer than ``wait_s``.
        """
        self._lease = self.lease()
        try:
            with self._lease as lease:
                yield lease
        finally:
            self._lease = None  # released: that it expires later is no loss

    @contextmanager
    def acting(self, helm: Helm, request: ReleaseRequest) -> Iterator[ActionContext]:
        """Hold the Lease, and give what actions work with."""
        with self.holding() as lease:
            yield ActionContext(
                client=self.client,
                request=request,
                run=self.run,
                storage=self.storage,
                cleanup=ReleaseCleanup(self.client, self.storage),
                helm=helm,
                lease=lease,
                cancelled=self.cancelled,
                clock=self.clock,
                done=self.done,
            )

    def lease(self) -> ReleaseLease:
        """The release's Lease, not yet taken."""
        return ReleaseLease(
            self.client,
            self.storage.release,
            self.storage.namespace,
            self.me,
            wait_s=self.wait_s,
            seconds=self.seconds,
            grace=self.grace_s,
            stop=self.cancelled,
        )
