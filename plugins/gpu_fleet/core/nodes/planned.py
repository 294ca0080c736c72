"""What applying the spec would do to the existing nodes, computed from the fields that Karpenter compares. Pure.

Each NodeClaim is compared with the live NodePool and EC2NodeClass, and with what they will be after the manifests are
applied. So nodes that match again after a change was reverted are recognized, and earlier changes are not counted
twice. An upgrade of the control plane counts too: an alias finds its AMI by the control plane's version
(aws/karpenter-provider-aws v1.14.1 ``pkg/providers/amifamily/al2023.go``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import Object, deleting, labels_of, name_of
from gpu_fleet.core.markup.markdown import escape
from gpu_fleet.core.nodes.drifted import NAMED, DriftedNode, class_name, describe, drifted_nodes, made_differently
from gpu_fleet.core.nodes.records import Record, remembered
from gpu_fleet.core.nodes.template import (
    AMI_ALIAS,
    Change,
    alias_of,
    class_fields,
    differences,
    pool_fields,
    requirements_of,
)
from gpu_fleet.core.spec.budgets import DRIFTED


@dataclass(frozen=True)
class PoolChange:
    """What the run does to one pool's nodes.

    :ivar changes: changes of its template; empty if only the control plane has changed.
    :ivar upgraded: ``kubelet -> control plane`` if nodes have an older version than the control plane.
    :ivar drifting: nodes that will be drifted because of it.
    :ivar again: nodes that were drifted and no longer will be.
    :ivar before: how many nodes were drifted and will stay so.
    :ivar consequence: what Karpenter does then, in a sentence.
    :ivar ends_pods: users' pods that may be ended by it.
    """

    pool: str
    changes: tuple[Change, ...]
    upgraded: str
    drifting: tuple[DriftedNode, ...]
    again: tuple[str, ...]
    before: int
    consequence: str
    ends_pods: tuple[str, ...]

    @property
    def headline(self) -> str:
        what = []
        if self.changes:
            shown = "; ".join(str(change) for change in self.changes[:NAMED])
            more = "; …" if len(self.changes) > NAMED else ""
            what.append(f"this changes the template of pool {self.pool} ({shown}{more})")
        if self.upgraded:
            what.append(f"the control plane was upgraded ({self.upgraded}), so pool {self.pool} gets another AMI")
        busy = [node for node in self.drifting if node.pods]
        pods = [pod for node in busy for pod in node.pods]
        names = f" ({', '.join(pods[:NAMED])}{', …' if len(pods) > NAMED else ''})" if pods else ""
        count = f"{len(self.drifting)} node{'' if len(self.drifting) == 1 else 's'} will drift"
        hold = f"{len(busy)} of them hold{'s' if len(busy) == 1 else ''} pods with GPUs{names}"
        return f"{'; '.join(what)}: {count}, {hold}"

    def sentences(self) -> list[str]:
        found = [f"{self.headline}. {self.consequence}."]
        if self.again:
            found.append(f"Nodes that are as the spec says again: {', '.join(self.again)}.")
        if self.before:
            found.append(f"{self.before} node(s) of pool {self.pool} had drifted before and stay so.")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "pool": self.pool,
            "changes": [change.to_json() for change in self.changes],
            "upgraded": self.upgraded,
            "drifting": [node.to_json() for node in self.drifting],
            "again": list(self.again),
            "before": self.before,
            "consequence": self.consequence,
            "endsPods": list(self.ends_pods),
            "message": " ".join(self.sentences()),
        }


def plan_pool(
    live: tuple[Object, Object],
    after: tuple[Object, Object],
    claims: Iterable[Object],
    pods: Iterable[Object],
    record: Record,
    *,
    kubelets: Mapping[str, str],
    control_plane: str,
) -> PoolChange | None:
    """What the run does to a pool; ``None`` if it changes nothing.

    :param live: NodePool and EC2NodeClass as they are.
    :param after: NodePool and EC2NodeClass as they will be after the manifests are applied.
    :param kubelets: node -> Kubernetes version of its kubelet (``1.35``).
    :param control_plane: Kubernetes version of the control plane.
    """
    pool, node_class = live
    name, pods = name_of(pool), list(pods)
    own = [each for each in claims if labels_of(each).get(LABEL_NODE_POOL) == name and not deleting(each)]
    record = remembered(record, node_class, own)
    changes = template_changes(live, after)
    old = sorted({kubelets[node] for each in own if (node := _node(each)) in kubelets} - {control_plane, ""})
    upgraded = f"{', '.join(old)} -> {control_plane}" if old and control_plane and alias_of(after[1]) else ""
    if not changes and not upgraded:
        return None
    already = drifted_nodes(own, pods, {name: pool}, {class_name(each): node_class for each in own}, {name: record})
    were = {each.claim for each in already}
    drifting, again, before = [], [], 0
    for claim in own:
        new = made_differently(claim, *after, record)
        if not new and kubelets.get(_node(claim), control_plane) != control_plane and upgraded:
            new = (Change(f"the AMI of {AMI_ALIAS} {alias_of(after[1])}", kubelets[_node(claim)], control_plane),)
        if name_of(claim) in were:
            before += bool(new)
            if not new:
                again.append(_node(claim) or name_of(claim))
        elif new:
            drifting.append(describe(claim, pods, changes=new))
    drifting.sort(key=lambda each: (each.node, each.claim))
    if not changes and not drifting:
        return None
    consequence, ends = consequence_of(after[0], drifting, len(own))
    return PoolChange(name, tuple(changes), upgraded, tuple(drifting), tuple(sorted(again)), before, consequence, ends)


def _node(claim: Object) -> str:
    return str((claim.get("status") or {}).get("nodeName") or "")


def template_changes(live: tuple[Object, Object], after: tuple[Object, Object]) -> list[Change]:
    """The fields of a pool's template that applying changes; what the selectors will find is not known yet."""
    (pool, node_class), (new_pool, new_class) = live, after
    found = differences(pool_fields(pool), pool_fields(new_pool))
    found += differences(class_fields(node_class), class_fields(new_class))
    was, now = alias_of(node_class), alias_of(new_class)
    found += [Change(AMI_ALIAS, was, now)] if was != now else []
    return found + differences(_requirements(pool), _requirements(new_pool))


