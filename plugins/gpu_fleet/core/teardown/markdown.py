"""The teardown plan as Markdown: what a person reads before approving it.

In the order of the reader's questions: what is removed and what it costs, whose pods are evicted, what blocks the
teardown, what is kept and why. The lists of objects come last. Names, annotations and messages are written by others:
they are escaped, so that none of them can hide, add or link anything in the text that is approved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_fleet.core.aws.costs import HOURS_PER_MONTH
from gpu_fleet.core.kubernetes.names import ANNOTATION_DO_NOT_DISRUPT
from gpu_fleet.core.markup.markdown import code, escape
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.karpenter import Way
from gpu_fleet.core.teardown.plan import TeardownPlan
from gpu_fleet.core.teardown.pods import Victim

_MOST = 20
_INSTANCE = ("type", "capacityType", "pool", "price")


def _list(names: Iterable[str]) -> str:
    return ", ".join(code(name) for name in names) or "none"


def _items(lines: Sequence[str]) -> list[str]:
    """A list of at most :data:`_MOST` lines, with the count of the rest."""
    more = len(lines) - _MOST
    return [f"- {line}" for line in lines[:_MOST]] + ([f"- and {more} more"] if more > 0 else [])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def to_markdown(plan: TeardownPlan, spec: ClusterSpec) -> str:
    """One page.

    :param spec: its ``drain`` decides about pods that are left when the time is up.
    """
    if plan.empty:
        parts = [["Nothing to remove: there is no NodePool, NodeClaim, node, instance or Helm release of ours."]]
    else:
        parts = [_removes(plan), *_interrupts(plan), *_holds_up(plan, spec)]
    parts += [_keeps(plan), *([f"**Note:** {escape(note)}"] for note in plan.notes)]
    if not plan.empty:
        parts += _details(plan)
    paragraphs = ["\n".join(lines) for lines in parts if lines]
    return "\n\n".join([f"## Teardown of the GPU capacity of {code(plan.cluster)}", *paragraphs])


def _removes(plan: TeardownPlan) -> list[str]:
    going = [volume for volume in plan.volumes if volume.goes]
    what = [_count(len(plan.pools), "NodePool"), _count(len(plan.instances), "instance")]
    if going:
        what.append(f"{_count(len(going), 'volume')} of {sum(volume.gib for volume in going)} GiB")
    month = "" if not plan.cost.usd else f" (about {plan.cost.usd * HOURS_PER_MONTH:,.0f} USD a month)"
    return [f"**Removes:** {', '.join(what)}: **{escape(str(plan.cost))}**{month}. {escape(plan.prices)}"]


def _interrupts(plan: TeardownPlan) -> list[list[str]]:
    victims = plan.judged.victims
    parts: list[list[str]] = []
    if victims:
        by_owner: dict[str, list[Victim]] = {}
        for victim in victims:
            by_owner.setdefault(victim.owner, []).append(victim)
        gpus = sum(victim.gpus for victim in victims)
        holds = f" and hold {_count(gpus, 'GPU')} or shares of GPUs" if gpus else ""
        head = f"**Interrupts:** {_count(len(victims), 'running pod')} will be evicted{holds}:"
        parts.append([head, *_items([_of_owner(owner, pods) for owner, pods in by_owner.items()])])
    elif not plan.judged.drain.refuse:
        parts.append(["**Interrupts:** nothing; no user's pod runs on these nodes."])
    protected = [victim for victim in victims if victim.asked_to_stay is not None]
    if protected:
        head = f"**Evicted although they ask not to be disrupted** (`{ANNOTATION_DO_NOT_DISRUPT}`):"
        parts.append([head, *_items([f"{code(v.name)} ({code(str(v.asked_to_stay))})" for v in protected])])
    lost = [volume for volume in plan.volumes if volume.goes and volume.volume_of]
    if lost:
        head = "**Deleted with the instance** (attached with DeleteOnTermination):"
        parts.append(
            [head, *_items([f"{escape(volume.volume_of)}: {code(volume.id)}, {volume.gib} GiB" for volume in lost])]
        )
    return parts


def _of_owner(owner: str, pods: Sequence[Victim]) -> str:
    names = _list([pod.name for pod in pods[:3]]) + (f" and {len(pods) - 3} more" if len(pods) > 3 else "")
    gpus = sum(pod.gpus for pod in pods)
    warnings = sorted({escape(pod.warning) for pod in pods if pod.warning})
    parts = [escape(owner) if owner != pods[0].name else "", names, f"{_count(gpus, 'GPU')}" if gpus else "", *warnings]
    return "; ".join(part for part in parts if part)


def _holds_up(plan: TeardownPlan, spec: ClusterSpec) -> list[list[str]]:
    parts: list[list[str]] = []
    refused = plan.judged.drain.refuse
    if refused:
        head = f"**Refuses:** {_count(len(refused), 'pod')} must not be evicted:"
        parts.append(
            [head, *_items([f"{code(str(pod))} on {code(pod.node)} {escape(pod.verdict.message)}" for pod in refused])]
        )
    forbidden = plan.judged.forbidden()
    if forbidden:
        policy = spec.drain
        then = (
            "the drain deletes the pods anyway (drain.whenTimeExpires: delete)"
            if policy.when_time_expires == "delete"
            else "the drain fails, and pods that were not evicted stay (drain.whenTimeExpires: fail)"
        )
        head = f"**Blocks the drain:** PodDisruptionBudgets forbid evictions now; after {policy.timeout.text} {then}:"
        parts.append([head, *_items([f"{escape(why)}: {_list(pods[:5])}" for why, pods in sorted(forbidden.items())])])
    lingering = plan.judged.lingering
    if lingering and plan.way is Way.BY_KARPENTER:
        head = (
            "**Blocks Karpenter:** a drain leaves these DaemonSet pods, and Karpenter terminates their nodes only when "
            "they are gone, or after the pool's terminationGracePeriod (never if it is null):"
        )
        parts.append([head, *_items([f"{code(name)}: {escape(why)}" for name, why in lingering.items()])])
    return parts


def _keeps(plan: TeardownPlan) -> list[str]:
    stays = [f"NodePools {_list(plan.kept_pools)}"] if plan.kept_pools else []
    stays += map(escape, plan.stays)
    stays += [
        f"volume {code(volume.id)}, {volume.gib} GiB {escape(volume.type)}, {escape(str(volume.per_month))}"
        + (f": {escape(volume.volume_of)}" if volume.volume_of else ": kept when its instance is terminated")
        for volume in plan.volumes
        if not volume.goes
    ]
    return ["**Keeps:**", *_items(stays)] if stays else []


def _details(plan: TeardownPlan) -> list[list[str]]:
    helm = [f"{release['namespace']}/{release['name']} ({release['status']})" for release in plan.releases]
    removed = [
        "| removed | |",
        "|---|---|",
        f"| NodePools | {_list(plan.pools)} |",
        f"| NodeClaims | {_list(plan.node_claims)} |",
        f"| nodes | {_list(plan.nodes)} |",
        f"| Helm releases | {_list(helm)} |",
    ]
    rows = [
        "| " + " | ".join([code(row["id"]), *(escape(str(row[key])) for key in _INSTANCE)]) + " |"
        for row in plan.instances
    ]
    head = ["| instance | type | capacity | pool | price |", "|---|---|---|---|---|"]
    return [removed, [*head, *rows] if rows else []]
