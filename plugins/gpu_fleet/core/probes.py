"""Probe pods: what runs on a node to prove that its GPUs work and are shared as promised.

All probes of a node are identical pods that each ask for one GPU; what they prove follows from how many there are.
``sharing`` and ``exclusive`` fill the node (physical × replicas pods) and add one pod too many. Which of them ends up
as the pod too many is the scheduler's choice, and does not matter: exactly one must have to wait. So one round, and one
wait, proves CUDA, concurrency, the distribution over GPUs and the bound.

Every pod is pinned to its node by host name. Karpenter cannot serve a pinned pod, so no probe ever buys a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity import container_security, pod_security, tolerations
from gpu_fleet.core.names import (
    ANNOTATION_RUN,
    DOMAIN,
    GPU_RESOURCE,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_HOSTNAME,
    LABEL_POOL,
    LABEL_RUN,
    RUNTIME_CLASS_NAME,
    TAINT_QUARANTINED,
    TAINT_UNSCHEDULABLE,
    short_hash,
)

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool

COMPONENT_PROBE = "probe"
LABEL_PROBE = f"{DOMAIN}/probe"
LABEL_ROLE = f"{DOMAIN}/role"
#: The node that a pod is pinned to, as an annotation: node names may be longer than a label value.
ANNOTATION_NODE = f"{DOMAIN}/node"

SCRIPT = "gpu.sh"
VECTOR_ADD_PATH = "/cuda-samples/vectorAdd"
TERMINATION_LOG = "/dev/termination-log"


class Probe(StrEnum):
    """What a probe task proves.

    ``VECTORADD``: CUDA works, one pod per node. ``SHARING``: all replicas of all GPUs at once, and not one more.
    ``EXCLUSIVE``: the same on a pool without sharing: as many pods as GPUs, each with a GPU of its own.
    ``OVERFLOW``: a container that asks for two shared GPUs is refused (``failRequestsGreaterThanOne``).
    """

    VECTORADD = "vectoradd"
    SHARING = "sharing"
    EXCLUSIVE = "exclusive"
    OVERFLOW = "overflow"


class Role(StrEnum):
    """What a pod is for: ``USER`` asks for one GPU, ``GREEDY`` for two and must be refused."""

    USER = "user"
    GREEDY = "greedy"


@dataclass(frozen=True)
class NodeRound:
    """What one probe does on one node.

    :ivar users: how many pods that ask for one GPU are created.
    :ivar fill: how many of them have room at the same time; the others have to wait.
    :ivar greedy: whether a pod that asks for two GPUs is created as well.
    :ivar held: GPUs that pods of others hold there.
    """

    node: str
    users: int
    fill: int
    greedy: bool
    held: int

    @property
    def busy(self) -> bool:
        """No GPU is free: nothing is probed, and nobody is disturbed."""
        return self.fill == 0 and not self.greedy

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "users": self.users,
            "fill": self.fill,
            "greedy": self.greedy,
            "held": self.held,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NodeRound:
        return cls(
            str(value["node"]), int(value["users"]), int(value["fill"]), bool(value["greedy"]), int(value["held"])
        )


def plan_round(probe: Probe, spec: ClusterSpec, pool: NodePool, node: str, *, slots: int, held: int) -> NodeRound:
    """What a probe does on a node, taking only what is free there.

    :param slots: physical × replicas.
    :param held: GPUs that users' pods hold.
    """
    free = max(0, slots - held)
    refuses = pool.refuses_two
    match probe:
        case Probe.VECTORADD:
            return NodeRound(node, users=min(1, free), fill=min(1, free), greedy=False, held=held)
        case Probe.OVERFLOW:
            return NodeRound(node, users=0, fill=0, greedy=refuses and free >= 2, held=held)
        case Probe.SHARING | Probe.EXCLUSIVE:
            extra = 1 if free and spec.validation.probes.oversubscription else 0
            return NodeRound(node, users=free + extra, fill=free, greedy=refuses and free >= 2, held=held)


def pod_name(probe: Probe, role: Role, node: str, index: int, run_label: str) -> str:
    """Deterministic, at most 63 characters: probe, host, index, and a hash that tells nodes and runs apart."""
    host = node.partition(".")[0][:24].strip("-")
    return f"{probe}-{role}-{index}-{host}-{short_hash(node, run_label, length=8)}"


def selector(pool: str, probe: Probe | None = None, run_label: str | None = None) -> str:
    """Label selector of a pool's probe pods, of one probe, of one run."""
    parts = [f"{LABEL_COMPONENT}={COMPONENT_PROBE}", f"{LABEL_POOL}={pool}"]
    if probe is not None:
        parts.append(f"{LABEL_PROBE}={probe}")
    if run_label is not None:
        parts.append(f"{LABEL_RUN}={run_label}")
    return ",".join(parts)


