"""The teardown plan as Markdown: what a person reads before saying yes.

In the order of the reader's questions: what goes and what it costs, whom it hurts, what holds it up, what stays and
why. The lists of objects come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_fleet.core.costs import HOURS_PER_MONTH
from gpu_fleet.core.names import ANNOTATION_DO_NOT_DISRUPT
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown import TeardownPlan
from gpu_fleet.core.teardown_pods import Victim

_MOST = 20


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _items(lines: Sequence[str]) -> list[str]:
    """A list, cut where nobody reads on, with the count of the rest."""
    more = len(lines) - _MOST
    return [f"- {line}" for line in lines[:_MOST]] + ([f"- and {more} more"] if more > 0 else [])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def to_markdown(plan: TeardownPlan, spec: ClusterSpec) -> str:
    """One page.

    :param spec: for what its ``drain`` says of pods that are left when the time is up.
    """
    lines = [f"## Teardown of the GPU capacity of `{plan.cluster}`", ""]
    if plan.empty:
        lines.append("Nothing is left: no NodePool, NodeClaim, node, instance or Helm release of ours.")
    else:
        lines += [*_goes(plan), "", *_hurt(plan), *_holds_up(plan, spec)]
    lines += _stays(plan)
    lines += [f"\n**Note:** {note}" for note in plan.notes]
    if not plan.empty:
        lines += ["", *_details(plan)]
    return "\n".join(lines)


def _goes(plan: TeardownPlan) -> list[str]:
    going = [volume for volume in plan.volumes if volume.goes]
    what = [_count(len(plan.pools), "NodePool"), _count(len(plan.instances), "instance")]
    if going:
        what.append(f"{_count(len(going), 'volume')} of {sum(volume.gib for volume in going)} GiB")
    month = "" if not plan.cost.usd else f" (about {plan.cost.usd * HOURS_PER_MONTH:,.0f} USD a month)"
    return [f"**Goes:** {', '.join(what)}: **{plan.cost}**{month}. {plan.prices}"]


def _hurt(plan: TeardownPlan) -> list[str]:
    victims = plan.judged.victims
    refused = plan.judged.drain.refuse
    lines = []
    if not victims and not refused:
        lines.append("**Hurt:** nobody; no user's pod runs on these nodes.")
    if victims:
        by_owner: dict[str, list[Victim]] = {}
        for victim in victims:
            by_owner.setdefault(victim.owner, []).append(victim)
        gpus = sum(victim.gpus for victim in victims)
        holds = f" and hold {_count(gpus, 'GPU')} or shares of GPUs" if gpus else ""
        lines.append(f"**Hurt:** {_count(len(victims), 'running pod')} will be evicted{holds}:")
        lines += _items([_of_owner(owner, pods) for owner, pods in by_owner.items()])
    protected = [victim for victim in victims if victim.asked_to_stay is not None]
    if protected:
        lines += ["", f"**Evicted although they ask not to be disrupted** (`{ANNOTATION_DO_NOT_DISRUPT}`):"]
        lines += _items([f"`{v.name}` (`{v.asked_to_stay}`)" for v in protected])
    lost = [volume for volume in plan.volumes if volume.goes and volume.volume_of]
    if lost:
        lines += ["", "**Lost with its instance** (attached to be deleted on termination):"]
        lines += _items([f"{volume.volume_of}: `{volume.id}`, {volume.gib} GiB" for volume in lost])
    return lines


def _of_owner(owner: str, pods: Sequence[Victim]) -> str:
    names = _list([pod.name for pod in pods[:3]]) + (f" and {len(pods) - 3} more" if len(pods) > 3 else "")
    gpus = sum(pod.gpus for pod in pods)
    warnings = sorted({pod.warning for pod in pods if pod.warning})
    parts = [owner if owner != pods[0].name else "", names, f"{_count(gpus, 'GPU')}" if gpus else "", *warnings]
    return "; ".join(part for part in parts if part)


def _holds_up(plan: TeardownPlan, spec: ClusterSpec) -> list[str]:
    lines: list[str] = []
    refused = plan.judged.drain.refuse
    if refused:
        lines += ["", f"**Refuses:** {_count(len(refused), 'pod')} must not be evicted:"]
        lines += _items([f"`{pod}` on `{pod.node}` {pod.verdict.message}" for pod in refused])
    forbidden = plan.judged.forbidden()
    if forbidden:
        policy = spec.drain
        then = (
            "the pods are deleted past them (drain.whenTimeExpires: delete)"
            if policy.when_time_expires == "delete"
            else "the drain fails, and what has not been evicted stays (drain.whenTimeExpires: fail)"
        )
        lines += ["", f"**Holds the drain up:** as long as this is so; after {policy.timeout.text} {then}:"]
        lines += _items([f"{why}: {_list(pods[:5])}" for why, pods in sorted(forbidden.items())])
    return lines


def _stays(plan: TeardownPlan) -> list[str]:
    stays = [f"NodePools {_list(plan.kept_pools)}"] if plan.kept_pools else []
    stays += plan.stays
    stays += [
        f"volume `{volume.id}`, {volume.gib} GiB {volume.type}, {volume.per_month}"
        + (f": {volume.volume_of}" if volume.volume_of else ": kept when its instance is terminated")
        for volume in plan.volumes
        if not volume.goes
    ]
    return ["", "**Stays:**", *_items(stays)] if stays else []


def _details(plan: TeardownPlan) -> list[str]:
    helm = [f"{release['namespace']}/{release['name']} ({release['status']})" for release in plan.releases]
    lines = [
        "| removed | |",
        "|---|---|",
        f"| NodePools | {_list(plan.pools)} |",
        f"| NodeClaims | {_list(plan.node_claims)} |",
        f"| nodes | {_list(plan.nodes)} |",
        f"| Helm releases | {_list(helm)} |",
    ]
    if plan.instances:
        lines += ["", "| instance | type | capacity | pool | price |", "|---|---|---|---|---|"]
        lines += [
            f"| `{row['id']}` | {row['type']} | {row['capacityType']} | {row['pool']} | {row['price']} |"
            for row in plan.instances
        ]
    return lines
