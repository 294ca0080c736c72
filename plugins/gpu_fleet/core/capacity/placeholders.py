"""Requesting capacity: one placeholder pod per missing node.

A dynamic NodePool launches nothing without a pending pod. A placeholder requests a whole node (its physical GPUs) and
refuses to share a node with another placeholder, so that N missing nodes are N placeholders and never fewer, as they
would be if Karpenter packed them onto a larger instance.

Nodes that exist already need no placeholder, and no placeholder may run on them: one on an idle node would leave a node
missing, and one that found only busy nodes would buy a node beyond ``wantedNodes``. So they are labelled as *standing*
first, and a placeholder requires that its node has no such label. Host names cannot be used:
Karpenter ignores every pod whose node affinity or selector names ``kubernetes.io/hostname``, whatever the operator
(kubernetes-sigs/karpenter v1.14 ``pkg/controllers/provisioning/provisioner.go``, ``Validate``). Of a label that a pool
does not define it accepts ``DoesNotExist`` (``pkg/scheduling/requirements.go``, ``Compatible``); ``NotIn`` as well, but
then it would invent a value for the new node.

The labels are set before the first placeholder is created and removed after the last is deleted. So while one is
pending, every node without a label has joined since: some placeholder waits for it, and it stays without a label if a
later try requests more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_RUN,
    ANNOTATION_RUNG,
    COMPONENT_HOLD,
    COMPONENT_PLACEHOLDER,
    GPU_RESOURCE,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_HOSTNAME,
    LABEL_NODE_POOL,
    LABEL_POOL,
    LABEL_RUN,
    LABEL_STANDING,
    PLACEHOLDER_PRIORITY_CLASS,
    SYSTEM_NAMESPACE,
    TAINT_UNPROVEN,
    short_hash,
)
from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolClaim,
    PoolNode,
    deleting,
    finished,
    labels_of,
    name_of,
    node_of,
    pool_claims,
    pool_nodes,
)
from gpu_fleet.core.manifests.build import pool_labels
from gpu_fleet.core.nodes.pool_template import PoolTemplate, of_template, older_nodes

if TYPE_CHECKING:
    from gpu_fleet.core.capacity.ladder import Step
    from gpu_fleet.core.spec import NodePool
    from gpu_fleet.core.spec.operations import Deadlines


#: Seconds by which a placeholder outlives the waits that it serves, for retries, queueing and short tasks in between.
PLACEHOLDER_SLACK_S = 1800


@dataclass(frozen=True)
class PlaceholderPlan:
    """What to do so that enough capacity is requested.

    :ivar create: indices of the placeholders to create.
    :ivar remove: names of finished or orphaned placeholders to delete first.
    :ivar mark: names of the nodes to label as standing before anything is created.
    :ivar existing: how many nodes exist already.
    :ivar asked: how many are already requested and have not joined yet.
    :ivar drifted: node -> how it differs from the pool's present template: no capacity, though it serves its pods.
    :ivar idle_places: nodes of the present template that take no job (cordoned, quarantined) but count against
        ``limits.nodes``.
    """

    create: tuple[int, ...]
    remove: tuple[str, ...]
    mark: tuple[str, ...]
    existing: int
    asked: int
    drifted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    idle_places: int = 0


def counts_as_capacity(node: PoolNode) -> bool:
    """Whether a node is one of the wanted ones: a cordoned or quarantined one takes no job and is replaced."""
    return not node.cordoned and not node.quarantined and not node.leaving


def plan_placeholders(
    pool: str,
    wanted: int,
    claims: Iterable[Object],
    nodes: Iterable[Object],
    placeholders: Iterable[Object],
    template: PoolTemplate | None = None,
) -> PlaceholderPlan:
    """Which placeholders are missing. Total; the same state gives the same plan.

    :param claims: NodeClaims of any pool.
    :param nodes: Nodes of any pool.
    :param placeholders: placeholder pods of any pool.
    :param template: what the pool's nodes are launched with now; ``None``: not known, any node counts.
    """
    claims = list(claims)
    nodes = [node for node in nodes if labels_of(node).get(LABEL_NODE_POOL) == pool]
    present = pool_nodes(nodes, pool)
    drifted = older_nodes(template, pool, nodes, claims)
    of_today = [node for node in present if node.name not in drifted]
    existing = [node for node in of_today if counts_as_capacity(node)]
    arriving = _arriving(pool_claims(of_template(claims, template), pool), present)
    here = {node.name for node in present}
    pending, remove, taken = 0, [], set()
    for pod in placeholders:
        if (pod.get("metadata") or {}).get("labels", {}).get(LABEL_POOL) != pool:
            continue
        # On a drifted node it holds nothing that was requested.
        gone = node_of(pod) and (node_of(pod) not in here or node_of(pod) in drifted)
        if finished(pod) or gone:
            remove.append(name_of(pod))
            continue
        taken.add(name_of(pod))
        if not node_of(pod) and not deleting(pod):
            pending += 1
    # A NodeClaim that is launching serves a pending placeholder, so the two are not added up.
    asked = max(len(arriving), pending)
    missing = max(0, wanted - len(existing) - asked)
    # While a placeholder is pending, a node without the label is the one that it waits for.
    unmarked = [name_of(node) for node in nodes if LABEL_STANDING not in labels_of(node)]
    if pending or not missing:
        # No placeholder waits for a drifted node, whenever it joined.
        unmarked = [name for name in unmarked if name in drifted]
    free = (index for index in range(wanted + len(taken) + 1) if placeholder_name(pool, index) not in taken)
    return PlaceholderPlan(
        create=tuple(next(free) for _ in range(missing)),
        remove=tuple(sorted(remove)),
        mark=tuple(sorted(unmarked)) if missing or pending else (),
        existing=len(existing),
        asked=asked,
        drifted=drifted,
        idle_places=len(of_today) - len(existing),
    )


def _arriving(claims: Sequence[PoolClaim], nodes: Sequence[PoolNode]) -> list[PoolClaim]:
    here = {node.name for node in nodes}
    return [claim for claim in claims if claim.node not in here]


def placeholder_name(pool: str, index: int) -> str:
    return f"placeholder-{pool}-{index}"


def placeholder_gpus(pool: NodePool, physical: int) -> int:
    """The GPUs that a placeholder requests: the node's physical ones, so that it holds the whole node.

    With ``failRequestsGreaterThanOne`` the device plugin refuses any container that requests two shared GPUs (the
    pod fails with ``UnexpectedAdmissionError``), so there a placeholder requests one: the anti-affinity alone makes it
    one node each.
    """
    return 1 if pool.refuses_two else physical


def placeholder_lifetime_s(deadlines: Deadlines) -> int:
    """Seconds that a placeholder may hold a node: as long as capacity, its proof and validation may take, and slack.

    Kubernetes counts them from the pod's start on its node (``activeDeadlineSeconds``, from ``status.startTime``), so
    waiting for a node uses none of them.
    """
    return int(sum(map(float, (deadlines.capacity, deadlines.prove, deadlines.validation)))) + PLACEHOLDER_SLACK_S


def placeholder_pod(
    cluster: str,
    pool: NodePool,
    index: int,
    *,
    gpus: int,
    lifetime_s: int,
    image: str,
    run: str,
    run_label: str,
    step: Step | None = None,
) -> dict[str, Any]:
    """A pod that waits for a new node of the pool and holds its GPUs.

    It ends by itself: a run that is ended by its timeout never reaches its clean-up, and must not keep an expensive
    node.

    :param lifetime_s: see :func:`placeholder_lifetime_s`.
    :param run: ``<dag_id>/<run_id>``, for people.
    :param run_label: its hash, for selectors.
    :param step: the rung of the pool's ladder of which its node is to be.
    """
    pod = pause_pod(
        placeholder_name(pool.name, index), COMPONENT_PLACEHOLDER, cluster, pool, gpus, image, run, run_label
    )
    # The labels of the present template: a node that Karpenter launches from an older one is not wanted.
    pod["spec"]["nodeSelector"] = {LABEL_NODE_POOL: pool.name, **(pool_labels(pool) if pool.manage else {})}
    pod["spec"]["activeDeadlineSeconds"] = lifetime_s
    pod["spec"]["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchExpressions": [
                            {"key": LABEL_STANDING, "operator": "DoesNotExist"},
                            *(step.expressions() if step is not None else []),
                        ]
                    }
                ]
            }
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": LABEL_HOSTNAME,
                    "labelSelector": {
                        "matchLabels": {LABEL_COMPONENT: COMPONENT_PLACEHOLDER, LABEL_POOL: pool.name},
                    },
                }
            ]
        },
    }
    if step is not None:
        pod["metadata"]["annotations"][ANNOTATION_RUNG] = step.digest
    return pod


def hold_pod(
    cluster: str, pool: NodePool, node: str, *, gpus: int, minutes: int, image: str, run: str, run_label: str
) -> dict[str, Any]:
    """A pod that keeps one validated node from being consolidated for a while, until a user's pod preempts it.

    It is pinned to the node, so it can never buy one, and it ends by itself.
    """
    pod = pause_pod(hold_name(pool.name, node), COMPONENT_HOLD, cluster, pool, gpus, image, run, run_label)
    pod["spec"]["nodeSelector"] = {LABEL_HOSTNAME: node}
    pod["spec"]["activeDeadlineSeconds"] = minutes * 60
    return pod


def hold_name(pool: str, node: str) -> str:
    name = f"hold-{pool}-{node.partition('.')[0]}"
    # The name is also a host name; without the hash the nodes of a pool with a long name would all get the same one.
    return name if len(name) <= 63 else f"{name[:52].rstrip('-')}-{short_hash(pool, node)}"


def pause_pod(
    name: str,
    component: str,
    cluster: str,
    pool: NodePool,
    gpus: int,
    image: str,
    run: str,
    run_label: str,
    *,
    cpu: str = "10m",
    memory: str = "16Mi",
) -> dict[str, Any]:
    """A pod of ours that requests GPUs of the pool's nodes and uses none; every other pod preempts it.

    :param cpu: and ``memory``: what it requests.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": SYSTEM_NAMESPACE,
            "labels": {
                LABEL_CLUSTER: cluster,
                LABEL_POOL: pool.name,
                LABEL_COMPONENT: component,
                LABEL_RUN: run_label,
            },
            "annotations": {ANNOTATION_RUN: run},
        },
        "spec": {
            "priorityClassName": PLACEHOLDER_PRIORITY_CLASS,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": tolerations(pool),
            "securityContext": pod_security(),
            "containers": [
                {
                    "name": "pause",
                    "image": image,
                    "securityContext": container_security(),
                    "resources": {
                        "requests": {"cpu": cpu, "memory": memory, GPU_RESOURCE: str(gpus)},
                        "limits": {"memory": "16Mi", GPU_RESOURCE: str(gpus)},
                    },
                }
            ],
        },
    }


def tolerations(pool: NodePool) -> list[dict[str, Any]]:
    """Tolerations of the pool's own taints, and of the startup taint that a node has until it is proven: what proves
    it, and what holds it meanwhile, runs there before."""
    return [
        *(
            {"key": taint.key, "operator": "Equal", "value": taint.value, "effect": taint.effect}
            if taint.value
            else {"key": taint.key, "operator": "Exists", "effect": taint.effect}
            for taint in pool.taints
        ),
        {"key": TAINT_UNPROVEN, "operator": "Exists", "effect": "NoSchedule"},
    ]


def pod_security() -> dict[str, Any]:
    """Pod part of the Pod Security Standard 'restricted'."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Container part of the Pod Security Standard 'restricted'."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
