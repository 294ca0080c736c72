"""Uninstall a release, or resume an interrupted uninstall."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gpu_fleet.core.errors import DeadlinePassed, ReleaseError, TransientError
from gpu_fleet.core.kubernetes.kinds import CRD, ObjectRef
from gpu_fleet.core.releases.helm.output import error_of
from gpu_fleet.core.releases.ledger import Intent
from gpu_fleet.core.releases.objects import crds
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision
from gpu_fleet.hooks.helm.actions.base import ActionContext
from gpu_fleet.hooks.helm.binary.command import uninstall_arguments
from gpu_fleet.hooks.helm.gone_kinds import mend_stored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Uninstall:
    """``helm uninstall``, and the removal of what helm does not know of.

    :ivar keep: kinds that stay in the cluster.
    :ivar sweep: also delete the objects that only earlier revisions listed. Without it the caller does so, from the
        list in the ledger's intent, and reports what stays.
    """

    keep: frozenset[str]
    sweep: bool = True

    def run(self, here: ActionContext, seen: Observation) -> None:
        """
        :raises ReleaseError: ``CrdInUse``: CRDs would be deleted while objects of their kinds exist.
        :raises TransientError: helm was interrupted or ran past its deadline; a retry resumes the uninstall.
        """
        newest = seen.revisions[-1]
        mend_stored(here.client, here.storage, (*seen.deployed, newest))
        objects = here.cleanup.objects_of(seen)
        intent = Intent("uninstall", newest.revision, newest.digest, here.now(), here.run, objects=objects)
        here.intend(seen, intent)
        here.done.append(f"uninstall {newest.revision}")
        self._uninstall(here, newest)
        if self.sweep:
            here.cleanup.remove_leftovers(objects, self.keep)

    def _uninstall(self, here: ActionContext, newest: StoredRevision) -> None:
        what = f"uninstall of {here.request}"
        if self.keep:
            spared = here.storage.spare(newest, self.keep)
            if spared:
                log.info("%s: kept %s", what, ", ".join(spared))
        _refuse_used_crds(here, what, newest)
        done = here.run_helm(uninstall_arguments(here.request))
        left = [item for item in here.storage.revisions() if item.status is not ReleaseStatus.UNINSTALLED]
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


def _refuse_used_crds(here: ActionContext, what: str, newest: StoredRevision) -> None:
    for name in crds(here.storage.manifest(newest)):
        definition = here.client.get(ObjectRef(CRD, name))
        if definition is None:
            continue
        spec = definition.get("spec") or {}
        versions = [item["name"] for item in spec.get("versions") or [] if item.get("served")]
        if not versions:
            continue
        kind = here.client.kind(f"{spec['group']}/{versions[-1]}", spec["names"]["kind"])
        objects = here.client.list_metadata(kind)
        if objects:
            some = ", ".join(str(item["metadata"].get("name")) for item in objects[:5])
            raise ReleaseError(
                f"{what} would delete {name} and with it {len(objects)} {kind.kind} objects ({some}); delete those "
                "first, or keep the CRDs",
                reason="CrdInUse",
            )
