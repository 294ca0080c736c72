"""The pods of probes: bounded, unprivileged, pinned to their node, and labelled with their owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity.placeholders import container_security, pod_security, tolerations
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_RUN,
    COMPONENT_PROBE,
    DOMAIN,
    GPU_RESOURCE,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_HOSTNAME,
    LABEL_POOL,
    LABEL_RUN,
    PLACEHOLDER_PRIORITY_CLASS,
    RUNTIME_CLASS_NAME,
    TAINT_QUARANTINED,
    TAINT_UNSCHEDULABLE,
)
from gpu_fleet.core.probes.plan import LABEL_PROBE, LABEL_ROLE, NodeRound, Probe, Role, pod_name
from gpu_fleet.core.probes.status import PROBE_CONTAINER

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool

#: The node that a pod is pinned to, as an annotation: node names may be longer than a label value.
ANNOTATION_NODE = f"{DOMAIN}/node"
TERMINATION_LOG = "/dev/termination-log"
#: MiB of a GPU's memory that the CUDA context of one vectorAdd takes at most, rounded up: 526 MiB per process on an
#: H200 with driver 580 (recorded by ``bench/gpu.py``), less on GPUs with fewer multiprocessors.
CONTEXT_MIB = 600
#: Probes that make CUDA contexts on GPUs which users may share.
CUDA_BESIDE_USERS = frozenset({Probe.VECTORADD, Probe.SHARING})
#: Where the DCGM image may write; its file system is read-only otherwise.
SCRATCH = "/scratch"


@dataclass(frozen=True)
class PodMaker:
    """Makes the pods of one probe in one run.

    :ivar script: text of the probe's program in ``include/probes``.
    :ivar run: ``<dag_id>/<run_id>``.
    :ivar run_label: its hash.
    """

    probe: Probe
    spec: ClusterSpec
    pool: NodePool
    script: str
    run: str
    run_label: str

    def pods(self, round_: NodeRound) -> list[dict[str, Any]]:
        """The pods of one node, in the order in which they are to be made.

        The greedy pod first: it is refused at once and leaves its room to the others. Holders before the pods for which
        they keep the GPU free.
        """
        first = [self._pod(round_.node, Role.GREEDY, 0, 2)] if round_.greedy else []
        first += [self._pod(round_.node, Role.HOLDER, index, 1) for index in range(round_.holders)]
        least = least_free_mib(round_, self.pool)
        return first + [self._pod(round_.node, Role.USER, index, round_.gpus, least) for index in range(round_.users)]

    def _pod(self, node: str, role: Role, index: int, gpus: int, least_free: int = 0) -> dict[str, Any]:
        spec = self.spec
        container = {
            "name": PROBE_CONTAINER,
            "terminationMessagePath": TERMINATION_LOG,
            "terminationMessagePolicy": "File",
            "securityContext": container_security(),
            "resources": {
                "requests": {"cpu": "50m", "memory": "128Mi", GPU_RESOURCE: str(gpus)},
                "limits": {"memory": "1Gi", GPU_RESOURCE: str(gpus)},
            },
            **self._program(role, index),
        }
        if least_free and self.probe in CUDA_BESIDE_USERS:
            container["env"] = [{"name": "LEAST_FREE_MIB", "value": str(least_free)}]
        body: dict[str, Any] = {
            # Any user's pod may preempt it at once, and it preempts none.
            "priorityClassName": PLACEHOLDER_PRIORITY_CLASS,
            "restartPolicy": "Never",
            # A probe whose run is over must not hold a GPU: the kubelet ends it.
            "activeDeadlineSeconds": spec.deadlines.validation.seconds,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "runtimeClassName": RUNTIME_CLASS_NAME,
            "nodeSelector": {LABEL_HOSTNAME: node},
            "tolerations": probe_tolerations(self.pool),
            "securityContext": pod_security(),
            "containers": [container],
        }
        if spec.validation.image_pull_secrets:
            body["imagePullSecrets"] = [{"name": name} for name in spec.validation.image_pull_secrets]
        if self.probe is Probe.DCGM and role is not Role.HOLDER:
            _as_dcgm_needs(body, container)
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod_name(self.probe, role, node, index, self.run_label),
                "namespace": spec.validation.namespace,
                "labels": {
                    LABEL_CLUSTER: spec.name,
                    LABEL_POOL: self.pool.name,
                    LABEL_COMPONENT: COMPONENT_PROBE,
                    LABEL_PROBE: str(self.probe),
                    LABEL_ROLE: str(role),
                    LABEL_RUN: self.run_label,
                },
                "annotations": {ANNOTATION_RUN: self.run, ANNOTATION_NODE: node},
            },
            "spec": body,
        }

    def _program(self, role: Role, index: int) -> Mapping[str, Any]:
        """Image, command and environment of the probe's container."""
        validation = self.spec.validation
        images, commands, probes = validation.images, validation.commands, validation.probes
        if role is Role.HOLDER:
            return {"image": images.placeholder}
        match self.probe:
            case Probe.THROUGHPUT:
                seconds = measuring_seconds(self.spec, self.pool, alone=index == 0)
                return {
                    "image": images.throughput,
                    "command": [*commands.python, "-c", self.script, str(seconds)],
                    # A plain image does not request from the NVIDIA runtime what the probe needs: libcuda, nvidia-smi.
                    "env": [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}],
                }
            case Probe.DCGM:
                return {
                    "image": images.dcgm,
                    "command": [*commands.shell, "-c", self.script, "dcgm", str(probes.dcgm or 1)],
                    "env": [
                        {"name": "TMPDIR", "value": SCRATCH},
                        {"name": "HOME", "value": SCRATCH},
                        {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},
                    ],
                }
        holds = self.probe in (Probe.SHARING, Probe.EXCLUSIVE) and role is Role.USER
        arguments = [
            str(validation.overlap.seconds if holds else 0),
            *(commands.vector_add if probes.vector_add else ("-",)),
        ]
        return {
            "image": images.vector_add if probes.vector_add else images.cuda,
            "command": [*commands.shell, "-c", self.script, "gpu", *arguments],
        }


