"""What a release leaves behind: pruning of leaked objects, uninstalling, leftovers, hook logs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from gpu_fleet.core.errors import Conflict, DeadlinePassed, GpuFleetError, NotFound, ReleaseError, TransientError
from gpu_fleet.core.kubernetes.kinds import CRD, LEASE, POD, ObjectRef
from gpu_fleet.core.releases.helm_output import error_of
from gpu_fleet.core.releases.lease import lease_name, parse_lease
from gpu_fleet.core.releases.objects import (
    PRECIOUS_KINDS,
    WORKLOAD_KINDS,
    ObjectId,
    belongs_to,
    crds,
    leaked,
    may_be_pruned,
    object_ids,
    workload_of,
)
from gpu_fleet.core.releases.request import ReleaseRequest
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import PENDING, ReleaseStatus, StoredRevision
from gpu_fleet.hooks.helm.binary.command import Helm, uninstall_arguments
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

_HOOK_JOB = re.compile(r"(?:job|resource)[ /]+(?:Job/)?(?:[a-z0-9-]+/)?(?P<name>[a-z0-9][a-z0-9.-]*)", re.IGNORECASE)
#: A leftover that only waits for its finalizers.
TERMINATING = " (terminating)"


class ReleaseCleanup:
    """Deletes what belongs to one release and nothing else."""

    #: Kinds that a *recovery* never deletes; a wanted uninstall may.
    PRECIOUS = PRECIOUS_KINDS

    def __init__(self, client: KubeClient, storage: ReleaseStorage) -> None:
        self.client, self.storage = client, storage

    def objects_of(self, seen: Observation) -> tuple[str, ...]:
        """Everything that any stored revision lists, in the form of ``ObjectId``; also what an earlier, interrupted
        uninstall had noted."""
        found: set[ObjectId] = set()
        for stored in seen.revisions:
            found.update(object_ids(self.storage.manifest(stored), self.storage.namespace))
        noted = seen.ledger.intent.objects if seen.ledger.intent is not None else ()
        return tuple(sorted({*(str(item) for item in found), *noted}))

    def prune_leaked(self, after: Observation) -> tuple[str, ...]:
        """Delete objects that earlier revisions created and the deployed one does not list.

        Looks only if an operation failed or died. Then at every revision: a rollback that dies before it deletes what
        its target lacks leaves objects of the revision that *was* deployed, and Helm's next command compares with the
        dead one.
        """
        dead = {ReleaseStatus.FAILED, *PENDING}
        newest, earlier = after.newest, after.revisions[:-1]
        if newest is None or not any(item.status in dead for item in earlier):
            return ()
        current = self.storage.manifest(newest)
        candidates = leaked((self.storage.manifest(item) for item in earlier), current, self.storage.namespace)
        return self.remove_leftovers((str(item) for item in candidates), self.PRECIOUS)

    def uninstall(self, helm: Helm, request: ReleaseRequest, newest: StoredRevision, keep: frozenset[str]) -> None:
        """Run ``helm uninstall`` and read storage again.

        :param keep: kinds that stay: taken out of the stored manifest first.
        :raises ReleaseError: CRDs would go while objects of their kinds exist.
        """
        what = f"uninstall of {request}"
        if keep:
            spared = self.storage.spare(newest, keep)
            if spared:
                log.info("%s: kept %s", what, ", ".join(spared))
        self._refuse_used_crds(what, newest)
        done = helm.run_in_cluster(uninstall_arguments(request), deadline_s=request.policy.deadline)
        left = [item for item in self.storage.revisions() if item.status is not ReleaseStatus.UNINSTALLED]
        if not left:
            return
        shown = f"storage still shows revision {left[-1].revision} as {left[-1].status}"
        if done.ended_by == "deadline":
            raise DeadlinePassed(f"{what}: helm ran for {done.seconds:.0f} s, past its deadline; {shown}")
        if done.ended_by or done.code < 0:
            raise TransientError(f"{what}: {done.ended_by or 'helm was killed'}; {shown}", reason="Interrupted")
        if done.code != 0:
            raise error_of(what, done.stderr)
        raise ReleaseError(f"{what}: helm reports success, but {shown}", reason="StorageDisagrees")

    def _refuse_used_crds(self, what: str, newest: StoredRevision) -> None:
        for name in crds(self.storage.manifest(newest)):
            definition = self.client.get(ObjectRef(CRD, name))
            if definition is None:
                continue
            spec = definition.get("spec") or {}
            versions = [item["name"] for item in spec.get("versions") or [] if item.get("served")]
            if not versions:
                continue
            kind = self.client.kind(f"{spec['group']}/{versions[-1]}", spec["names"]["kind"])
            objects = self.client.list_metadata(kind)
            if objects:
                some = ", ".join(str(item["metadata"].get("name")) for item in objects[:5])
                raise ReleaseError(
                    f"{what} would delete {name} and with it {len(objects)} {kind.kind} objects ({some}); delete those "
                    "first, or keep the CRDs",
                    reason="CrdInUse",
                )

    def remove_leftovers(self, objects: Iterable[str], keep: frozenset[str]) -> tuple[str, ...]:
        """Delete those of the objects that exist, carry the release's annotations and may go.

        :returns: what is still there afterwards, as ``Kind namespace/name``, with why.
        """
        left = []
        for text in objects:
            item = ObjectId.parse(text)
            try:
                ref = self.client.ref(item.api_version, item.kind, item.name, item.namespace)
            except NotFound:
                continue  # its CRD is gone, and so is it
            live = self.client.get(ref)
            if live is None or not belongs_to(live, self.storage.release, self.storage.namespace):
                continue
            metadata = live["metadata"]
            deleting = bool(metadata.get("deletionTimestamp"))  # then it goes, whoever meant to keep it
            kept = item.kind in keep or not may_be_pruned(live, self.storage.release, self.storage.namespace)
            if kept and not deleting:
                left.append(f"{ref} (kept)")
                continue
            if not deleting:
                log.info("deleting %s, left behind by release %s", ref, self.storage.release)
                self.client.delete(ref, uid=metadata.get("uid"))
                live = self.client.get(ref)
            if live is not None:
                finalizers = ", ".join(live["metadata"].get("finalizers") or []) or "its grace period"
                left.append(f"{ref}{TERMINATING}: {finalizers}")
        return tuple(left)

    def remaining_pods(self, objects: Iterable[str]) -> tuple[str, ...]:
        """Pods of the release's workloads that the garbage collector has yet to take.

        A workload that still stands, being kept or somebody else's of the same name, keeps its pods: none of them is
        on its way out.
        """
        gone: dict[str, set[str]] = {}
        for item in map(ObjectId.parse, objects):
            if item.kind in WORKLOAD_KINDS and not self._stands(item):
                gone.setdefault(item.namespace, set()).add(f"{item.kind}/{item.name}")
        return tuple(
            f"Pod {namespace}/{pod['metadata']['name']}{TERMINATING}: its grace period"
            for namespace, workloads in sorted(gone.items())
            for pod in self.client.list(POD, namespace)
            if workload_of(pod) in workloads
        )

    def _stands(self, item: ObjectId) -> bool:
        """Whether an object exists and is not being deleted."""
        try:
            live = self.client.get(self.client.ref(item.api_version, item.kind, item.name, item.namespace))
        except NotFound:
            return False
        return live is not None and not live["metadata"].get("deletionTimestamp")

    def waiting(self, leftovers: Iterable[str]) -> bool:
        """Whether some leftovers are on their way out and must be waited for."""
        return any(TERMINATING in item for item in leftovers)

    def forget_lease(self, me: str) -> bool:
        """Delete the Lease of a release that is gone, if one is left and nobody else holds it.

        :returns: whether none is left; otherwise somebody is at work, or died, and the Lease must be taken first.
        """
        ref = ObjectRef(LEASE, lease_name(self.storage.release), self.storage.namespace)
        record = parse_lease(self.client.get(ref))
        if record is None:
            return True
        if record.holder not in {"", me}:
            return False
        try:
            self.client.delete(ref, uid=record.uid, version=record.version)
        except Conflict:  # taken at this very moment
            return False
        return True

    def log_of_pod(self, name: str) -> None:
        """Put the end of a pod's log into the task's log, if it can still be read."""
        namespace = self.storage.namespace
        try:
            log.error("log of pod %s:\n%s", name, self.client.read_log(namespace, name, tail_lines=30))
        except GpuFleetError as error:
            log.warning("the log of pod %s cannot be read: %s", name, error)

    def explain_hooks(self, message: str) -> None:
        """Put the log of a failed hook's pods into the task's log; helm may delete the Job soon."""
        match = _HOOK_JOB.search(message)
        if match is None:
            return
        namespace = self.storage.namespace
        try:
            for pod in self.client.list(POD, namespace, label_selector=f"job-name={match['name']}"):
                name = pod["metadata"]["name"]
                log.error("log of hook pod %s:\n%s", name, self.client.read_log(namespace, name, tail_lines=30))
        except GpuFleetError as error:
            log.warning("the log of hook %s cannot be read: %s", match["name"], error)
