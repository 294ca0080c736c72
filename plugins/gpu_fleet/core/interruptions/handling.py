"""Which run handles which interrupted node, so that several at a time share the work and none is forgotten. Pure.

Messages come more than once, Airflow may ignore or batch events, and a run may die. So the truth is on the nodes: a
node with a mark that no run has taken, or whose run is over without having finished, is taken by the next run,
whatever event started that. The claim names what it is for: a node that is interrupted after a rebalance
recommendation needs to be handled again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.interruptions.event import Case
from gpu_fleet.core.interruptions.marks import FirstAid, Mark, first_aid, outranks
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.interruptions.nodes import OurNode, instance_of, our_node
from gpu_fleet.core.interruptions.ways import ACTED, Decision, Way, decide
from gpu_fleet.core.kubernetes.names import ANNOTATION_HANDLED
from gpu_fleet.core.kubernetes.objects import annotations_of
from gpu_fleet.core.spec import ClusterSpec

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Handled:
    """What the annotation says.

    :ivar run: ``<dag_id>/<run_id>``.
    :ivar cause: what it is for, see :func:`cause_of`.
    :ivar done: the run has done all it could.
    :ivar way: what it does, see :class:`~gpu_fleet.core.interruptions.ways.Way`; empty if the annotation does not say.
    """

    run: str
    cause: str
    done: bool = False
    way: str = ""

    def text(self) -> str:
        said = {"way": self.way} if self.way else {}
        return json.dumps({"run": self.run, "for": self.cause, "done": self.done, **said}, separators=(",", ":"))

    @classmethod
    def of(cls, node: Object) -> Handled | None:
        """``None`` without the annotation, and where a person has made it unreadable."""
        text = annotations_of(node).get(ANNOTATION_HANDLED)
        try:
            value = json.loads(text) if text else None
            if not isinstance(value, dict):
                return None
            return cls(str(value["run"]), str(value["for"]), bool(value["done"]), str(value.get("way") or ""))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def cause_of(notice: Notice) -> str:
    """What is handled: equal for all copies of a notice, another one for a more urgent notice."""
    return f"{notice.kind.value} {notice.instance} {notice.deadline if notice.deadline is not None else '-'}"


def drained_cause(instance: str) -> str:
    """What a run remembers of an instance whose node it has reported, whatever announced its end."""
    return f"Drained {instance}"


@dataclass(frozen=True)
class NodePlan:
    """One node that this run handles.

    :ivar object: the Node as the API server gave it.
    :ivar seen: when the message was read, epoch seconds.
    :ivar aid: what has still to be written to it, in case the trigger could not.
    """

    node: OurNode
    object: Object
    notice: Notice
    seen: float
    decision: Decision
    aid: FirstAid | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def way(self) -> Way:
        return self.decision.way


@dataclass(frozen=True)
class Departed:
    """A node that the trigger saw, and that is gone already: somebody was faster, Karpenter or the end itself.

    :ivar in_time: the instance's end has not come yet, so its node was removed after it had been drained: Karpenter
        removes a Node when its pods are gone, the cloud's node lifecycle when its instance is.
    """

    case: Case
    in_time: bool

    @property
    def name(self) -> str:
        return str(self.case.node or self.case.claim or self.case.notice.instance)

    @property
    def notice(self) -> Notice:
        return self.case.notice


@dataclass(frozen=True)
class Plan:
    """
    :ivar departed: nodes that are gone, and that no earlier run has reported.
    :ivar elsewhere: node -> the other run that drains it, or has.
    :ivar unknown: instance id -> why there is nothing to drain.
    """

    nodes: tuple[NodePlan, ...] = ()
    departed: tuple[Departed, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    def on(self, *ways: Way) -> list[NodePlan]:
        """The nodes that are handled in one of these ways."""
        return [plan for plan in self.nodes if plan.way in ways]


def plan_nodes(
    nodes: Iterable[Object],
    claims: Iterable[Object],
    cases: Mapping[str, Case],
    spec: ClusterSpec,
    *,
    run: str,
    now: float,
    is_over: Callable[[str], bool],
    reported: Callable[[], Mapping[str, str]] = dict,
) -> Plan:
    """What a run does about each interrupted node.

    :param nodes: of the spec's pools and node groups, at least.
    :param claims: NodeClaims.
    :param cases: of the events that started the run, by instance.
    :param now: epoch seconds.
    :param is_over: whether a run, by its name, has ended without finishing its nodes; asked only of other runs.
    :param reported: what earlier runs have handled, cause to run; asked only about nodes that are gone.
    """
    claims = list(claims)
    by_node = {str((claim.get("status") or {}).get("nodeName") or ""): claim for claim in claims}
    pools, groups = spec.pool_names, spec.interruptions.node_groups
    plans, elsewhere, here = [], {}, set()
    for node in sorted(nodes, key=lambda each: str(each["metadata"]["name"])):
        ours = our_node(node, by_node, pools, groups)
        if ours is None:
            continue
        here.add(ours.instance)
        notice, seen = _notice(node, ours, cases, now)
        if notice is None:
            continue
        handled = Handled.of(node)
        known = handled is not None and handled.cause == cause_of(notice)
        # What this run has finished itself it looks at again: a try that was killed after that has not reported it.
        if handled is not None and known and handled.run != run and (handled.done or not is_over(handled.run)):
            elsewhere[ours.name] = handled.run
            continue
        decision = _decided(notice, ours, spec)
        if decision.way is Way.ENDING and ours.leaving:
            case = cases.get(ours.instance)
            if handled is not None and handled.way in ACTED and _is_about(handled, ours) and not (case and case.pods):
                elsewhere[ours.name] = handled.run
                continue
            decision = _already_leaving(ours, handled, case)
        plans.append(NodePlan(ours, node, notice, seen, decision, first_aid(node, notice, seen=seen)))
    missing = {instance: case for instance, case in cases.items() if instance not in here}
    departed = []
    gone = [
        case for case in missing.values() if case.unannounced or (case.node and case.notice.kind is not Kind.REBALANCE)
    ]
    known_by = reported() if gone else {}
    for case in gone:
        del missing[case.notice.instance]
        if (by := _reporter(known_by, case.notice)) is not None and by != run:
            elsewhere[Departed(case, in_time=False).name] = by
        else:
            end = case.notice.deadline
            departed.append(Departed(case, in_time=end is None or now < end))
    return Plan(tuple(plans), tuple(departed), elsewhere, _unknown(missing, claims))


def _decided(notice: Notice, ours: OurNode, spec: ClusterSpec) -> Decision:
    if notice.kind is Kind.SCHEDULED and ours.drained_by:
        return Decision(Way.NOTE, f"run {ours.drained_by} drains it")
    return decide(notice, ours.owner, spec, leaving=ours.deleted)


def _already_leaving(ours: OurNode, handled: Handled | None, case: Case | None) -> Decision:
    """About a node whose instance ends while somebody is removing it: whether this run has to account for that."""
    if ours.forced:
        return Decision(Way.ENDING, "Karpenter removed it by force, as it does when EC2's status checks have failed")
    announced = handled is not None and _is_about(handled, ours) and not ours.drained_by
    if announced and handled is not None and handled.way == Way.PLAN:
        return Decision(Way.ENDING, "Karpenter removed it before its planned drain")
    if announced and case is not None and case.pods:
        return Decision(Way.ENDING, "its pods had not ended when its instance did")
    if case is not None and case.unannounced:
        return Decision(Way.ENDING, "Karpenter removed it because of an interruption that no message had told")
    return Decision(Way.NOTE, "it was being removed already, and is drained by whoever removes it")


def _is_about(handled: Handled, ours: OurNode) -> bool:
    """Whether the annotation is about the node's instance; another one may have had the node's name."""
    return handled.cause.split(" ")[1:2] == [ours.instance]


def _reporter(known_by: Mapping[str, str], notice: Notice) -> str | None:
    """The run that has reported the node of a notice, if one has."""
    ending = notice.kind in (Kind.STOPPING, Kind.TERMINATING)
    return known_by.get(cause_of(notice)) or (known_by.get(drained_cause(notice.instance)) if ending else None)


def _notice(node: Object, ours: OurNode, cases: Mapping[str, Case], now: float) -> tuple[Notice | None, float]:
    """The notice that counts, of the node's mark and of the events; and when it was read."""
    mark, case = Mark.of(node), cases.get(ours.instance)
    marked = mark is not None and mark.notice.instance == ours.instance
    if case is not None and (mark is None or not marked or outranks(case.notice, mark.notice)):
        return case.notice, now
    return (mark.notice, mark.seen) if mark is not None and marked else (None, 0.0)


def _unknown(cases: Mapping[str, Case], claims: Iterable[Object]) -> dict[str, str]:
    launching = {instance_of(claim): str(claim["metadata"]["name"]) for claim in claims}
    found = {}
    for instance, case in cases.items():
        if instance in launching:
            found[instance] = f"NodeClaim {launching[instance]} has no node yet: nothing runs there"
        else:
            found[instance] = f"no node of this cluster ({case.notice.kind.value}): it is gone, or of another cluster"
    return dict(sorted(found.items()))
