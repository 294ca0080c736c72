"""Whether a validation bought or lost a node: the pool's NodeClaims before and after, and what made the difference.

A pool is in use while it is validated: Karpenter buys nodes for users' pods, replaces and consolidates nodes that are
not under test, and EC2 reclaims spot instances. Only two things are the validation's: a claim that no user's pod asked
for, and the loss of a node that it had protected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from gpu_fleet.core.kubernetes.names import COMPONENT_HEADROOM, LABEL_COMPONENT
from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolClaim,
    finished,
    gpus_requested,
    is_ours,
    labels_of,
    name_of,
    node_of,
)
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.validation.report import Check, NodeReport, PoolReport, failed, passed

NAME = "nodeClaims"

#: Reasons of Karpenter's events (kubernetes-sigs/karpenter ``**/events.go``, karpenter-provider-aws
#: ``pkg/controllers/interruption/events``). On a pod: the claim or node that it should run on.
NOMINATED = "Nominated"
#: On a claim: it takes the place of a node that Karpenter removes; Karpenter removes it by its own choice, which the
#: protection forbids; EC2 takes its instance away.
REPLACING, DISRUPTED, INTERRUPTED = "DisruptionLaunching", "DisruptionTerminating", "TerminatingOnInterruption"

_CLAIM = re.compile(r"nodeclaim/([A-Za-z0-9.-]+)")
_SPOT = "spot"


def claims_unchanged(
    before: ChosenNodes,
    after: Iterable[PoolClaim],
    pods: Iterable[Object],
    events: Iterable[Object],
    *,
    our_namespaces: Collection[str],
    known: Iterable[str] = (),
) -> Check:
    """Validation neither bought nor lost a node.

    :param before: the nodes under test and the pool's NodeClaims when they were chosen.
    :param after: the pool's NodeClaims now. Those that are being deleted are on neither side.
    :param pods: those on the nodes of new NodeClaims, and those with GPUs that are on no node yet.
    :param events: ``Nominated`` of all pods, and all events about NodeClaims.
    :param our_namespaces: where probes and placeholders live. An event about a deleted pod has only its namespace
        and name.
    :param known: NodeClaims that another verdict of the run has reported: their node vanished under test, or an earlier
        probe has named them.
    """
    old, now, told, happened = set(before.node_claims), {claim.name: claim for claim in after}, set(known), [*events]
    added, removed = sorted(set(now) - old - told), sorted(old - set(now) - told)
    changes = {"added": sorted(set(now) - old), "removed": sorted(old - set(now))}
    figures: dict[str, Any] = {"before": len(old), "after": len(now), **changes}
    lost = {name: _loss(name, before.claims.get(name, ""), before, happened) for name in removed}
    ours = [(name, why) for name, why in lost.items() if why]
    if ours:
        said = "; ".join(f"{name}: {why}" for name, why in ours)
        message = f"NodeClaim(s) were removed during validation, although their nodes were protected: {said}"
        return failed(NAME, "NodeClaimsLost", message, **figures)
    bought = _bought([now[name] for name in added], [*pods], happened, our_namespaces)
    if bought:
        message = f"NodeClaim(s) {', '.join(bought)} appeared during validation, and no user's pod asked for them"
        return failed(NAME, "NodeClaimsBought", message, **figures)
    if added:
        message = f"{len(added)} NodeClaim(s) were made for users' pods, or replace nodes that were not under test"
        return passed(NAME, "OthersAskedForMore", message, **figures)
    if removed:
        message = (
            f"{len(removed)} NodeClaim(s) were removed whose nodes were not under test, or whose instance EC2 took away"
        )
        return passed(NAME, "OthersTookAway", message, **figures)
    return passed(NAME, "Unchanged", f"{len(now)} NodeClaim(s) before and after", **figures)


def vanished_nodes(reports: Iterable[NodeReport]) -> set[str]:
    """The nodes that were gone when they were looked at, in this probe or an earlier one of the run."""
    return {report.node for report in reports if (cause := report.cause) and cause.reason == "NodeVanished"}


def told_before(before: ChosenNodes, earlier: Iterable[PoolReport], reports: Iterable[NodeReport]) -> set[str]:
    """The NodeClaims that the run has already explained: see ``known`` of :func:`claims_unchanged`.

    Events are kept for an hour; what an earlier probe could still explain need not be explained again.

    :param earlier: the reports of the run's earlier probes.
    :param reports: the reports of this probe.
    """
    probes = [*earlier]
    gone = vanished_nodes([*(node for probe in probes for node in probe.nodes), *reports])
    known = {claim for claim, node in before.claims.items() if node in gone}
    for probe in probes:
        for check in probe.pool_checks:
            if check.name == NAME:
                known |= {*(check.figures.get("added") or ()), *(check.figures.get("removed") or ())}
    return known


def _loss(claim: str, node: str, before: ChosenNodes, events: Iterable[Object]) -> str:
    """Why a claim should not have been removed; empty if that is no fault of ours."""
    if node not in before.nodes:
        return ""
    mine = {event.get("reason"): str(event.get("message", "")) for event in events if _about(event) == claim}
    if DISRUPTED in mine:
        return mine[DISRUPTED]
    # Without an event: Karpenter finds an instance that EC2 has ended missing sooner or later, and does not say why.
    if INTERRUPTED in mine or before.instances.get(node, {}).get("capacityType") == _SPOT:
        return ""
    return "no event says why; deleted by hand, or expired (expireAfter)?"


def _bought(added: Iterable[PoolClaim], pods: list[Object], events: list[Object], our: Collection[str]) -> list[str]:
    """Those of the new claims that no user's pod has asked for."""
    users = [pod for pod in pods if gpus_requested(pod) and (not is_ours(pod) or _is_headroom(pod))]
    if any(not node_of(pod) and not finished(pod) for pod in users):
        return []  # it may be the user's: Karpenter says so a moment after it has made the claim
    theirs: set[str] = set()
    mine: set[str] = set()
    for event in events:
        if event.get("reason") == NOMINATED:
            involved = event.get("involvedObject") or {}
            headroom = str(involved.get("name", "")).startswith(f"{COMPONENT_HEADROOM}-")
            by_us = involved.get("namespace") in our and not headroom
            (mine if by_us else theirs).update(_CLAIM.findall(str(event.get("message", ""))))
        elif event.get("reason") == REPLACING:
            theirs.add(_about(event))
    used = {node_of(pod) for pod in users}
    return [claim.name for claim in added if claim.name in mine or not (claim.name in theirs or claim.node in used)]


def _is_headroom(pod: Object) -> bool:
    """Headroom is asked for at its own hours, and may get its node while a validation is under way."""
    return labels_of(pod).get(LABEL_COMPONENT) == COMPONENT_HEADROOM


def _about(event: Object) -> str:
    """The NodeClaim that an event is about; empty if it is about something else."""
    involved = event.get("involvedObject") or {}
    return name_of({"metadata": involved}) if involved.get("kind") == "NodeClaim" else ""
