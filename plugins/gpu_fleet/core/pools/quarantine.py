"""What becomes of nodes that fail a revalidation: reported, quarantined, replaced, and released when they pass. Pure.

A quarantined node is cordoned, tainted with the reason, and annotated with what happened; the annotation alone says
that the quarantine is ours. Pods that run there go on running: a cordon moves nobody. Probes tolerate both, so that the
node is looked at again, and released when it passes the probe that it had failed, or all others if that one is no more.

A node is replaced by deleting its NodeClaim. The rest is Karpenter's: it drains the node through the Eviction API,
which honours PodDisruptionBudgets and ``karpenter.sh/do-not-disrupt``, for ever or, where the NodeClaim has a
``terminationGracePeriod``, until that is over; then pods are deleted (kubernetes-sigs/karpenter v1.14.1
``pkg/controllers/node/termination/terminator``). A job on a GPU could end that way, so a node is quarantined first,
and replaced only when nobody holds one of its GPUs any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_QUARANTINED, TAINT_QUARANTINED
from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolNode,
    annotations_of,
    deleting,
    finished,
    gpus_requested,
    is_ours,
    node_of,
)
from gpu_fleet.core.pools.assets import outcomes_of_nodes
from gpu_fleet.core.teardown.scope import controller_of
from gpu_fleet.core.validation.report import Outcome, PoolReport

#: A taint's value is a label value: at most 63 characters of this alphabet (Kubernetes 'Labels and Selectors').
_NOT_IN_VALUE = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_VALUE = 63
_MAX_MESSAGE = 500


class Policy(StrEnum):
    """What the spec allows (``validation.onFailure.policy``)."""

    ALERT = "alert"
    QUARANTINE = "quarantine"
    REPLACE = "replace"


class Why(StrEnum):
    """Why a node that failed was left as it is."""

    ALERT_ONLY = "AlertOnly"  # the policy
    NOT_THE_NODE = "NotTheNode"  # the cause does not lie in the node: another one would fail, too
    POOL_WIDE = "PoolWide"  # every node that was judged failed for the same reason
    BUDGET_SPENT = "BudgetSpent"  # this run has taken as many nodes out of service as it may
    INCONCLUSIVE = "Inconclusive"  # nothing is proven, neither way
    CORDONED_BY_OTHERS = "CordonedByOthers"  # a person is at work on it
    NODE_GONE = "NodeGone"
    IN_USE = "InUse"  # to be replaced, but a pod of a user holds a GPU there: quarantined until it ends
    NO_NODE_CLAIM = "NoNodeClaim"  # to be replaced, but Karpenter does not know it


@dataclass(frozen=True)
class Quarantine:
    """What the annotation of a quarantined node says.

    :ivar probe: the probe that failed; passing it ends the quarantine.
    :ivar run: ``<dag_id>/<run_id>``, :ivar at: RFC 3339.
    :ivar cordoned: whether the cordon is ours; one that was there before stays.
    """

    reason: str
    message: str
    probe: str
    run: str
    at: str
    cordoned: bool = True

    def to_annotation(self) -> str:
        value = {
            "reason": self.reason,
            "message": self.message[:_MAX_MESSAGE],
            "probe": self.probe,
            "run": self.run,
            "at": self.at,
            "cordoned": self.cordoned,
        }
        return json.dumps(value, sort_keys=True)

    @classmethod
    def of(cls, node: Object) -> Quarantine | None:
        """The quarantine of a node; with empty words if its annotation has been damaged; ``None`` without one."""
        text = annotations_of(node).get(ANNOTATION_QUARANTINED)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            value = {}
        words = {key: str(value.get(key, "")) for key in ("reason", "message", "probe", "run", "at")}
        return cls(**words, cordoned=value.get("cordoned") is not False)


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What came of one node over all probes of a run.

    :ivar reason: and ``message``, ``probe``: of the first thing that failed; empty of a node that passed.
    :ivar passed: the probes that it passed.
    """

    outcome: Outcome
    reason: str = ""
    message: str = ""
    probe: str = ""
    passed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Left:
    """A node that failed and was left as it is."""

    node: str
    reason: Why
    message: str = ""

    def to_json(self) -> dict[str, str]:
        return {"node": self.node, "reason": str(self.reason), "message": self.message}


