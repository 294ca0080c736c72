"""A node that came, with what Kubernetes keeps of it, and records as a history has them."""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.stages.moments import Moment, NodeTimes
from tests.unit.core.cluster_objects import NOW, POOL, stamp

NODE, INSTANCE = "ip-10-0-0-1.us-west-2.compute.internal", "i-0123456789abcdef0"
#: Seconds after :data:`NOW` at which each moment came.
CAME = {
    Moment.PENDING: 0.0,
    Moment.CLAIMED: 3.0,
    Moment.LAUNCHED: 5.0,
    Moment.REGISTERED: 105.0,
    Moment.READY: 110.0,
    Moment.PLUGIN: 140.0,
    Moment.PROVEN: 170.0,
    Moment.USED: 400.0,
}


def at(moment: Moment, later: float = 0.0) -> str:
    return stamp(NOW + CAME[moment] + later)


def true(kind: str, since: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "lastTransitionTime": since}


def node(**conditions: str) -> dict[str, Any]:
    """:param conditions: other time stamps than the usual ones, by type."""
    labels = {
        "karpenter.sh/nodepool": POOL,
        "node.kubernetes.io/instance-type": "g5.xlarge",
        "topology.kubernetes.io/zone": "us-west-2a",
        "karpenter.sh/capacity-type": "spot",
    }
    return {
        "metadata": {"name": NODE, "uid": "uid-node", "labels": labels, "creationTimestamp": at(Moment.REGISTERED)},
        "spec": {"providerID": f"aws:///us-west-2a/{INSTANCE}"},
        "status": {"conditions": [true("Ready", conditions.get("Ready", at(Moment.READY)))]},
    }


def claim(*without: str, initialized: str | None = None) -> dict[str, Any]:
    """:param without: conditions that are not True."""
    stamps = {
        "Launched": at(Moment.LAUNCHED, 1.0),
        "Registered": at(Moment.REGISTERED),
        "Initialized": initialized or at(Moment.PLUGIN, 1.0),
    }
    conditions = [
        true(kind, since) if kind not in without else {**true(kind, since), "status": "Unknown"}
        for kind, since in stamps.items()
    ]
    return {
        "metadata": {"name": f"{POOL}-abcde", "uid": "uid-claim", "creationTimestamp": at(Moment.CLAIMED)},
        "status": {"nodeName": NODE, "conditions": conditions},
    }


def pod(
    name: str, created: str, scheduled: str | None, *, component: str = "", gpus: int = 1, node_name: str = NODE
) -> dict[str, Any]:
    labels = {"gpu-fleet.io/component": component} if component else {}
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return {
        "metadata": {"name": name, "namespace": "ml", "labels": labels, "creationTimestamp": created},
        "spec": {"nodeName": node_name, "containers": [{"name": "main", "resources": resources}]},
        "status": {"conditions": [true("PodScheduled", scheduled)] if scheduled else []},
    }


def placeholder() -> dict[str, Any]:
    return pod("placeholder-0", at(Moment.PENDING), at(Moment.PLUGIN), component="placeholder")


def times(
    number: int,
    *,
    run: str = "gpu_lifecycle.demo/earlier",
    instance_type: str = "g5.xlarge",
    slower: dict[Moment, float] | None = None,
    without: tuple[Moment, ...] = (),
) -> NodeTimes:
    """The record of a node that came as usual.

    :param slower: seconds by which this moment and all after it come later.
    """
    late, found = 0.0, {}
    for moment, seconds in CAME.items():
        late += (slower or {}).get(moment, 0.0)
        if moment not in without:
            found[moment] = NOW + number * 1000 + seconds + late
    return NodeTimes(
        key=f"uid-{number}",
        node=f"ip-10-0-0-{number}.us-west-2.compute.internal",
        claim=f"{POOL}-{number:05}",
        instance=f"i-{number:017}",
        instance_type=instance_type,
        zone="us-west-2a",
        capacity_type="spot",
        pod="gpu-fleet-system/placeholder-0",
        asked=True,
        created=NOW + number * 1000 + CAME[Moment.CLAIMED],
        run=run,
        at=found,
    )
