"""The teardown plan as Markdown: what a person reads before saying yes."""

from __future__ import annotations

from gpu_fleet.core.teardown import TeardownPlan

_MOST_PODS = 20


def _list(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) if names else "none"


def to_markdown(plan: TeardownPlan) -> str:
    """One page; the cost first, since it is what the decision is about."""
    lines = [f"## Teardown of the GPU capacity of `{plan.cluster}`", ""]
    if plan.empty:
        return "\n".join([*lines, "Nothing is left: no NodePool, NodeClaim, node, instance or Helm release of ours."])
    helm = [f"{release['namespace']}/{release['name']} ({release['status']})" for release in plan.releases]
    lines += [
        f"Running now: **{len(plan.instances)} instances, {plan.cost}**. {plan.prices}",
        "",
        "| removed | |",
        "|---|---|",
        f"| NodePools | {_list(plan.pools)} |",
        f"| NodeClaims | {_list(plan.node_claims)} |",
        f"| nodes | {_list(plan.nodes)} |",
        f"| Helm releases | {_list(helm)} |",
    ]
    if plan.kept_pools:
        lines.append(f"| kept NodePools | {_list(plan.kept_pools)} |")
    if plan.instances:
        lines += ["", "| instance | type | capacity | pool | price |", "|---|---|---|---|---|"]
        lines += [
            f"| `{row['id']}` | {row['type']} | {row['capacityType']} | {row['pool']} | {row['price']} |"
            for row in plan.instances
        ]
    lines.append("")
    if plan.pods:
        shown = list(plan.pods)[:_MOST_PODS]
        more = len(plan.pods) - len(shown)
        lines.append(f"**{len(plan.pods)} running pods will be evicted:**")
        lines += [f"- `{name}`" for name in shown]
        if more > 0:
            lines.append(f"- and {more} more")
    else:
        lines.append("No user pod runs on these nodes.")
    lines += [f"\n**Note:** {note}" for note in plan.notes]
    return "\n".join(lines)