@dataclass(frozen=True)
class Plan:
    """What is to be done about a pool's nodes.

    :ivar quarantine: nodes to take out of service (again), with their judgement.
    :ivar replace: those of them, or of the ones that are quarantined already, whose NodeClaim may go.
    :ivar release: quarantined nodes that have passed.
    """

    quarantine: tuple[tuple[str, Judgement], ...] = ()
    replace: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()


def judgements(reports: Sequence[PoolReport]) -> dict[str, Judgement]:
    """Node -> what came of it, its most decisive outcome over all probes."""
    passed: dict[str, set[str]] = {}
    causes: dict[tuple[str, Outcome], tuple[str, str, str]] = {}
    for report in reports:
        for node in report.nodes:
            if node.outcome is Outcome.PASSED:
                passed.setdefault(node.node, set()).add(report.probe)
            elif (cause := node.cause) is not None:
                causes.setdefault((node.node, node.outcome), (cause.reason, cause.message, report.probe))
    return {
        name: Judgement(outcome, *causes.get((name, outcome), ("", "", "")), frozenset(passed.get(name, ())))
        for name, (outcome, _) in outcomes_of_nodes(reports).items()
    }


def plan(
    policy: Policy,
    budget: int,
    judged: Mapping[str, Judgement],
    nodes: Mapping[str, PoolNode],
    quarantines: Mapping[str, Quarantine],
    *,
    spent: Iterable[str],
    node_causes: frozenset[str],
    probes: Collection[str],
) -> Plan:
    """What is to be done. Total; the same state gives the same plan, and a plan half carried out is gone on with.

    :param budget: how many nodes one run may take out of service.
    :param nodes: all nodes of the pool, by name; :param quarantines: of those that are quarantined.
    :param spent: nodes that this run has taken out of service before it was interrupted.
    :param node_causes: reasons that lie in a node.
    :param probes: those that this run has for the pool, without any that it could not run at all.
    """
    used, left = set(spent), []
    quarantine: list[tuple[str, Judgement]] = []
    replace: list[str] = []
    everywhere = pool_wide(judged, nodes)
    # Those of an interrupted try first: their place in the budget is taken. Then those that still serve: a node that is
    # out of service already, and perhaps cannot be replaced for weeks, must not keep a failing one in service.
    for name in sorted(judged, key=lambda name: (name not in used, name in quarantines, name)):
        found = judged[name]
        if found.outcome is Outcome.INCONCLUSIVE:
            left.append(Left(name, Why.INCONCLUSIVE, f"{found.reason}: {found.message}"))
        if found.outcome is not Outcome.FAILED:
            continue
        ours = name in quarantines
        why = _why_left(policy, found, nodes.get(name), everywhere, node_causes, ours=ours)
        if why is not None:
            left.append(Left(name, why, f"{found.reason}: {found.message}"))
            continue
        if (not ours or policy is Policy.REPLACE) and name not in used:
            if len(used) >= budget:
                left.append(Left(name, Why.BUDGET_SPENT, f"this run may take {budget} node(s) out of service"))
                continue
            used.add(name)
        quarantine.append((name, found))
        if policy is Policy.REPLACE:
            replace.append(name)
    return Plan(tuple(quarantine), tuple(replace), _passed_again(judged, nodes, quarantines, probes), tuple(left))


def pool_wide(judged: Mapping[str, Judgement], nodes: Mapping[str, PoolNode]) -> str | None:
    """The reason for which every node that was judged failed, if there is one: then it is not the nodes' fault.

    Of nodes that were not looked at (not in the sample, cordoned) nothing is known, so they neither speak for the
    pool's defect nor against it. One judged node among others is no pattern; but a pool's only node cannot be told from
    its pool.
    """
    found = [judged[name] for name in nodes if name in judged]
    if not found or (len(found) == 1 and len(nodes) > 1):
        return None
    reasons = {judgement.reason for judgement in found}
    return reasons.pop() if len(reasons) == 1 and {each.outcome for each in found} == {Outcome.FAILED} else None


def _why_left(
    policy: Policy,
    found: Judgement,
    node: PoolNode | None,
    everywhere: str | None,
    node_causes: frozenset[str],
    *,
    ours: bool,
) -> Why | None:
    if node is None:
        return Why.NODE_GONE
    if policy is Policy.ALERT:
        return Why.ALERT_ONLY
    if everywhere is not None:
        return Why.POOL_WIDE
    if found.reason not in node_causes:
        return Why.NOT_THE_NODE
    if node.cordoned and not ours:
        return Why.CORDONED_BY_OTHERS
    return None


