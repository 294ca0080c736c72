"""What probes do on a node to prove that its GPUs work and are shared as promised; their pods are in ``pods``.

All pods of a probe are alike, and each requests one GPU (only DCGM's all of them): what they prove follows from their
number. ``sharing`` and ``exclusive`` fill the node (physical × replicas pods) and add one pod too many. Which of them
ends up as the pod too many is the scheduler's choice, and does not matter: exactly one must have to wait. So one
round, and one wait, proves CUDA, concurrency, the distribution over GPUs and the bound. ``throughput`` fills the node
with processes that compute, one of which continues alone when the others have ended: again one round for both figures.

Every pod is pinned to its node by host name. Karpenter ignores a pinned pod, so no probe ever buys a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.names import (
    COMPONENT_PROBE,
    DOMAIN,
    LABEL_COMPONENT,
    LABEL_HOSTNAME,
    LABEL_POOL,
    LABEL_RUN,
    short_hash,
)
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.probes.status import has_ended

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool

LABEL_PROBE = f"{DOMAIN}/probe"
LABEL_ROLE = f"{DOMAIN}/role"


class Probe(StrEnum):
    """What a probe task proves.

    ``VECTORADD``: CUDA works, one pod per node. ``SHARING``: all replicas of all GPUs at once, and not one more.
    ``EXCLUSIVE``: the same on a pool without sharing: as many pods as GPUs, each with a GPU of its own.
    ``OVERFLOW``: a container that requests two shared GPUs is refused (``failRequestsGreaterThanOne``).
    ``THROUGHPUT``: how fast all GPUs compute, for sharers together and for one alone; shared GPUs only on nodes where
    no user's pod holds a share.
    ``DCGM``: NVIDIA's diagnostics pass, on nodes whose GPUs are all free.
    """

    VECTORADD = "vectoradd"
    SHARING = "sharing"
    EXCLUSIVE = "exclusive"
    OVERFLOW = "overflow"
    THROUGHPUT = "throughput"
    DCGM = "dcgm"


#: Probes that come after a first one has shown that GPUs work at all, and measure what it has proven.
MEASURING = frozenset({Probe.THROUGHPUT, Probe.DCGM})
#: The program in ``include/probes`` that a probe's pods run.
SCRIPTS = dict.fromkeys(Probe, "gpu.sh") | {Probe.THROUGHPUT: "throughput.py", Probe.DCGM: "dcgm.sh"}


class Role(StrEnum):
    """What a pod is for: ``USER`` requests one GPU, ``GREEDY`` two and must be refused; ``HOLDER`` only keeps a share
    of the GPU that another pod of the round must have to itself.
    """

    USER = "user"
    GREEDY = "greedy"
    HOLDER = "holder"


@dataclass(frozen=True)
class NodeRound:
    """What one probe does on one node.

    :ivar users: how many pods that request one GPU are created.
    :ivar fill: how many of them have room at the same time; the others have to wait.
    :ivar greedy: whether a pod that requests two GPUs is created as well.
    :ivar held: GPUs that users' pods hold there.
    :ivar gpus: how many each of the ``users`` requests.
    :ivar holders: how many pods keep one share each, so that the users have the node to themselves.
    """

    node: str
    users: int
    fill: int
    greedy: bool
    held: int
    gpus: int = 1
    holders: int = 0

    @property
    def busy(self) -> bool:
        """Whether no GPU is free: nothing is probed, and no user is disturbed."""
        return self.fill == 0 and not self.greedy

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "users": self.users,
            "fill": self.fill,
            "greedy": self.greedy,
            "held": self.held,
            "gpus": self.gpus,
            "holders": self.holders,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NodeRound:
        return cls(
            str(value["node"]),
            int(value["users"]),
            int(value["fill"]),
            bool(value["greedy"]),
            int(value["held"]),
            int(value.get("gpus", 1)),
            int(value.get("holders", 0)),
        )


def plan_round(
    probe: Probe, spec: ClusterSpec, pool: NodePool, node: str, *, slots: int, held: int, physical: int = 1
) -> NodeRound:
    """What a probe does on a node, taking only what is free there.

    Throughput needs a node with shared GPUs to itself. To which GPUs the users' shares belong is known on the node only
    (kubernetes pkg/kubelet/apis/podresources is a local socket, and the device plugin answers only the kubelet), not to
    the API server, and the device plugin chooses the GPU of each pod. So a probe cannot be kept away from a user's
    GPU, and a measurement beside users is worthless as well.

    An MPS server serves one user id at a time, and clients of another wait until it ends (NVIDIA MPS documentation,
    'Control daemon'). Beside users' pods the probes would wait for them, so such a node is left alone.

    :param slots: physical × replicas.
    :param held: GPUs that users' pods hold.
    """
    free = 0 if pool.mps and held else max(0, slots - held)
    refuses = pool.refuses_two
    match probe:
        case Probe.VECTORADD:
            return NodeRound(node, users=min(1, free), fill=min(1, free), greedy=False, held=held)
        case Probe.OVERFLOW:
            return NodeRound(node, users=0, fill=0, greedy=refuses and free >= 2, held=held)
        case Probe.SHARING | Probe.EXCLUSIVE:
            extra = 1 if free and spec.validation.probes.oversubscription else 0
            return NodeRound(node, users=free + extra, fill=free, greedy=refuses and free >= 2, held=held)
        case Probe.THROUGHPUT:
            free = 0 if pool.shared and held else free
            return NodeRound(node, users=free, fill=free, greedy=False, held=held)
        case Probe.DCGM:
            gpus = diagnosable_gpus(pool, physical) or 0
            idle = 1 if gpus and not held else 0
            # Diagnostics fill memory and stress the GPU: no pod may get the shares that one container cannot request.
            rest = slots - gpus if idle else 0
            return NodeRound(node, users=idle, fill=idle, greedy=False, held=held, gpus=gpus, holders=rest)


def diagnosable_gpus(pool: NodePool, physical: int) -> int | None:
    """How many GPUs one container must request to see every GPU of a node; ``None``: it cannot.

    Where requests for several shares are refused one share shows one GPU, which is all of a node that has one. DCGM
    does not diagnose a GPU that an MPS server holds.
    """
    if pool.mps:
        return None
    if not pool.refuses_two:
        return physical * pool.replicas
    return 1 if physical == 1 else None


def pod_name(probe: Probe, role: Role, node: str, index: int, run_label: str) -> str:
    """Deterministic, at most 63 characters: probe, host, index, and a hash that distinguishes nodes and runs."""
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


def is_greedy(pod: Mapping[str, Any]) -> bool:
    return _role(pod) == Role.GREEDY


def is_holder(pod: Mapping[str, Any]) -> bool:
    return _role(pod) == Role.HOLDER


def _role(pod: Mapping[str, Any]) -> object:
    return ((pod.get("metadata") or {}).get("labels") or {}).get(LABEL_ROLE)


def holds(pod: Mapping[str, Any]) -> bool:
    """Whether a holder has its share, and its node's kubelet has accepted it."""
    status = pod.get("status") or {}
    placed = bool((pod.get("spec") or {}).get("nodeName")) and bool(status.get("startTime"))
    return placed and status.get("phase") not in ("Succeeded", "Failed")


def pinned_to(pod: Mapping[str, Any]) -> str:
    """The node that a probe pod is pinned to."""
    return str(((pod.get("spec") or {}).get("nodeSelector") or {}).get(LABEL_HOSTNAME, ""))


def reusable(existing: Sequence[Mapping[str, Any]], expected: Sequence[str]) -> bool:
    """Whether pods left by an earlier try of the same task can be built on.

    Either all are there, or creation was interrupted before any of them finished. Otherwise a pod created now would run
    after others have finished, and the overlap that the verdict rests on would be missing for no fault of the node.
    """
    names = {str((pod.get("metadata") or {}).get("name", "")) for pod in existing}
    if any(deleting(pod) for pod in existing):
        return False
    if not names <= set(expected):
        return False
    users = [pod for pod in existing if not is_greedy(pod)]
    ended = any(has_ended(pod) for pod in users)
    return names == set(expected) or not ended
