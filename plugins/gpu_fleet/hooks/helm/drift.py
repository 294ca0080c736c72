"""Looks for drift: applies a stored manifest as a dry run, object by object; writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.errors import GpuFleetError, NotFound
from gpu_fleet.core.releases.drift import FIELD_MANAGER, Change, Difference, completed, differences
from gpu_fleet.core.releases.objects import documents, passes_away
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

#: Parallel requests: a look at twenty objects should not take twenty round trips.
_WORKERS = 6


@dataclass(frozen=True)
class Look:
    """The result of comparing one object with its manifest.

    :ivar target: the object, as ``Kind namespace/name``.
    :ivar live: the object as it is, empty if it is absent.
    :ivar applied: the object as applying the manifest would make it.
    :ivar error: why it could not be compared.
    """

    target: str
    differences: tuple[Difference, ...] = ()
    live: Mapping[str, Any] = field(default_factory=dict)
    applied: Mapping[str, Any] = field(default_factory=dict)
    error: GpuFleetError | None = None


def find_drift(client: KubeClient, manifest: str, release: str, namespace: str) -> tuple[Difference, ...]:
    """How the cluster differs from a release's manifest, object by object.

    An object that cannot be compared (no permission to patch it, say) is logged and left out.

    :raises GpuFleetError: an object could not even be read.
    """
    looks = look_at_release(client, manifest, release, namespace)
    for look in looks:
        if look.error is not None:
            if not look.live:
                raise look.error
            log.warning("drift of %s cannot be seen: %s", look.target, look.error.message)
    return tuple(item for look in looks for item in look.differences)


def look_at_release(client: KubeClient, manifest: str, release: str, namespace: str) -> tuple[Look, ...]:
    """One look per object of a release's manifest."""
    found = []
    for document in documents(manifest):
        metadata = document.get("metadata") or {}
        if document.get("kind") and metadata.get("name"):
            found.append((document, str(metadata.get("namespace") or namespace)))
    return _side_by_side(
        found,
        lambda document, home: look_at(
            client, document, home, lambda ref: completed(document, release, namespace, ref.namespace), FIELD_MANAGER
        ),
    )


def look_at_manifests(client: KubeClient, manifests: Iterable[dict[str, Any]], manager: str) -> tuple[Look, ...]:
    """One look per manifest that is applied by ``manager``, complete as it is."""
    found = [(manifest, manifest["metadata"].get("namespace")) for manifest in manifests]
    return _side_by_side(found, lambda manifest, home: look_at(client, manifest, home, lambda _: manifest, manager))


def _side_by_side(found: list[tuple[dict[str, Any], Any]], look: Any) -> tuple[Look, ...]:
    if not found:
        return ()
    with ThreadPoolExecutor(max_workers=min(_WORKERS, len(found)), thread_name_prefix="drift") as pool:
        return tuple(pool.map(lambda item: look(*item), found))


def look_at(client: KubeClient, document: Mapping[str, Any], home: str | None, complete: Any, manager: str) -> Look:
    """Compare one object.

    :param home: its namespace, if it turns out to be namespaced.
    :param complete: called with the object's reference, gives the manifest to apply.
    """
    kind, name = str(document["kind"]), str(document["metadata"]["name"])
    target, live = f"{kind} {home}/{name}" if home else f"{kind} {name}", None
    try:
        ref = client.ref(str(document.get("apiVersion", "")), kind, name, home)
        target, live = str(ref), client.get(ref)
        if live is None and passes_away(document):
            return Look(target)
        if live is None or live["metadata"].get("deletionTimestamp"):
            return Look(target, (Difference(Change.DELETED, target),))
        wanted = complete(ref)
        applied = client.apply(wanted, force=True, dry_run=True, field_manager=manager)
    except NotFound as error:
        if live is not None:
            return Look(target, live=live, error=error)
        return Look(target, (Difference(Change.DELETED, target),))  # with its CRD, the object is gone
    except GpuFleetError as error:
        return Look(target, live=live or {}, error=error)
    return Look(target, tuple(differences(target, live, applied, wanted, manager=manager)), live, applied)
