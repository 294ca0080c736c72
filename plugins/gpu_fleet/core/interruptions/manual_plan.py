"""The plan of a drain by hand: which nodes, what becomes of every pod there, and what that costs. Pure.

It is what a person reads before the drain, or instead of it (dry run), and what an approval is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.aws.costs import Price, PriceList
from gpu_fleet.core.drain.plan import DrainPlan, PodPlan, plan_drain
from gpu_fleet.core.drain.rules import DrainRules, Fate
from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.interruptions.replaced_first import ReplacedFirst
from gpu_fleet.core.interruptions.request import DrainRequest
from gpu_fleet.core.interruptions.ways import Owner
from gpu_fleet.core.kubernetes.objects import epoch, gpus_requested
from gpu_fleet.core.kubernetes.pod_budgets import forbidden_by
from gpu_fleet.core.kubernetes.pod_end import grace_of
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.pods import judge, user_pods

Json = Mapping[str, Any]


@dataclass(frozen=True)
class PlannedPod:
    """One pod on the nodes.

    :ivar workload: what it belongs to (``core/teardown/pods.py``); empty for pods that belong to their node.
    :ivar rule: reason of the rule that decides its fate.
    :ivar message: that rule's sentence, without the pod's name.
    :ivar budget: the PodDisruptionBudget that refuses its eviction now, in words; empty if none does.
    :ivar asked_to_stay: value of Karpenter's annotation ``do-not-disrupt`` while it protects the pod.
    :ivar seconds: how long it has run.
    """

    name: str
    node: str
    fate: Fate
    rule: str
    message: str
    workload: str = ""
    gpus: int = 0
    grace: float = 0.0
    budget: str = ""
    asked_to_stay: str | None = None
    seconds: float = 0.0

    @property
    def is_users_gpu(self) -> bool:
        """Whether a user's pod that holds a GPU, or a share of one, is evicted."""
        return self.fate is Fate.EVICT and bool(self.workload) and self.gpus > 0

    def to_json(self) -> dict[str, Any]:
        return {
            "pod": self.name,
            "node": self.node,
            "fate": self.fate.value,
            "rule": self.rule,
            "message": self.message,
            "workload": self.workload,
            "gpus": self.gpus,
            "grace": self.grace,
            "budget": self.budget,
            "doNotDisrupt": self.asked_to_stay,
        }


@dataclass(frozen=True)
class ManualPlan:
    """
    :ivar passed_over: nodes and instances that were asked for and are not drained -> why.
    :ivar drain: the pods by their fates, including refusals.
    :ivar replaced: pool -> what comes first; empty without ``replaceFirst``.
    :ivar gpu_seconds: computed by the pods that will be evicted: lost at most.
    :ivar usd: what these cost at list prices; ``None`` if a price is unknown.
    """

    cluster: str
    request: DrainRequest
    nodes: tuple[OurNode, ...]
    pods: tuple[PlannedPod, ...] = ()
    drain: DrainPlan = field(default_factory=DrainPlan)
    passed_over: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, ReplacedFirst] = field(default_factory=dict)
    gpu_seconds: float = 0.0
    usd: float | None = None
    prices: str = ""

    @property
    def users_gpu_pods(self) -> list[PlannedPod]:
        return [pod for pod in self.pods if pod.is_users_gpu]

    def to_json(self) -> dict[str, Any]:
        return {
            "cluster": self.cluster,
            "nodes": [node.to_json() for node in self.nodes],
            "pods": [pod.to_json() for pod in self.pods],
            "refused": [str(pod) for pod in self.drain.refuse],
            "passedOver": dict(self.passed_over),
            "gpuPods": {pod.name: pod.workload for pod in self.users_gpu_pods},
            "gpuSeconds": round(self.gpu_seconds, 1),
            "usd": None if self.usd is None else round(self.usd, 2),
            "prices": self.prices,
            "reason": self.request.reason,
        }

    def headline(self) -> str:
        """The plan in one sentence."""
        if not self.nodes:
            return f"Nothing to drain: {self._nothing()}"
        going = self.drain.evict
        held = [pod for pod in self.pods if pod.budget]
        pools = ", ".join(sorted({node.pool for node in self.nodes}))
        words = f"Plan: {_count(len(self.nodes), 'node')} of {pools} drained, {_count(len(going), 'pod')} evicted"
        if held:
            words += f", {len(held)} of them held by PodDisruptionBudgets now"
        if self.users_gpu_pods:
            words += f"; users' pods with GPUs: {len(self.users_gpu_pods)}"
        if self.drain.refuse:
            words += f"; refused, because {_count(len(self.drain.refuse), 'pod')} must not be evicted"
        return words

    def _nothing(self) -> str:
        if self.passed_over:
            return "; ".join(f"{name}: {why}" for name, why in sorted(self.passed_over.items())[:5])
        return "no node of the cluster file's pools and node groups matches"


