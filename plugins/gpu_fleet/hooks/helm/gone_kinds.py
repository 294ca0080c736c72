"""Looks, before helm is started, for types in stored manifests that the server no longer has.

A CustomResourceDefinition was deleted, or an API version was removed from Kubernetes, while a deployed manifest still
has objects of it. Every later upgrade and rollback fails then, and an uninstall leaves the release ``uninstalling``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gpu_fleet.core.errors import ReleaseError
from gpu_fleet.core.releases.objects import TypeId, types_of
from gpu_fleet.core.releases.storage import StoredRevision
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)


def gone_types(client: KubeClient, manifest: str) -> dict[TypeId, str | None]:
    """The manifest's types that the server does not have, with the ``apiVersion`` of the same kind that it has, if any.

    Asked anew each time: a definition may have been created or deleted since the last look. An API that cannot be
    reached at the moment raises, so that its types do not count as gone.
    """
    gone: dict[TypeId, str | None] = {}
    for api_version, kind in types_of(manifest):
        if _has(client, api_version, kind):
            continue
        group = api_version.rpartition("/")[0]
        others = (version for version in client.versions(group) if version != api_version)
        gone[api_version, kind] = next((version for version in others if _has(client, version, kind)), None)
    return gone


def _has(client: KubeClient, api_version: str, kind: str) -> bool:
    return any(found.kind == kind for found in client.kinds(api_version))


def mend_stored(client: KubeClient, storage: ReleaseStorage, revisions: Iterable[StoredRevision | None]) -> None:
    """Rewrite the stored manifests so that helm can build them: of types that the server no longer has, no object is
    left to delete or to compare with.

    If it is killed, the next call repeats it: a repaired manifest needs no further repair.
    """
    for stored in {item.secret: item for item in revisions if item is not None}.values():
        gone = gone_types(client, storage.manifest(stored))
        if gone:
            changed = "; ".join(storage.mend(stored, gone))
            log.warning(
                "release %s/%s, stored manifest of revision %d: %s",
                *(storage.namespace, storage.release, stored.revision, changed),
            )


def refuse_gone_target(client: KubeClient, storage: ReleaseStorage, target: StoredRevision) -> None:
    """
    :raises ReleaseError: ``KindsGone``: a rollback to that revision would need kinds that the server no longer has.
    """
    gone = gone_types(client, storage.manifest(target))
    lost = ", ".join(f"{kind} ({api_version})" for (api_version, kind), served in gone.items() if served is None)
    if lost:
        raise ReleaseError(
            f"release {storage.namespace}/{storage.release} cannot be rolled back to revision {target.revision}: its "
            f"manifest has objects of a kind that the cluster no longer has: {lost}; install the "
            "CustomResourceDefinition again, or install a revision that does without it",
            reason="KindsGone",
        )
