"""A drain's plan as Markdown, in the order of the reader's questions: which nodes, whose pods, what holds them, what it
costs, and every pod with its rule. Names and messages are written by others, so they are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_fleet.core.drain.rules import Fate
from gpu_fleet.core.interruptions.manual_plan import ManualPlan, PlannedPod, ends_by_node_group
from gpu_fleet.core.kubernetes.names import ANNOTATION_DO_NOT_DISRUPT
from gpu_fleet.core.markup.blocks import moment
from gpu_fleet.core.markup.markdown import code, escape
from gpu_fleet.core.spec import ClusterSpec

#: Lines of a list, and pods of the table; the plan's XCom has all.
_MOST, _MOST_PODS = 20, 100
_FATES = {
    Fate.EVICT: "evicted",
    Fate.WAIT: "waited for",
    Fate.LEAVE: "left",
    Fate.REFUSE: "refuses the drain",
}


def to_markdown(plan: ManualPlan, spec: ClusterSpec) -> str:
    """One page.

    :param spec: its ``drain`` decides about pods that budgets hold.
    """
    title = f"## Drain of {len(plan.nodes)} node(s) of {code(plan.cluster)}"
    if not plan.nodes:
        return "\n\n".join([title, escape(plan.headline())])
    parts = [
        [f"**Reason:** {escape(plan.request.reason)}"] if plan.request.reason else [],
        _nodes(plan, spec),
        _victims(plan),
        _refused(plan),
        _held(plan, spec),
        _costs(plan),
        _passed_over(plan),
        _pods(plan),
    ]
    return "\n\n".join([title, *("\n".join(lines) for lines in parts if lines)])


def _items(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _MOST
    return [f"- {line}" for line in lines[:_MOST]] + ([f"- and {more} more"] if more > 0 else [])


def _names(names: Iterable[str]) -> str:
    return ", ".join(code(name) for name in names)


def _nodes(plan: ManualPlan, spec: ClusterSpec) -> list[str]:
    request = plan.request
    when = (
        f"until {moment(request.until)} UTC"
        if request.until is not None
        else f"within {request.minutes or 0:g} minutes"
    )
    how = (
        f"{when}; what budgets still hold then is deleted in time for its grace period"
        if request.has_deadline
        else f"as PodDisruptionBudgets allow, for {spec.drain.timeout.text} at most"
    )
    then = "then they are removed" if request.remove else "then they stay cordoned, until a person uncordons them"
    lines = [f"**Drains,** {how}; {then}:"]
    lines += _items(
        [
            f"{code(node.name)} ({code(node.instance)}, {escape(node.instance_type or 'unknown type')}, pool "
            f"{escape(node.pool)}, zone {escape(node.zone or 'unknown')})"
            for node in plan.nodes
        ]
    )
    for pool, first in plan.replaced.items():
        but = f"; **impossible:** {escape(first.problem)}" if first.problem else ""
        lines.append(f"- first, {len(first.nodes)} new node(s) of pool {escape(pool)} are requested and validated{but}")
    if request.replace_first and (groups := ends_by_node_group(plan.nodes)):
        lines.append(f"- {_names(groups)}: of node groups, which replace a node after it has ended, not before")
    return lines


def _victims(plan: ManualPlan) -> list[str]:
    users = plan.users_gpu_pods
    if not users:
        return ["**Interrupts:** no user's pod that holds a GPU."]
    gpus = sum(pod.gpus for pod in users)
    lines = [f"**Interrupts:** {len(users)} pod(s) of users that hold {gpus} GPUs or shares of GPUs:"]
    lines += _items([f"{code(pod.name)} of {escape(pod.workload)}: {pod.gpus}{_stay(pod)}" for pod in users])
    return lines


def _stay(pod: PlannedPod) -> str:
    if pod.asked_to_stay is None:
        return ""
    return f"; asks not to be disrupted (`{ANNOTATION_DO_NOT_DISRUPT}`: {code(pod.asked_to_stay)})"


def _refused(plan: ManualPlan) -> list[str]:
    refused = plan.drain.refuse
    if not refused:
        return []
    lines = [f"**Refuses:** {len(refused)} pod(s) must not be evicted:"]
    return lines + _items([f"{code(str(pod))} on {code(pod.node)} {escape(pod.verdict.message)}" for pod in refused])


def _held(plan: ManualPlan, spec: ClusterSpec) -> list[str]:
    held = [pod for pod in plan.pods if pod.budget]
    if not held:
        return []
    if plan.request.has_deadline:
        then = "they are deleted when their grace period has to begin"
    elif spec.drain.when_time_expires == "delete":
        then = f"they are deleted after {spec.drain.timeout.text} (drain.whenTimeExpires: delete)"
    else:
        then = f"the drain fails after {spec.drain.timeout.text} (drain.whenTimeExpires: fail)"
    lines = [f"**Held by budgets now:** if that stays so, {then}:"]
    return lines + _items([f"{code(pod.name)}: {escape(pod.budget)}" for pod in held])


def _costs(plan: ManualPlan) -> list[str]:
    if not plan.gpu_seconds:
        return []
    usd = "at an unknown price" if plan.usd is None else f"{plan.usd:.2f} USD"
    return [
        f"**Costs at most:** {plan.gpu_seconds / 3600:.2f} GPU hours ({usd}), which the evicted pods have computed so "
        f"far; what they have saved is not lost. {escape(plan.prices)}"
    ]


def _passed_over(plan: ManualPlan) -> list[str]:
    if not plan.passed_over:
        return []
    return ["**Not drained:**", *_items([f"{code(name)}: {escape(why)}" for name, why in plan.passed_over.items()])]


def _pods(plan: ManualPlan) -> list[str]:
    if not plan.pods:
        return ["No pods are on these nodes."]
    rows = [
        f"| {code(pod.name)} | {code(pod.node)} | {pod.gpus or '–'} | {_FATES[pod.fate]} | {code(pod.rule)} | "
        f"{pod.grace:.0f} s | {escape('; '.join(filter(None, (pod.message, pod.budget))))} |"
        for pod in plan.pods[:_MOST_PODS]
    ]
    more = len(plan.pods) - _MOST_PODS
    foot = [f"\n{more} more pods are in the result of the task (XCom `plan`)."] if more > 0 else []
    head = ["| pod | node | GPUs | fate | rule | grace | why |", "|---|---|---|---|---|---|---|"]
    return [*head, *rows, *foot]