def make_plan(
    spec: ClusterSpec,
    request: DrainRequest,
    nodes: Sequence[OurNode],
    pods: Iterable[Json],
    *,
    rules: DrainRules,
    budgets: Sequence[Json],
    prices: PriceList,
    now: float,
    passed_over: Mapping[str, str] | None = None,
    replaced: Mapping[str, ReplacedFirst] | None = None,
) -> ManualPlan:
    """The plan for the present state.

    :param pods: on these nodes, at least.
    :param budgets: all PodDisruptionBudgets.
    :param now: epoch seconds, by the cluster's clock.
    """
    names = {node.name for node in nodes}
    there = [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") in names]
    workloads = user_pods(there, names)
    drain = plan_drain(there, rules)
    by_uid = {str(pod["metadata"]["uid"]): pod for pod in there}
    asked = {
        victim.name: victim.asked_to_stay
        for victim in judge(there, names, rules, budgets, now, disable_eviction=True).victims
    }
    rows = []
    for fate, plans in ((Fate.REFUSE, drain.refuse), (Fate.EVICT, drain.evict), (Fate.WAIT, drain.wait),
                        (Fate.LEAVE, drain.leave)):  # fmt: skip
        rows += [_row(spec, each, fate, by_uid[each.uid], workloads, budgets, asked, now) for each in plans]
    seconds, usd, used = _lost(rows, {node.name: node for node in nodes}, prices)
    return ManualPlan(
        spec.name,
        request,
        tuple(nodes),
        tuple(rows),
        drain,
        dict(passed_over or {}),
        dict(replaced or {}),
        seconds,
        usd,
        prices.describe(*used),
    )


def _row(
    spec: ClusterSpec,
    plan: PodPlan,
    fate: Fate,
    pod: Json,
    workloads: Mapping[str, str],
    budgets: Sequence[Json],
    asked: Mapping[str, str | None],
    now: float,
) -> PlannedPod:
    held = None if fate is not Fate.EVICT or spec.drain.disable_eviction else forbidden_by(pod, budgets)
    started = epoch((pod.get("status") or {}).get("startTime"))
    return PlannedPod(
        name=str(plan),
        node=plan.node,
        fate=fate,
        rule=plan.verdict.reason,
        message=plan.verdict.message,
        workload=workloads.get(str(plan), ""),
        gpus=gpus_requested(pod),
        grace=grace_of(pod, spec.drain.grace_period),
        budget=held or "",
        asked_to_stay=asked.get(str(plan)),
        seconds=0.0 if started is None else max(0.0, now - started),
    )


def _lost(
    pods: Iterable[PlannedPod], nodes: Mapping[str, OurNode], prices: PriceList
) -> tuple[float, float | None, list[Price]]:
    """GPU seconds of the users' pods that are evicted, what they have cost, and the prices of that."""
    seconds, usd = 0.0, 0.0
    used: list[Price] = []
    known = True
    for pod in pods:
        if not pod.is_users_gpu or not pod.seconds:
            continue
        computed = pod.gpus * pod.seconds
        seconds += computed
        node = nodes[pod.node]
        price = prices.instance(node.instance_type, node.capacity_type, node.zone)
        used.append(price)
        if price.usd is None or not node.gpus:
            known = False
            continue
        usd += computed / 3600 * price.usd / node.gpus
    return seconds, usd if known else None, used


def growth(approved: Mapping[str, Any], now: ManualPlan) -> list[str]:
    """The users' GPU pods that a drain would evict beyond those of an approved plan; another pod of a workload that the
    approved plan has is no growth.

    :param approved: :meth:`ManualPlan.to_json` of the plan that was approved.
    """
    seen = set(dict(approved.get("gpuPods") or {}).values())
    return [pod.name for pod in now.users_gpu_pods if pod.workload not in seen]


def ends_by_node_group(nodes: Iterable[OurNode]) -> list[str]:
    """The nodes that Karpenter does not own: their node groups replace them after they have ended, never before."""
    return [node.name for node in nodes if node.owner is Owner.NODE_GROUP]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
