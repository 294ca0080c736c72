"""Looks for drift: applies a stored manifest as a dry run, object by object; writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpu_fleet.core.errors import Forbidden, GpuFleetError, Invalid, NotFound
from gpu_fleet.core.releases.drift import FIELD_MANAGER, Change, Difference, completed, differences
from gpu_fleet.core.releases.objects import documents
from gpu_fleet.hooks.kubernetes_client import KubeClient

log = logging.getLogger(__name__)

#: Requests at a time: a look at twenty objects should not take twenty round trips.
_WORKERS = 6


def find_drift(client: KubeClient, manifest: str, release: str, namespace: str) -> tuple[Difference, ...]:
    """How the cluster differs from a release's manifest, object by object.

    An object that cannot be compared (no permission to patch it, say) is logged and left out.
    """
    found = [item for item in documents(manifest) if item.get("kind") and (item.get("metadata") or {}).get("name")]
    if not found:
        return ()
    with ThreadPoolExecutor(max_workers=min(_WORKERS, len(found)), thread_name_prefix="drift") as pool:
        parts = pool.map(lambda document: _compare(client, document, release, namespace), found)
        return tuple(item for part in parts for item in part)


def _compare(client: KubeClient, document: Mapping[str, Any], release: str, namespace: str) -> list[Difference]:
    metadata = document["metadata"]
    kind, name = str(document["kind"]), str(metadata["name"])
    home = str(metadata.get("namespace") or namespace)
    try:
        ref = client.ref(str(document.get("apiVersion", "")), kind, name, home)
    except NotFound:  # with its CRD, the object is gone
        return [Difference(Change.DELETED, f"{kind} {home}/{name}")]
    live = client.get(ref)
    if live is None or (live.get("metadata") or {}).get("deletionTimestamp"):
        return [Difference(Change.DELETED, str(ref))]
    wanted = completed(document, release, namespace, ref.namespace)
    try:
        applied = client.apply(wanted, force=True, dry_run=True, field_manager=FIELD_MANAGER)
    except (Forbidden, Invalid) as error:
        log.warning("drift of %s cannot be seen: %s", ref, error.message)
        return []
    except GpuFleetError as error:
        log.warning("drift of %s is not known this time: %s", ref, error.message)
        return []
    return differences(str(ref), live, applied, wanted)
