"""The gate of a drain: the pods that were asked to go are gone, each confirmed by its UID.

A name alone proves nothing: a StatefulSet's next pod has the same one.
"""

from __future__ import annotations

from gpu_fleet.core.gates import Args, Gate, KubeQuery, Query, Snapshot, register
from gpu_fleet.core.kinds import POD
from gpu_fleet.core.readiness.teardown import shorten
from gpu_fleet.core.verdict import Verdict, progressing, ready


def _queries(args: Args) -> tuple[Query, ...]:
    """One query per node: all pods of a large cluster would be a lot to watch for a few nodes."""
    return tuple(
        KubeQuery(f"pods_{index}", POD, field_selector=f"spec.nodeName={node}")
        for index, node in enumerate(args["nodes"])
    )


def judge_pods_gone(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when none of the UIDs in ``args["uids"]`` is left.

    :param args: ``nodes``: node names; ``uids``: UIDs to wait for; ``blocked``: what PDBs protect, in words; ``dead``:
        nodes that are not Ready, and why.
    """
    uids = frozenset(args["uids"])
    left = [pod for pods in snapshot.values() for pod in pods if pod["metadata"].get("uid") in uids]
    if not left:
        return ready("PodsGone", f"all {len(uids)} pods are gone from {shorten(list(args['nodes']))}")
    names = [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in left]
    dead: dict[str, str] = dict(args.get("dead") or {})
    there = sorted({str((pod.get("spec") or {}).get("nodeName") or "") for pod in left} & dead.keys())
    away = (
        f"; no kubelet ends those on {shorten([f'{name} (not Ready: {dead[name]})' for name in there])}"
        if there
        else ""
    )
    blocked = list(args.get("blocked") or ())
    if blocked:
        return progressing("EvictionBlocked", f"{len(left)} pods remain; blocked: {shorten(blocked)}{away}")
    return progressing("PodsTerminating", f"{len(left)} pods are terminating: {shorten(names)}{away}")


PODS_GONE = register(Gate("pods_gone", _queries, judge_pods_gone, waits_for_absence=True))
