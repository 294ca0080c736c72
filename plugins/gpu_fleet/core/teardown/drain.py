"""Which pods a drain evicts, which it leaves, and which forbid it: kubectl's rules as an ordered list of functions.

Source: kubernetes/kubectl v0.36 pkg/drain/filters.go and pkg/drain/drain.go. As there, a pod that must not be evicted
stops the drain *before* any eviction; unlike there, it is found before the node is cordoned, and no cordon is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.airflow_pods import airflow_task
from gpu_fleet.core.kubernetes.dead_nodes import dead_nodes, is_passed_over
from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value
from gpu_fleet.core.kubernetes.names import ANNOTATION_DO_NOT_DISRUPT, LABEL_COMPONENT
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.kubernetes.pod_budgets import budgets_of
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.scope import controller_of, doomed_pools, is_finished, orphans_go, pool_of

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
    :ivar dead: nodes that are not Ready, and why. :ivar now: epoch seconds of the cluster's clock.
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


def remaining_nodes(
    spec: ClusterSpec,
    nodes: Iterable[Mapping[str, Any]],
    node_pools: Sequence[Mapping[str, Any]],
    drained: Iterable[str],
    *,
    emergency: bool = False,
) -> list[str]:
    """Names of the nodes that a teardown removes and that no pool's own drain drains.

    They belong to NodePools that the spec no longer has, or to none that exists: Karpenter would evict their pods
    without regard to ``drain``.

    :param nodes: those with a NodePool's label.
    :param drained: pools with a drain of their own.
    :param emergency: Karpenter is dead, and the teardown continues without it: it then removes only what is ours
        (``core/teardown/emergency.py``), and the owner of a NodePool that is gone is unknown.
    """
    existing = {pool["metadata"]["name"] for pool in node_pools}
    doomed = set(doomed_pools(spec, node_pools))
    orphans = orphans_go(spec) and not emergency
    elsewhere = set(drained)
    return sorted(
        node["metadata"]["name"]
        for node in nodes
        if (pool := pool_of(node)) not in elsewhere and (pool in doomed or (orphans and pool not in existing))
    )


@dataclass(frozen=True)
class PodPlan:
    """One pod of the plan.

    :ivar missed: whether its eviction is a loss: false for pods that have finished and for our own.
    """

    namespace: str
    name: str
    uid: str
    node: str
    verdict: PodVerdict
    missed: bool = True

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class DrainPlan:
    """Every pod on the nodes, by its fate."""

    evict: Sequence[PodPlan] = field(default=())
    wait: Sequence[PodPlan] = field(default=())
    leave: Sequence[PodPlan] = field(default=())
    refuse: Sequence[PodPlan] = field(default=())

    @property
    def done(self) -> bool:
        return not (self.evict or self.wait or self.refuse)

    def refusal(self) -> str:
        """Why the drain must not start: each pod and the remedies."""
        lines = "".join(f"\n  - {plan} on {plan.node} {plan.verdict.message}" for plan in self.refuse)
        remedies = ""
        if any(plan.verdict.reason in ("AirflowTask", "Unreplicated") for plan in self.refuse):
            remedies = (
                "\nPods without a controller are evicted only on request: start a run with the Param "
                f"{PARAM_BARE_PODS}, or set drain.force: true in the cluster file"
            )
        count = len(self.refuse)
        return f"{count} pod{'' if count == 1 else 's'} must not be evicted:{lines}{remedies}"


def plan_drain(pods: Iterable[Pod], rules: DrainRules) -> DrainPlan:
    """The plan for all pods that are bound to the nodes to drain, in a stable order."""
    found: dict[Fate, list[PodPlan]] = {fate: [] for fate in Fate}
    for pod in pods:
        metadata = pod["metadata"]
        verdict = judge_pod(pod, rules)
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        missed = not is_finished(pod) and LABEL_COMPONENT not in (metadata.get("labels") or {})
        found[verdict.fate].append(
            PodPlan(metadata["namespace"], metadata["name"], metadata["uid"], node, verdict, missed)
        )
    ordered = {fate: tuple(sorted(plans, key=lambda p: (p.node, str(p)))) for fate, plans in found.items()}
    return DrainPlan(ordered[Fate.EVICT], ordered[Fate.WAIT], ordered[Fate.LEAVE], ordered[Fate.REFUSE])


class Step(StrEnum):
    """What to do next with the pods that are still there."""

    DONE = "Done"
    EVICT = "Evict"
    DELETE = "Delete"
    GIVE_UP = "GiveUp"


def next_step(plan: DrainPlan, *, elapsed: float, timeout: float, deadline: float, policy: str) -> Step:
    """Decide from the plan and the clock.

    :param elapsed: seconds since the drain began.
    :param timeout: seconds for evictions (``drain.timeout``).
    :param deadline: seconds after which the drain has failed in any case (``deadlines.drain``).
    :param policy: ``drain.whenTimeExpires``: ``fail`` or ``delete``.
    :raises ValueError: for an unknown policy.
    """
    if policy not in ("fail", "delete"):
        raise ValueError(f"unknown policy {policy!r} for an expired drain")
    if plan.done:
        return Step.DONE
    if elapsed < timeout:
        return Step.EVICT
    if policy == "fail" or elapsed >= deadline:
        return Step.GIVE_UP
    return Step.DELETE


#: Seconds after which a refused eviction is retried in any case, even if no budget has changed.
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Blocked:
    """A pod whose eviction was refused.

    :ivar why: in words, with the pod's name.
    :ivar by_budget: whether PodDisruptionBudgets may be the cause: then nothing changes before they do.
    """

    uid: str
    why: str
    by_budget: bool


def pause_s(*, only_budgets: bool, elapsed: float, every: float) -> float:
    """Seconds until refused evictions are retried, whatever is observed meanwhile.

    If only budgets forbid them, the budgets are watched; a retry is a precaution, and each costs the start of a task.
    So the pause is then half of the time that the drain has taken, between ``every`` and :data:`LONGEST_PAUSE_S`.

    :param only_budgets: whether every refused pod is held by budgets that are watched.
    :param elapsed: seconds since the drain began.
    :param every: ``drain.retryEvery``.
    """
    if not only_budgets:
        return every
    return max(every, min(elapsed / 2, LONGEST_PAUSE_S))


def protection(
    pod: Pod, budgets: Iterable[Mapping[str, Any]], now: float | None = None, dead: Mapping[str, str] | None = None
) -> str:
    """What keeps a pod on its node, in words: PodDisruptionBudgets, Karpenter's annotation, its own finalizers, or a
    kubelet that does not answer.

    :param now: epoch seconds.
    :param dead: nodes that are not Ready, and why.
    """
    metadata = pod["metadata"]
    parts = [
        f"PodDisruptionBudget {budget['metadata']['name']} "
        f"(allowed disruptions {(budget.get('status') or {}).get('disruptionsAllowed', 'unknown')})"
        for budget in budgets_of(pod, budgets)
    ]
    if (value := protected_value(pod, now)) is not None:
        parts.append(f"annotation {ANNOTATION_DO_NOT_DISRUPT}" + ("" if value == "true" else f" ({value})"))
    if deleting(pod):
        finalizers = metadata.get("finalizers") or []
        parts.append(f"terminating, finalizers {', '.join(finalizers)}" if finalizers else "terminating")
    where = str((pod.get("spec") or {}).get("nodeName") or "")
    if dead and where in dead:
        parts.append(f"node {where} is not Ready ({dead[where]})")
    return ", ".join(parts) or "no PodDisruptionBudget found"
