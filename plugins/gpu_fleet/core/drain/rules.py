"""Which pods a drain evicts, which it leaves, and which forbid it: kubectl's rules as an ordered list of functions.

Source: kubernetes/kubectl v0.36 pkg/drain/filters.go and pkg/drain/drain.go. As there, a pod that must not be evicted
stops the drain *before* any eviction; unlike there, it is found before the node is cordoned, and no cordon is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.airflow_pods import airflow_task
from gpu_fleet.core.kubernetes.dead_nodes import dead_nodes, is_passed_over
from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.kubernetes.pod_end import controller_of, is_finished
from gpu_fleet.core.spec import ClusterSpec

Pod = Mapping[str, Any]

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
#: The Param of a run with the meaning of ``drain.force: true``.
PARAM_BARE_PODS = "evictBarePods"


class Fate(StrEnum):
    """What the drain does with a pod."""

    EVICT = "Evict"
    WAIT = "Wait"  # it is terminating already: the drain only waits for its end
    LEAVE = "Leave"
    REFUSE = "Refuse"  # the drain must not start


@dataclass(frozen=True)
class PodVerdict:
    """A rule's verdict on a pod.

    :ivar reason: CamelCase.
    :ivar message: a sentence without the pod's name; with a remedy where the fate is REFUSE.
    """

    fate: Fate
    reason: str
    message: str


@dataclass(frozen=True)
class DrainRules:
    """What the spec allows (``drain:``), and which DaemonSets exist.

    :ivar daemon_sets: ``(namespace, name)`` of the existing DaemonSets.
    :ivar force: pods without a controller are evicted, too: ``drain.force``, or the Param :data:`PARAM_BARE_PODS`.
    :ivar dead: nodes that are not Ready, and why.
    :ivar now: epoch seconds of the cluster's clock.
    """

    ignore_daemon_sets: bool = True
    delete_empty_dir_data: bool = True
    force: bool = False
    daemon_sets: frozenset[tuple[str, str]] = frozenset()
    dead: Mapping[str, str] = field(default_factory=dict)
    now: float | None = None

    @classmethod
    def of(
        cls,
        spec: ClusterSpec,
        daemon_sets: Iterable[Mapping[str, Any]],
        *,
        bare_pods_go: bool,
        nodes: Iterable[Mapping[str, Any]] = (),
        now: float | None = None,
    ) -> DrainRules:
        """The rules of a run.

        :param daemon_sets: all DaemonSets of the cluster.
        :param bare_pods_go: the Param :data:`PARAM_BARE_PODS`.
        :param nodes: the nodes to drain.
        :param now: see :class:`DrainRules`.
        """
        policy = spec.drain
        return cls(
            ignore_daemon_sets=policy.ignore_daemon_sets,
            delete_empty_dir_data=policy.delete_empty_dir_data,
            force=policy.force or bare_pods_go,
            daemon_sets=frozenset((ds["metadata"]["namespace"], ds["metadata"]["name"]) for ds in daemon_sets),
            dead=dead_nodes(nodes),
            now=now,
        )

    def of_a_lost_node(self) -> DrainRules:
        """The same where the node ends anyway: nothing is refused, since whatever stays ends without a SIGTERM."""
        return replace(self, ignore_daemon_sets=True, delete_empty_dir_data=True, force=True)


#: ``None``: no objection. EVICT: no objection either, but worth a warning. Anything else is final.
Rule = Callable[[Pod, DrainRules], PodVerdict | None]


def already_deleted(pod: Pod, rules: DrainRules) -> PodVerdict | None:
    if is_passed_over(pod, rules.dead, rules.now):
        where = str((pod.get("spec") or {}).get("nodeName"))
        return PodVerdict(
            Fate.LEAVE,
            "NodeNotReady",
            f"has passed its grace period, and its node is not Ready ({rules.dead[where]}): it ends with the instance",
        )
    if deleting(pod):
        return PodVerdict(Fate.WAIT, "Terminating", "is terminating already")
    return None


def daemon_set_managed(pod: Pod, rules: DrainRules) -> PodVerdict | None:
    """Its controller ignores the cordon and would recreate the pod at once."""
    owner = controller_of(pod)
    if owner is None or owner.get("kind") != "DaemonSet" or is_finished(pod):
        return None
    if (pod["metadata"]["namespace"], owner.get("name")) not in rules.daemon_sets:
        if rules.force:
            return PodVerdict(Fate.EVICT, "DaemonSetGone", f"its DaemonSet {owner.get('name')} no longer exists")
        return PodVerdict(
            Fate.REFUSE,
            "DaemonSetGone",
            f"its DaemonSet {owner.get('name')} no longer exists: nothing recreates it; delete it or set drain.force",
        )
    if not rules.ignore_daemon_sets:
        return PodVerdict(
            Fate.REFUSE, "DaemonSetManaged", "is managed by a DaemonSet; set drain.ignoreDaemonSets: true to leave it"
        )
    return PodVerdict(Fate.LEAVE, "DaemonSetManaged", f"is managed by DaemonSet {owner.get('name')}")


def mirror_pod(pod: Pod, rules: DrainRules) -> PodVerdict | None:  # noqa: ARG001
    """A static pod's mirror: the kubelet runs it from a file, the API cannot remove it."""
    if MIRROR_ANNOTATION in (pod["metadata"].get("annotations") or {}):
        return PodVerdict(Fate.LEAVE, "MirrorPod", "is a static pod of the kubelet")
    return None


def local_storage(pod: Pod, rules: DrainRules) -> PodVerdict | None:
    volumes = (pod.get("spec") or {}).get("volumes") or []
    if is_finished(pod) or not any("emptyDir" in volume for volume in volumes):
        return None
    if not rules.delete_empty_dir_data:
        return PodVerdict(
            Fate.REFUSE, "LocalStorage", "has an emptyDir volume; set drain.deleteEmptyDirData: true to delete its data"
        )
    return PodVerdict(Fate.EVICT, "LocalStorage", "loses the data of its emptyDir volume")


def unreplicated(pod: Pod, rules: DrainRules) -> PodVerdict | None:
    """Nothing would recreate it. Our own placeholders and probes are to be removed."""
    ours = LABEL_COMPONENT in (pod["metadata"].get("labels") or {})
    if is_finished(pod) or ours or controller_of(pod) is not None:
        return None
    task = airflow_task(pod)
    if rules.force:
        by = "nothing recreates it" if task is None else f"only a retry of {task} would create another one"
        return PodVerdict(Fate.EVICT, "Unreplicated", f"has no controller: {by}")
    if task is not None:
        # Airflow's pod operators create pods without a controller: the usual case of a bare pod.
        return PodVerdict(
            Fate.REFUSE, "AirflowTask", f"runs {task} and has no controller that recreates it; let the task end"
        )
    return PodVerdict(Fate.REFUSE, "Unreplicated", "has no controller that recreates it; let it end, or delete it")


#: In kubectl's order.
RULES: tuple[Rule, ...] = (already_deleted, daemon_set_managed, mirror_pod, local_storage, unreplicated)


def judge_pod(pod: Pod, rules: DrainRules) -> PodVerdict:
    """The first final verdict of the rules, else EVICT with the first warning."""
    warning: PodVerdict | None = None
    for rule in RULES:
        verdict = rule(pod, rules)
        if verdict is None:
            continue
        if verdict.fate is not Fate.EVICT:
            return verdict
        warning = warning or verdict
    return warning or PodVerdict(Fate.EVICT, "Evictable", "can be evicted")