def pods_of_round(
    probe: Probe,
    spec: ClusterSpec,
    pool: NodePool,
    round_: NodeRound,
    *,
    script: str,
    run: str,
    run_label: str,
) -> list[dict[str, Any]]:
    """The pods of one node, the greedy one first: it is refused at once and leaves its room to the others.

    :param script: text of ``include/probes/gpu.sh``.
    """
    pods = []
    if round_.greedy:
        pods.append(_pod(probe, Role.GREEDY, spec, pool, round_.node, 0, 2, script, 0, run, run_label))
    hold = spec.validation.overlap.seconds if probe in (Probe.SHARING, Probe.EXCLUSIVE) else 0
    pods += [
        _pod(probe, Role.USER, spec, pool, round_.node, index, 1, script, hold, run, run_label)
        for index in range(round_.users)
    ]
    return pods


def _pod(
    probe: Probe,
    role: Role,
    spec: ClusterSpec,
    pool: NodePool,
    node: str,
    index: int,
    gpus: int,
    script: str,
    hold: int,
    run: str,
    run_label: str,
) -> dict[str, Any]:
    images = spec.validation.images
    with_vector_add = spec.validation.probes.vector_add
    arguments = [str(hold), VECTOR_ADD_PATH if with_vector_add else "-"]
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(probe, role, node, index, run_label),
            "namespace": spec.validation.namespace,
            "labels": {
                LABEL_CLUSTER: spec.name,
                LABEL_POOL: pool.name,
                LABEL_COMPONENT: COMPONENT_PROBE,
                LABEL_PROBE: str(probe),
                LABEL_ROLE: str(role),
                LABEL_RUN: run_label,
            },
            "annotations": {ANNOTATION_RUN: run, ANNOTATION_NODE: node},
        },
        "spec": {
            "restartPolicy": "Never",
            # A probe that nobody looks at any more must not hold a GPU: the kubelet ends it.
            "activeDeadlineSeconds": spec.deadlines.validation.seconds,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "runtimeClassName": RUNTIME_CLASS_NAME,
            "nodeSelector": {LABEL_HOSTNAME: node},
            "tolerations": probe_tolerations(pool),
            "securityContext": pod_security(),
            "containers": [
                {
                    "name": "probe",
                    "image": images.vector_add if with_vector_add else images.cuda,
                    "command": ["/bin/sh", "-c", script, "gpu", *arguments],
                    "terminationMessagePath": TERMINATION_LOG,
                    "terminationMessagePolicy": "File",
                    "securityContext": container_security(),
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "128Mi", GPU_RESOURCE: str(gpus)},
                        "limits": {"memory": "1Gi", GPU_RESOURCE: str(gpus)},
                    },
                }
            ],
        },
    }
    if spec.validation.image_pull_secrets:
        pod["spec"]["imagePullSecrets"] = [{"name": name} for name in spec.validation.image_pull_secrets]
    return pod


def probe_tolerations(pool: NodePool) -> list[dict[str, Any]]:
    """The pool's taints, and those of a quarantined node: only a probe can show that it works again."""
    return [
        *tolerations(pool),
        {"key": TAINT_QUARANTINED, "operator": "Exists", "effect": "NoSchedule"},
        {"key": TAINT_UNSCHEDULABLE, "operator": "Exists", "effect": "NoSchedule"},
    ]


def is_greedy(pod: Mapping[str, Any]) -> bool:
    return ((pod.get("metadata") or {}).get("labels") or {}).get(LABEL_ROLE) == Role.GREEDY


def pinned_to(pod: Mapping[str, Any]) -> str:
    """The node that a probe pod is pinned to."""
    return str(((pod.get("spec") or {}).get("nodeSelector") or {}).get(LABEL_HOSTNAME, ""))


def reusable(existing: Sequence[Mapping[str, Any]], expected: Sequence[str]) -> bool:
    """Whether pods left by an earlier try of the same task can be built on.

    Either all are there, or creation was interrupted before any of them finished. Otherwise a pod created now would run
    after others have finished, and the overlap that the verdict rests on would be missing for no fault of the node.
    """
    names = {str((pod.get("metadata") or {}).get("name", "")) for pod in existing}
    if any((pod.get("metadata") or {}).get("deletionTimestamp") for pod in existing):
        return False
    if not names <= set(expected):
        return False
    users = [pod for pod in existing if not is_greedy(pod)]
    ended = any((pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") for pod in users)
    return names == set(expected) or not ended
