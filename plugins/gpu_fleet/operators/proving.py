"""Keeps a gated pool from buying nodes while its nodes are being proven: ``core/admission/hold.py`` has the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import pool_claims

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def hold_pool(kube: KubeClient, name: str, run: str) -> int | None:
    """Let the pool have no more nodes than it has.

    :returns: how many these are; ``None`` if nothing had to be changed.
    """
    from gpu_fleet.core.admission.hold import held

    pool = kube.get(ObjectRef(NODE_POOL, name))
    if pool is None:
        return None
    count = len(pool_claims(kube.list(NODE_CLAIM, label_selector=f"{LABEL_NODE_POOL}={name}"), name))
    manifest = held(pool, count, run)
    if manifest is None:
        return None
    kube.apply(manifest, force=True)
    return count


def release_pool(kube: KubeClient, name: str, run: str | None = None) -> bool:
    """Take the hold back.

    :param run: only if this run holds it.
    :returns: whether there was one.
    """
    from gpu_fleet.core.admission.hold import held_by, released

    pool = kube.get(ObjectRef(NODE_POOL, name))
    if pool is None or (run is not None and held_by(pool) != run):
        return False
    manifest = released(pool)
    if manifest is None:
        return False
    kube.apply(manifest, force=True)
    return True
