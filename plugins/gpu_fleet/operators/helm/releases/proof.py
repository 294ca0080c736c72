"""What proves each component: the gate that must be Ready, its arguments, and how long to wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_fleet.operators.pool import hardware

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.spec import ClusterSpec


def proof_gate(
    spec: ClusterSpec, component: str, outcome: Outcome, *, allow_idle: bool, every_node: bool = False
) -> tuple[str, dict[str, Any]]:
    """The gate whose Ready proves the revision, and its arguments.

    :param allow_idle: accept a device plugin that no node wants.
    :param every_node: one working node is not enough for the device plugin.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.device_plugin.detect import Ours

    if component == "karpenter-crd":
        return "crds_established", {"crds": list(outcome.crds)}
    args: dict[str, Any] = {
        "release": outcome.release,
        "namespace": outcome.namespace,
        "workloads": list(outcome.workloads),
        "passing": list(outcome.passing),
    }
    if component == "karpenter":
        return "release_workloads", args
    return "device_plugin_proven", {
        **args,
        "pools": _promises(spec),
        "ours": Ours.of(spec).to_json(),
        "allow_unproven": allow_idle,
        "every_node": every_node,
    }


def proof_deadline_s(spec: ClusterSpec, component: str) -> float:
    """Seconds within which the component must be proven."""
    deadlines = spec.deadlines
    field = {"karpenter-crd": deadlines.crds, "karpenter": deadlines.release}.get(component, deadlines.prove)
    return float(field.seconds)


def _promises(spec: ClusterSpec) -> dict[str, dict[str, Any]]:
    """Per pool: its instance types, a node's physical GPUs according to EC2, and how often each is advertised."""
    return {
        pool.name: {
            "physical": hardware(spec, pool).count,
            "replicas": pool.replicas,
            "types": list(pool.instance_types),
        }
        for pool in spec.node_pools
    }
