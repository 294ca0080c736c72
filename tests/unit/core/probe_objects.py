"""Probe pods in every state, as a kubelet and a scheduler leave them."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.core.cluster_objects import NOW, stamp

NODE = "ip-10-0-0-1.us-west-2.compute.internal"
UUID = "GPU-00000000-1111-2222-3333-444444444444"
OTHER_UUID = "GPU-00000001-1111-2222-3333-444444444444"
NO_GPU = "0/5 nodes are available: 1 Insufficient nvidia.com/gpu, 4 node(s) didn't match Pod's node affinity/selector."

REFUSED = (
    "Pod was rejected: Allocate failed due to rpc error: code = Unknown desc = invalid request: maximum request size "
    "for shared resources is 1; found 2, which is unexpected"
)


def message(
    *,
    started: float = NOW - 30,
    finished: float = NOW - 10,
    uuids: tuple[str, ...] = (UUID,),
    vector_add: bool | None = True,
    error: tuple[str, str] | None = None,
    **changes: Any,
) -> str:
    value: dict[str, Any] = {
        "schema": "gpu-fleet.io/probe/v1",
        "startedAt": int(started * 1000),
        "finishedAt": int(finished * 1000),
        "driver": "570.133.20",
        "cuda": "12.8",
        "gpus": [{"uuid": u, "name": "NVIDIA A10G", "memoryTotalMiB": 23028, "memoryFreeMiB": 22000} for u in uuids],
        "vectorAdd": None
        if vector_add is None
        else {"passed": vector_add, "milliseconds": 900, "exitCode": 0 if vector_add else 1, "output": "Test"},
        "error": None if error is None else {"reason": error[0], "message": error[1]},
    }
    return json.dumps(value | changes)


def pod(index: int, *, role: str = "user", node: str = NODE, scheduled: float | None = 40.0) -> dict[str, Any]:
    """A probe pod without a container status.

    :param scheduled: seconds ago; ``None``: not placed, and the scheduler has said nothing.
    """
    conditions = []
    spec: dict[str, Any] = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}],
    }
    if scheduled is not None:
        conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(NOW - scheduled)}]
        spec["nodeName"] = node
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"sharing-{role}-{index}",
            "namespace": "gpu-fleet-validation",
            "uid": f"uid-{role}-{index}",
            "creationTimestamp": stamp(NOW - 41),
            "labels": {
                "gpu-fleet.io/role": role,
                "gpu-fleet.io/component": "probe",
                "gpu-fleet.io/pool": "shared-a10g",
            },
        },
        "spec": spec,
        "status": {"phase": "Pending", "conditions": conditions},
    }


def with_state(probe: dict[str, Any], phase: str, **state: Any) -> dict[str, Any]:
    probe["status"] |= {"phase": phase, "containerStatuses": [{"name": "probe", "restartCount": 0, "state": state}]}
    return probe


def ended(
    index: int,
    *,
    started: float = 30.0,
    finished: float = 10.0,
    text: str | None = None,
    code: int = 0,
    reason: str = "",
    **kwargs: Any,
) -> dict[str, Any]:
    """A pod whose container ran from ``started`` to ``finished`` seconds ago."""
    if text is None:
        text = message(started=NOW - started, finished=NOW - finished)
    terminated = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "message": text,
        "startedAt": stamp(NOW - started),
        "finishedAt": stamp(NOW - finished),
    }
    return with_state(pod(index, **kwargs), "Succeeded" if code == 0 else "Failed", terminated=terminated)


def running(index: int, **kwargs: Any) -> dict[str, Any]:
    return with_state(pod(index, **kwargs), "Running", running={"startedAt": stamp(NOW - 5)})


def waiting(index: int, reason: str, text: str = "", **kwargs: Any) -> dict[str, Any]:
    return with_state(pod(index, **kwargs), "Pending", waiting={"reason": reason, "message": text})


def unplaced(index: int, words: str = NO_GPU, **kwargs: Any) -> dict[str, Any]:
    """A pod that the scheduler could not place."""
    probe = pod(index, scheduled=None, **kwargs)
    probe["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": words,
            "lastTransitionTime": stamp(NOW - 40),
        }
    ]
    return probe


def refused(
    index: int = 0, words: str = REFUSED, reason: str = "UnexpectedAdmissionError", **kwargs: Any
) -> dict[str, Any]:
    """A pod that the kubelet did not admit."""
    probe = pod(index, **({"role": "greedy"} | kwargs))
    probe["status"] |= {"phase": "Failed", "reason": reason, "message": words}
    return probe


def preempted(index: int) -> dict[str, Any]:
    """A pod that the scheduler is taking away for a more important one."""
    probe = ended(index, code=2, text=message(error=("Interrupted", "the probe was told to stop")))
    probe["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    )
    return probe


def preempted_event(node: str, at: float) -> dict[str, Any]:
    return {"reason": "Preempted", "message": f"Preempted by pod 0a1b on node {node}", "lastTimestamp": stamp(at)}


def refusal_event(index: int, words: str) -> dict[str, Any]:
    return {
        "reason": "FailedScheduling",
        "message": f"0/5 nodes are available: {words}",
        "involvedObject": {"kind": "Pod", "uid": f"uid-user-{index}"},
    }


def no_gpu_event(index: int) -> dict[str, Any]:
    return {
        "reason": "FailedScheduling",
        "message": NO_GPU,
        "involvedObject": {"kind": "Pod", "uid": f"uid-user-{index}"},
    }
