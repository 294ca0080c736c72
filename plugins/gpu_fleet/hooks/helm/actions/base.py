"""What every action is, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gpu_fleet.core.errors import ClusterBusy, GpuFleetError, TransientError
from gpu_fleet.core.releases.ledger import Intent, Ledger, rfc3339
from gpu_fleet.core.releases.request import ReleaseRequest
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.hooks.helm.binary.command import Helm
from gpu_fleet.hooks.helm.binary.process import Finished
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.lease import ReleaseLease
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient


@dataclass(frozen=True)
class ActionContext:
    """One release in one cluster, while its Lease is held.

    :ivar run: ``<dag_id>/<run_id>``, for the ledger.
    :ivar helm: an open helm for this cluster.
    :ivar cancelled: why the task was told to end; empty while it was not.
    :ivar clock: wall clock, epoch seconds.
    :ivar done: what was done so far, in words; actions append to it.
    """

    client: KubeClient
    request: ReleaseRequest
    run: str
    storage: ReleaseStorage
    cleanup: ReleaseCleanup
    helm: Helm
    lease: ReleaseLease
    cancelled: Callable[[], str]
    clock: Callable[[], float]
    done: list[str]

    @property
    def stopped(self) -> str:
        """Why nothing more may be done; empty while the task may continue."""
        return self.cancelled() or self.lease.lost

    def check_alive(self) -> None:
        """
        :raises TransientError: the task was told to end.
        :raises ClusterBusy: the Lease is lost.
        """
        if why := self.cancelled():
            raise TransientError(f"{self.request}: {why}", reason="Interrupted")
        if self.lease.lost:
            raise ClusterBusy(f"{self.lease.lost}; run again", reason="LeaseLost")

    def now(self) -> str:
        """The time, for the ledger."""
        return rfc3339(self.clock())

    def intend(self, seen: Observation, intent: Intent) -> Ledger:
        """Note an operation in the ledger before it starts, so that a later run recognises it if this one dies."""
        self.check_alive()
        if seen.newest is not None:
            intent = replace(intent, base_revision=seen.newest.revision, base_uid=seen.newest.uid)
        return self.storage.write_ledger(seen.ledger.intending(intent))

    def run_helm(self, arguments: Sequence[str]) -> Finished:
        return self.helm.run_in_cluster(arguments, deadline_s=self.request.policy.deadline)


class ReleaseAction(Protocol):
    """One thing to do to a release."""

    def run(self, here: ActionContext, seen: Observation) -> GpuFleetError | None:
        """Do it, and believe only what storage shows afterwards.

        It may be killed at any instant; the next call finds out from storage and ledger what it has left.

        :param seen: what the action was decided on.
        :returns: why helm did not do what was asked, where the engine may recover before it raises this error; ``None``
            after success.
        :raises GpuFleetError: nothing was changed, or recovering from this failure is left to a person.
        """
        ...


def history_limit(seen: Observation, request: ReleaseRequest) -> int:
    """``--history-max``: never so few that the proven revision would be pruned by this command or its rollback."""
    proven = seen.proven
    if proven is None:
        return request.policy.history_max
    needed = sum(1 for item in seen.revisions if item.revision >= proven.revision) + 2
    return max(request.policy.history_max, needed)
