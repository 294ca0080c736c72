"""What a release leaves behind: objects that failed revisions leaked, and objects that an uninstall has left."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gpu_fleet.core.errors import NotFound
from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.core.releases.leftovers import Fate, Leftover
from gpu_fleet.core.releases.objects import (
    PRECIOUS_KINDS,
    WORKLOAD_KINDS,
    ObjectId,
    belongs_to,
    leaked,
    may_be_pruned,
    object_ids,
    workload_of,
)
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import PENDING, ReleaseStatus
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

_GRACE_PERIOD = "its grace period"


class ReleaseCleanup:
    """Deletes what belongs to one release and nothing else."""

    #: Kinds that a *recovery* never deletes; a wanted uninstall may.
    PRECIOUS = PRECIOUS_KINDS

    def __init__(self, client: KubeClient, storage: ReleaseStorage) -> None:
        self.client, self.storage = client, storage

    def objects_of(self, seen: Observation) -> tuple[str, ...]:
        """Everything that any stored revision lists, in the form of ``ObjectId``, and what an earlier, interrupted
        uninstall had noted."""
        found: set[ObjectId] = set()
        for stored in seen.revisions:
            found.update(object_ids(self.storage.manifest(stored), self.storage.namespace))
        noted = seen.ledger.intent.objects if seen.ledger.intent is not None else ()
        return tuple(sorted({*(str(item) for item in found), *noted}))

    def prune_leaked(self, after: Observation) -> tuple[Leftover, ...]:
        """Delete objects that earlier revisions created and the deployed one does not list.

        It looks only if an operation failed or died, and then at every revision: a rollback that dies before it deletes
        what its target lacks leaves objects of the revision that *was* deployed, and Helm's next command compares with
        the dead one.
        """
        dead = {ReleaseStatus.FAILED, *PENDING}
        newest, earlier = after.newest, after.revisions[:-1]
        if newest is None or not any(item.status in dead for item in earlier):
            return ()
        current = self.storage.manifest(newest)
        candidates = leaked((self.storage.manifest(item) for item in earlier), current, self.storage.namespace)
        return self.remove_leftovers((str(item) for item in candidates), self.PRECIOUS)

    def remove_leftovers(self, objects: Iterable[str], keep: frozenset[str]) -> tuple[Leftover, ...]:
        """Delete those of the objects that exist, carry the release's annotations and may be deleted.

        :param keep: kinds that are not deleted.
        :returns: what still exists afterwards.
        """
        found = (self._remove(ObjectId.parse(text), keep) for text in objects)
        return tuple(item for item in found if item is not None)

    def _remove(self, item: ObjectId, keep: frozenset[str]) -> Leftover | None:
        try:
            ref = self.client.ref(item.api_version, item.kind, item.name, item.namespace)
        except NotFound:
            return None  # its CRD is gone, and the object with it
        live = self.client.get(ref)
        if live is None or not belongs_to(live, self.storage.release, self.storage.namespace):
            return None
        if not live["metadata"].get("deletionTimestamp"):  # otherwise nothing can keep it any more
            if item.kind in keep or not may_be_pruned(live, self.storage.release, self.storage.namespace):
                return Leftover(str(ref), Fate.KEPT)
            log.info("deleting %s, left behind by release %s", ref, self.storage.release)
            self.client.delete(ref, uid=live["metadata"].get("uid"))
            live = self.client.get(ref)
            if live is None:
                return None
        finalizers = ", ".join(live["metadata"].get("finalizers") or [])
        return Leftover(str(ref), Fate.TERMINATING, finalizers or _GRACE_PERIOD)

    def remaining_pods(self, objects: Iterable[str]) -> tuple[Leftover, ...]:
        """Pods of the release's workloads that the garbage collector has yet to delete.

        A workload that still exists, because it is kept or because it is another one of the same name, keeps its pods:
        none of them is about to disappear.
        """
        gone: dict[str, set[str]] = {}
        for item in map(ObjectId.parse, objects):
            if item.kind in WORKLOAD_KINDS and not self._exists(item):
                gone.setdefault(item.namespace, set()).add(f"{item.kind}/{item.name}")
        return tuple(
            Leftover(f"Pod {namespace}/{pod['metadata']['name']}", Fate.TERMINATING, _GRACE_PERIOD)
            for namespace, workloads in sorted(gone.items())
            for pod in self.client.list(POD, namespace)
            if workload_of(pod) in workloads
        )

    def _exists(self, item: ObjectId) -> bool:
        """Whether an object exists and is not being deleted."""
        try:
            live = self.client.get(self.client.ref(item.api_version, item.kind, item.name, item.namespace))
        except NotFound:
            return False
        return live is not None and not live["metadata"].get("deletionTimestamp")