def _as_dcgm_needs(body: dict[str, Any], container: dict[str, Any]) -> None:
    """The diagnostics read device files and write logs: root, though without any capability, and a folder to write."""
    body["securityContext"] = {"seccompProfile": {"type": "RuntimeDefault"}}
    body["volumes"] = [{"name": "scratch", "emptyDir": {"sizeLimit": "2Gi"}}]
    container["volumeMounts"] = [{"name": "scratch", "mountPath": SCRATCH}]
    # The memory tests keep buffers of the host's memory.
    container["resources"]["requests"] |= {"cpu": "500m", "memory": "1Gi"}
    container["resources"]["limits"] |= {"memory": "8Gi"}


def least_free_mib(round_: NodeRound, pool: NodePool) -> int:
    """MiB that must be free on a GPU before the probes may make their CUDA contexts there; 0: no limit.

    Where users hold shares of time-sliced GPUs, which isolate no memory, the probes of one GPU must not take what the
    users are about to. In the worst case all of them are on one GPU, at the same time.
    """
    if not pool.shared or pool.mps or not round_.held:
        return 0
    return CONTEXT_MIB * min(round_.fill, pool.replicas)


def measuring_seconds(spec: ClusterSpec, pool: NodePool, *, alone: bool) -> int:
    """How long one process of the throughput probe computes.

    Sharers start within ``overlap`` of each other, so after that all of them compute for ``duration`` at least. The one
    that continues alone outlasts the last of them by as much. Probes of whole GPUs have no sharer to wait for.

    :param alone: whether it is the sharer that continues alone.
    """
    duration = spec.validation.throughput.duration.seconds
    if not pool.shared:
        return duration
    together = spec.validation.overlap.seconds + duration
    return 2 * together if alone else together


def probe_tolerations(pool: NodePool) -> list[dict[str, Any]]:
    """The pool's taints, and those of a quarantined node: only a probe can show that it works again."""
    return [
        *tolerations(pool),
        {"key": TAINT_QUARANTINED, "operator": "Exists", "effect": "NoSchedule"},
        {"key": TAINT_UNSCHEDULABLE, "operator": "Exists", "effect": "NoSchedule"},
    ]
