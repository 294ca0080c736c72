"""The gate of a drain: the pods that were asked to go are gone, each confirmed by its UID; or one may be asked again.

A name alone proves nothing: a StatefulSet's next pod has the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import POD, POD_DISRUPTION_BUDGET
from gpu_fleet.core.kubernetes.pod_budgets import forbidden_by, versions_of
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.teardown.remains import shorten
from gpu_fleet.core.verdict import Verdict, progressing, ready

_BUDGETS = "budgets"


def _queries(args: Args) -> tuple[Query, ...]:
    """One query per node: watching all pods of a large cluster for a few nodes would be expensive."""
    pods = tuple(
        KubeQuery(f"pods_{index}", POD, field_selector=f"spec.nodeName={node}")
        for index, node in enumerate(args["nodes"])
    )
    return (*pods, KubeQuery(_BUDGETS, POD_DISRUPTION_BUDGET)) if args.get("held") else pods


def judge_pods_gone(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when none of the UIDs in ``args["uids"]`` is left, or a pod that was held may be evicted now.

    :param args: ``nodes``: node names; ``uids``: UIDs to wait for; ``blocked``: why evictions were refused, in words;
        ``held``: UIDs of pods that budgets held -> the budgets' versions before the eviction was tried;
        ``again_after``: epoch seconds, by this machine's clock, before which none is tried again; ``dead``:
        nodes that are not Ready, and why.
    """
    uids = frozenset(args["uids"])
    left = [
        pod for key, pods in snapshot.items() if key != _BUDGETS for pod in pods if pod["metadata"].get("uid") in uids
    ]
    if not left:
        return ready("PodsGone", f"all {len(uids)} pods are gone from {shorten(list(args['nodes']))}")
    freed = _freed(left, snapshot.get(_BUDGETS, []), args.get("held") or {})
    if freed and float(args.get("here", 0.0)) >= float(args.get("again_after", 0.0)):
        return ready(
            "EvictionPossible", f"PodDisruptionBudgets have changed and now allow the eviction of {shorten(freed)}"
        )
    names = [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in left]
    dead: dict[str, str] = dict(args.get("dead") or {})
    there = sorted({str((pod.get("spec") or {}).get("nodeName") or "") for pod in left} & dead.keys())
    away = (
        f"; no kubelet terminates those on {shorten([f'{name} (not Ready: {dead[name]})' for name in there])}"
        if there
        else ""
    )
    blocked = list(args.get("blocked") or ())
    if blocked:
        return progressing("EvictionBlocked", f"{len(left)} pods remain; blocked: {shorten(blocked)}{away}")
    return progressing("PodsTerminating", f"{len(left)} pods are terminating: {shorten(names)}{away}")


def _freed(
    pods: Sequence[Mapping[str, Any]], budgets: Sequence[Mapping[str, Any]], held: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """The held pods whose eviction their budgets would allow.

    Only budgets that have changed since count: an unchanged one has refused the eviction, whatever its status says (its
    controller may be behind, see kubernetes v1.35 ``pkg/registry/core/pod/storage/eviction.go``).
    """
    return [
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in pods
        if (versions := held.get(str(pod["metadata"].get("uid")))) is not None
        and versions_of(pod, budgets) != versions
        and forbidden_by(pod, budgets) is None
    ]


PODS_GONE = Gate("pods_gone", _queries, judge_pods_gone, waits_for_absence=True)