def _passed_again(
    judged: Mapping[str, Judgement],
    nodes: Mapping[str, PoolNode],
    quarantines: Mapping[str, Quarantine],
    probes: Collection[str],
) -> tuple[str, ...]:
    """Quarantined nodes that passed, the probe that they had failed included.

    That one may not have reached a node this time, so that passing the others alone proves nothing. A probe that there
    is no more (the spec has switched it off) would keep a node for ever: then all that there are must have been passed.
    """
    return tuple(
        name
        for name in sorted(quarantines)
        if name in nodes
        and (found := judged.get(name)) is not None
        and found.outcome is Outcome.PASSED
        and (quarantines[name].probe in {"", *found.passed} or _without(quarantines[name].probe, probes, found))
    )


def _without(probe: str, probes: Collection[str], found: Judgement) -> bool:
    """A node has passed everything that there is, and the probe that it had failed is no more."""
    return bool(probes) and probe not in probes and set(probes) <= found.passed


# --- nodes -----------------------------------------------------------------------------------------------------------


def quarantined(node: Object, found: Judgement, *, run: str, at: str) -> dict[str, Any] | None:
    """The merge patch that quarantines a node; ``None`` if it is quarantined as it should be.

    It carries the version that was read: taints are one list, which others write as well.
    """
    metadata, spec = node.get("metadata") or {}, node.get("spec") or {}
    before = Quarantine.of(node)
    taints = list(spec.get("taints") or [])
    tainted = any(taint.get("key") == TAINT_QUARANTINED for taint in taints)
    if before is not None and tainted and spec.get("unschedulable"):
        return None
    if not tainted:
        taints.append({"key": TAINT_QUARANTINED, "value": taint_value(found.reason), "effect": "NoSchedule"})
    cordoned = before.cordoned if before is not None else not spec.get("unschedulable")
    if before is not None and before.run:  # somebody has taken a part of it away; it still is that run's
        run, at = before.run, before.at
    mine = Quarantine(found.reason, found.message, found.probe, run, at, cordoned=cordoned)
    return {
        "metadata": {
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": {ANNOTATION_QUARANTINED: mine.to_annotation()},
        },
        "spec": {"unschedulable": True, "taints": taints},
    }


def released(node: Object) -> dict[str, Any] | None:
    """The merge patch that ends our quarantine; ``None`` if there is none.

    A cordon that was there before it, or that a drain has put on since, stays.
    """
    before = Quarantine.of(node)
    if before is None:
        return None
    metadata, spec = node.get("metadata") or {}, node.get("spec") or {}
    taints = [taint for taint in spec.get("taints") or [] if taint.get("key") != TAINT_QUARANTINED]
    body: dict[str, Any] = {
        "metadata": {
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": {ANNOTATION_QUARANTINED: None},
        },
        "spec": {"taints": taints or None},
    }
    if before.cordoned and ANNOTATION_CORDONED_BY not in annotations_of(node):
        body["spec"]["unschedulable"] = None
    return body


def taint_value(reason: str) -> str:
    """A reason as a taint's value."""
    return _NOT_IN_VALUE.sub("", reason)[:_MAX_VALUE].strip("_.-")


def users_of(pods: Iterable[Object], node: str) -> list[str]:
    """``namespace/name`` of the pods for whose sake a node is not replaced.

    Pods of users that hold a GPU, and those that ask not to be disrupted. Not our own, and not those of DaemonSets,
    which come back wherever there is a node.
    """
    found = []
    for pod in pods:
        if node_of(pod) != node or finished(pod) or is_ours(pod):
            continue
        owner = controller_of(pod)
        if owner is not None and owner.get("kind") == "DaemonSet":
            continue
        if gpus_requested(pod) or protected_value(pod) is not None:
            metadata = pod.get("metadata") or {}
            found.append(f"{metadata.get('namespace')}/{metadata.get('name')}")
    return sorted(found)


def claim_of(claims: Iterable[Object], node: str) -> Object | None:
    """The NodeClaim of a node, also one that is being deleted."""
    named = [claim for claim in claims if (claim.get("status") or {}).get("nodeName") == node]
    return next((claim for claim in named if not deleting(claim)), next(iter(named), None))
