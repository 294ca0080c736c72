"""Why helm waited in vain: the cause in the objects instead of "timed out"."""

from __future__ import annotations

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.gates.releases import RELEASE_WORKLOADS
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.core.releases.objects import passing, workloads
from gpu_fleet.hooks.kubernetes.client import KubeClient


def cause_of(client: KubeClient, manifest: str, release: str, namespace: str) -> str:
    """What keeps a manifest's workloads from being ready, as a sentence; empty if nothing does, or it is not known."""
    names = list(workloads(manifest, namespace))
    if not names:
        return ""
    gate, now = RELEASE_WORKLOADS, client.now()
    args = {
        "release": release, "namespace": namespace, "workloads": names, "passing": list(passing(manifest, namespace)),
        "patience_s": 0, "now": now, "started": now,
    }  # fmt: skip
    try:
        snapshot = {
            query.key: client.list(query.kind, query.namespace, name=query.name, label_selector=query.label_selector)
            for query in gate.queries(args)
            if isinstance(query, KubeQuery)
        }
    except GpuFleetError:  # it only explains
        return ""
    verdict = gate.judge(snapshot, args)
    return "" if verdict.ready else verdict.message
