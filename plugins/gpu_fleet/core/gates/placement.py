"""Gate ``pods_placed``: what was evicted runs elsewhere.

Karpenter and node groups launch nodes for pods that are pending, but nobody checks that the pods of a drained node have
found a place. This gate does, per workload (a pod's controller): as many of its pods have become Ready since as were
evicted. A controller that has created none within :data:`RECREATED_WITHIN_S` wants none any more: it was scaled down,
its Job is over, or a newer revision has taken over. Pods without a controller come back only if a person starts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.core.kubernetes.objects import condition, created_at, deleting, is_true
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.teardown.remains import shorten
from gpu_fleet.core.verdict import Verdict, progressing, ready

#: Seconds within which a controller creates the successor of a pod that is gone: it reacts at once, and a busy
#: controller manager, or a back-off after failures, takes some time.
RECREATED_WITHIN_S = 60.0
#: Time stamps of Kubernetes have whole seconds.
_ROUNDING_S = 1.0


def _queries(args: Args) -> tuple[Query, ...]:
    namespaces = sorted({str(each["namespace"]) for each in args["displaced"]})
    return tuple(KubeQuery(f"pods_{index}", POD, namespace=name) for index, name in enumerate(namespaces))


def judge_placed(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when every workload has its pods again, or wants them no longer.

    :param args: ``displaced``: ``[{"namespace", "kind", "name", "uid", "evicted": [UIDs], "since": epoch seconds}]``.
    """
    pods = [pod for listed in snapshot.values() for pod in listed]
    found = [_of(workload, pods, float(args["now"])) for workload in args["displaced"]]
    waiting = [each for each in found if each["pending"] or each["missing"]]
    data = {"workloads": [{key: value for key, value in each.items() if key != "why"} for each in found]}
    if not waiting:
        running = sum(len(each["running"]) for each in found)
        gone = sum(each["notWanted"] for each in found)
        more = f"; {gone} no longer wanted" if gone else ""
        return ready("PodsPlaced", f"{_pods(running)} ready in place of evicted ones{more}", **data)
    names = [f"{each['workload']}: {each['why']}" for each in waiting]
    count = sum(len(each["pending"]) + each["missing"] for each in waiting)
    return progressing("PodsPending", f"{_pods(count)} without a place yet: {shorten(names)}", **data)


def _pods(count: int) -> str:
    return f"{count} pod{'' if count == 1 else 's'}"


def _of(workload: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: float) -> dict[str, Any]:
    evicted, since = set(workload["evicted"]), float(workload["since"])
    wanted = len(evicted)
    new = [
        pod
        for pod in pods
        if _controller_uid(pod) == workload["uid"]
        and pod["metadata"].get("uid") not in evicted
        and (created_at(pod) or 0.0) >= since - _ROUNDING_S
        and not deleting(pod)
    ]
    running = [pod for pod in new if _runs(pod)][:wanted]
    pending = [pod for pod in new if not _runs(pod)][: wanted - len(running)]
    missing = wanted - len(running) - len(pending)
    not_wanted = missing if now - since > RECREATED_WITHIN_S else 0
    return {
        "workload": f"{workload['namespace']}/{workload['kind']}/{workload['name']}",
        "evicted": wanted,
        "running": [
            {"pod": pod["metadata"]["name"], "node": (pod.get("spec") or {}).get("nodeName")} for pod in running
        ],
        "pending": [pod["metadata"]["name"] for pod in pending],
        "missing": missing - not_wanted,
        "notWanted": not_wanted,
        "why": _why(pending) if pending else "its controller has not created a new pod yet",
    }


def _controller_uid(pod: Mapping[str, Any]) -> str:
    owners: Sequence[Mapping[str, Any]] = pod["metadata"].get("ownerReferences") or []
    return next((str(owner.get("uid")) for owner in owners if owner.get("controller")), "")


def _runs(pod: Mapping[str, Any]) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    return phase == "Succeeded" or (phase == "Running" and is_true(pod, "Ready"))


def _why(pods: Sequence[Mapping[str, Any]]) -> str:
    pod = pods[0]
    scheduled = condition(pod, "PodScheduled") or {}
    name = pod["metadata"]["name"]
    if scheduled.get("status") == "False":
        return f"{name} is not scheduled: {scheduled.get('message') or scheduled.get('reason')}"
    where = (pod.get("spec") or {}).get("nodeName")
    return f"{name} is not ready yet on {where}" if where else f"{name} is not scheduled yet"


PODS_PLACED = Gate("pods_placed", _queries, judge_placed)
