"""The pods on the nodes that a teardown removes, judged by the drain's own rules before anything is changed.

The drain judges them again; this is for the person who approves, and so that a pod that would make the drain refuse
stops the teardown before its first change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.drain.plan import DrainPlan, plan_drain
from gpu_fleet.core.drain.rules import DrainRules, Fate, judge_pod
from gpu_fleet.core.kubernetes.airflow_pods import airflow_task
from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value
from gpu_fleet.core.kubernetes.names import ANNOTATION_DO_NOT_DISRUPT, LABEL_COMPONENT, TAINT_DISRUPTED
from gpu_fleet.core.kubernetes.objects import gpus_requested
from gpu_fleet.core.kubernetes.pod_budgets import forbidden_by
from gpu_fleet.core.kubernetes.pod_end import controller_of, is_finished
from gpu_fleet.core.releases.objects import workload_of

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Victim:
    """A user's pod that will be evicted.

    :ivar workload: what it belongs to, see :func:`user_pods`.
    :ivar owner: the same, for the reader of the plan.
    :ivar gpus: how many GPUs, or shares of one, it holds.
    :ivar warning: what is lost with it, in words; empty if nothing is.
    :ivar asked_to_stay: value of Karpenter's annotation ``do-not-disrupt`` while it protects the pod.
    :ivar forbidden: the PodDisruptionBudget that refuses its eviction now, in words.
    """

    name: str
    node: str
    workload: str
    owner: str
    gpus: int = 0
    warning: str = ""
    asked_to_stay: str | None = None
    forbidden: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "pod": self.name,
            "node": self.node,
            "owner": self.owner,
            "gpus": self.gpus,
            "warning": self.warning,
            "doNotDisrupt": self.asked_to_stay,
            "forbidden": self.forbidden,
        }


@dataclass(frozen=True)
class Judged:
    """What the drains of a teardown will find.

    :ivar victims: pods that will be evicted.
    :ivar drain: the drains' plan, including refusals.
    :ivar lingering: pods that the drains leave and Karpenter waits for -> what keeps it from evicting them, in words.
    """

    victims: Sequence[Victim] = ()
    drain: DrainPlan = field(default_factory=DrainPlan)
    lingering: Mapping[str, str] = field(default_factory=dict)

    def forbidden(self) -> dict[str, list[str]]:
        """What forbids an eviction now -> the pods it protects."""
        found: dict[str, list[str]] = {}
        for victim in self.victims:
            if victim.forbidden is not None:
                namespace = victim.name.partition("/")[0]
                found.setdefault(f"{victim.forbidden}, in namespace {namespace}", []).append(victim.name)
        return found


def on_nodes(pods: Iterable[Json], nodes: Iterable[str]) -> list[Json]:
    """The pods that are bound to these nodes."""
    wanted = set(nodes)
    return [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") in wanted]


def user_pods(pods: Iterable[Json], nodes: Iterable[str]) -> dict[str, str]:
    """The users' pods on these nodes: ``namespace/name`` to their workload, sorted.

    The workload is ``namespace/kind/name`` of the controller, or the Airflow task that created the pod, or the pod
    itself: a Deployment may replace its pod at any time, and it is still the same job.
    """
    return dict(sorted((_name(pod), _workload(pod)) for pod in on_nodes(pods, nodes) if _is_missed(pod)))


def judge(pods: Iterable[Json], nodes: Iterable[str], rules: DrainRules, budgets: Sequence[Json], now: float | None,
          *, disable_eviction: bool = False) -> Judged:  # fmt: skip
    """Judge every pod on the nodes that a teardown removes.

    :param budgets: all PodDisruptionBudgets.
    :param now: epoch seconds.
    :param disable_eviction: pods are deleted, which no budget can forbid.
    """
    there = on_nodes(pods, nodes)
    victims, lingering = [], {}
    for pod in there:
        verdict = judge_pod(pod, rules)
        if verdict.fate is Fate.LEAVE and (why := _lingers(pod, budgets, now)) is not None:
            lingering[_name(pod)] = why
        if verdict.fate is not Fate.EVICT or not _is_missed(pod):
            continue
        task = airflow_task(pod)
        owner = str(task) if task is not None and controller_of(pod) is None else _workload(pod)
        victims.append(
            Victim(
                name=_name(pod),
                node=str(pod["spec"]["nodeName"]),
                workload=_workload(pod),
                owner=owner,
                gpus=gpus_requested(pod),
                warning="" if verdict.reason == "Evictable" else verdict.message,
                asked_to_stay=protected_value(pod, now),
                forbidden=None if disable_eviction else forbidden_by(pod, budgets),
            )
        )
    victims.sort(key=lambda victim: (victim.owner, victim.name))
    return Judged(victims, plan_drain(there, rules), dict(sorted(lingering.items())))


def _lingers(pod: Json, budgets: Sequence[Json], now: float | None) -> str | None:
    """What keeps Karpenter from evicting a pod that it waits for before it terminates the node.

    Unlike a drain, it evicts the pods of DaemonSets as well, unless they tolerate its own taint; and it never evicts a
    pod that asks not to be disrupted (kubernetes-sigs/karpenter v1.14.1
    ``pkg/controllers/node/termination/terminator/terminator.go``, ``pkg/utils/pod/scheduling.go``).
    """
    owner = controller_of(pod)
    if owner is None or owner.get("kind") != "DaemonSet" or _tolerates_disruption(pod):
        return None
    if (value := protected_value(pod, now)) is not None:
        return f"its annotation {ANNOTATION_DO_NOT_DISRUPT}: {value}"
    return forbidden_by(pod, budgets)


def _tolerates_disruption(pod: Json) -> bool:
    return any(
        each.get("key") in (None, "", TAINT_DISRUPTED) and each.get("effect") in (None, "", "NoSchedule")
        for each in (pod.get("spec") or {}).get("tolerations") or []
        if each.get("operator") == "Exists" or each.get("key") == TAINT_DISRUPTED
    )


def _name(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _workload(pod: Json) -> str:
    namespace = pod["metadata"]["namespace"]
    if controller_of(pod) is not None:
        return f"{namespace}/{workload_of(pod)}"
    task = airflow_task(pod)
    # Another try of the task creates a pod with another name.
    return _name(pod) if task is None else f"{namespace}/{task.dag_id}/{task.task_id}/{task.run_id}"


def _is_missed(pod: Json) -> bool:
    owner, metadata = controller_of(pod), pod["metadata"]
    return not (
        is_finished(pod)
        or (metadata.get("labels") or {}).get(LABEL_COMPONENT) is not None
        or "kubernetes.io/config.mirror" in (metadata.get("annotations") or {})
        or (owner is not None and owner.get("kind") == "DaemonSet")
    )