def _requirements(pool: Object) -> dict[str, str]:
    return {
        f"requirements.{entry.get('key')}": f"{entry.get('operator')} {', '.join(map(str, entry.get('values') or []))}"
        for entry in requirements_of(pool)
    }


# --- what Karpenter does then ----------------------------------------------------------------------------------------


def drift_allowance(pool: Object, nodes: int) -> tuple[int | None, bool]:
    """How many drifted nodes Karpenter replaces at a time (``None``: any number), and whether a schedule changes that.

    The least of the budgets that match; percentages are rounded up (kubernetes-sigs/karpenter v1.14.1
    ``pkg/apis/v1/nodepool.go``). Budgets with a schedule restrict only now and then, so they are not counted.
    """
    allowed: int | None = None
    scheduled = False
    for budget in ((pool.get("spec") or {}).get("disruption") or {}).get("budgets") or []:
        if budget.get("reasons") and DRIFTED not in budget["reasons"]:
            continue
        if budget.get("schedule"):
            scheduled = True
            continue
        text = str(budget.get("nodes", "10%"))
        count = -(-int(text[:-1]) * nodes // 100) if text.endswith("%") else int(text)
        allowed = count if allowed is None else min(allowed, count)
    return allowed, scheduled


def consequence_of(pool: Object, drifting: Sequence[DriftedNode], nodes: int) -> tuple[str, tuple[str, ...]]:
    """What Karpenter does with drifted nodes, and the users' pods that may be ended by it.

    :param nodes: how many the pool has.
    """
    if not drifting:
        return "Nothing drifts", ()
    allowed, scheduled = drift_allowance(pool, max(nodes, 1))
    if allowed == 0:
        return (
            "Karpenter replaces none of them by itself: a disruption budget allows none for drift. A lifecycle run "
            "with replaceDrifted: idle replaces those without GPU pods",
            (),
        )
    pace = "all at once" if allowed is None else f"at most {allowed} at a time"
    parts = [f"Karpenter replaces drifted nodes, {pace}{', less while a budget is on its schedule' * scheduled}"]
    idle = [each for each in drifting if each.idle]
    forced = [each for each in drifting if not each.idle and each.period]
    kept = [each for each in drifting if each.protected and not each.period]
    moved = [each for each in drifting if each.pods and not each.protected and not each.period]
    if idle:
        parts.append(f"idle ones go ({_nodes(idle)})")
    if moved:
        parts.append(f"running pods are evicted from {_nodes(moved)} unless a PodDisruptionBudget keeps them")
    if kept:
        parts.append(f"{_nodes(kept)} stay until their pods with karpenter.sh/do-not-disrupt end")
    for period in sorted({each.period for each in forced}):
        those = _nodes([each for each in forced if each.period == period])
        parts.append(
            f"running pods on {those} are deleted {period} after their node is taken, whatever their "
            "PodDisruptionBudgets and karpenter.sh/do-not-disrupt say (terminationGracePeriod)"
        )
    ended = [pod for each in (*moved, *forced) for pod in (*each.pods, *each.protected)]
    return "; ".join(parts), tuple(dict.fromkeys(ended))


def _nodes(nodes: Sequence[DriftedNode]) -> str:
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return ", ".join(each.node or each.claim for each in nodes[:NAMED]) + more


def to_markdown(cluster: str, changes: Sequence[PoolChange], drifted: Sequence[DriftedNode]) -> str:
    """For people, before anything is applied."""
    lines = [f"### What this run changes on nodes of {escape(cluster)}", ""]
    if not changes:
        lines.append("No pool's template changes: applying the spec makes no node drift.")
    for change in changes:
        lines += [f"- {escape(sentence)}" for sentence in change.sentences()]
    if drifted:
        lines += ["", "Nodes that have drifted already:", ""]
        lines += [f"- {escape(str(node))}" for node in drifted]
    return "\n".join(lines)
