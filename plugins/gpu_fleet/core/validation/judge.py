"""The verdict on a node's GPUs: which rules a probe has, and which of them rests on which.

The order is that of blame: the first thing that is wrong explains what follows, so a rule that rests on another one is
skipped when that one did not pass. One defect thus has one reason. The rules themselves: ``node`` (before anything
runs), ``pods``, ``sharing``, ``throughput``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.validation.evidence import NodeEvidence
from gpu_fleet.core.validation.facts import Looked
from gpu_fleet.core.validation.node import NODE_RULES, look_at_node
from gpu_fleet.core.validation.pods import TAKEN, clock, diagnostics, driver, reported, room, strangers, vector_add
from gpu_fleet.core.validation.report import Check, NodeReport, busy, failed, not_reached
from gpu_fleet.core.validation.sharing import bound, concurrent, distribution, one_gpu_each, physical_count, refusal
from gpu_fleet.core.validation.throughput import fairness, memory, total, whole_gpus

NO_MEMORY_ISOLATION = (
    "Time-slicing isolates no memory: every sharer sees the GPU's whole memory, and one that allocates too much makes "
    "the others fail."
)

#: A sentence for the reader of a pool's report; the nodes' checks ``unasked`` name the pods.
SEEN_UNASKED = (
    "Pods see GPUs that they did not request ({pods}): the scheduler and the shares do not count them. See "
    "docs/guides/validation.md, 'What exclusive proves'."
)

#: The reason of a node that the pods of an earlier probe do not leave.
PROBES_STAY = "ProbesStay"

Rule = Callable[[NodeEvidence], Check]


#: What every probe's pods must do: (name of the check, rule, checks that it rests on). All rest on the node itself.
_PODS: tuple[tuple[str, Rule, tuple[str, ...]], ...] = (
    ("room", room, ()),
    ("driver", driver, ("room",)),
    ("probes", reported, ("driver",)),
    ("clock", clock, ("probes",)),
)
_VECTOR_ADD: tuple[tuple[str, Rule, tuple[str, ...]], ...] = (
    *_PODS,
    ("vectorAdd", vector_add, ("clock",)),
    ("visible", one_gpu_each, ("clock",)),
    ("unasked", strangers, ()),
)
_SHARING: tuple[tuple[str, Rule, tuple[str, ...]], ...] = (
    *_VECTOR_ADD,
    ("concurrency", concurrent, ("clock",)),
    ("distribution", distribution, ("visible", "concurrency")),
    ("physical", physical_count, ("distribution",)),
    ("bound", bound, ("concurrency",)),
    ("refusal", refusal, ("room",)),
)
RULES: dict[Probe, tuple[tuple[str, Rule, tuple[str, ...]], ...]] = {
    Probe.VECTORADD: _VECTOR_ADD,
    Probe.SHARING: _SHARING,
    Probe.EXCLUSIVE: _SHARING,
    Probe.OVERFLOW: (("refusal", refusal, ()),),
    Probe.THROUGHPUT: (
        *_PODS,
        ("memory", memory, ("clock",)),
        ("fairness", fairness, ("memory",)),
        ("throughput", total, ("fairness",)),
        ("gpus", whole_gpus, ("clock",)),
    ),
    Probe.DCGM: (*_PODS, ("dcgm", diagnostics, ("clock",))),
}


def judge_node(probe: Probe, evidence: NodeEvidence) -> NodeReport:
    """The report on one node. Total: whatever the evidence, every rule is listed with an outcome."""
    checks = look_at_node(evidence)
    last = NODE_RULES[-1][0]
    done = {check.name: check for check in checks}
    for name, rule, needed in RULES[probe]:
        broken = next((each for each in (last, *needed) if not done[each].holds), None)
        check = rule(evidence) if broken is None else not_reached(name, broken)
        done[name] = check
        checks.append(check)
    return NodeReport(evidence.round.node, instance_of(evidence), tuple(checks))


def instance_of(looked: Looked) -> Mapping[str, str]:
    """What identifies the machine."""
    return looked.facts.view.instance() if looked.facts.view is not None else {}


def unfit_node(probe: Probe, looked: Looked) -> NodeReport | None:
    """The report on a node that need not be probed, because it fails before anything is run on it; else ``None``."""
    checks = look_at_node(looked)
    if all(check.holds for check in checks):
        return None
    left_out = [not_reached(name, NODE_RULES[-1][0]) for name, _, _ in RULES[probe]]
    return NodeReport(looked.facts.name, instance_of(looked), (*checks, *left_out))


def refused_node(node: str, reason: str, message: str) -> NodeReport:
    """The report on a node whose probes could not even be created."""
    return NodeReport(node, {}, (failed("probes", reason, message),))


def busy_node(node: str, message: str, reason: str = TAKEN) -> NodeReport:
    """The report on a node whose GPUs users' pods use; by default they took them before its probes could begin."""
    return NodeReport(node, {}, (busy("room", reason, message),))


def seen_unasked(reports: Iterable[NodeReport]) -> tuple[str, ...]:
    """The note on pods that see GPUs of a node without having requested any; none if there are no such pods."""
    checks = [check for report in reports for check in report.checks if check.name == "unasked"]
    pods = sorted({str(pod) for check in checks for pod in check.figures.get("sees") or []})
    more = f" and {len(pods) - 5} more" if len(pods) > 5 else ""
    return (SEEN_UNASKED.format(pods=", ".join(pods[:5]) + more),) if pods else ()


def refusal_reason(message: str) -> str:
    """The reason of a probe that the API server refuses to create, from the server's words."""
    if "RuntimeClass" in message:
        return "RuntimeClassMissing"
    if "exceeded quota" in message:
        return "QuotaExceeded"
    return "ProbesForbidden"
