"""What was observed of a node's probe pods, in a form that the rules can use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import GPU_RESOURCE
from gpu_fleet.core.kubernetes.objects import Object, condition, epoch, name_of, node_of
from gpu_fleet.core.probes.dcgm import Diagnosis, parse_dcgm
from gpu_fleet.core.probes.gpu import ProbeOutput, parse_output
from gpu_fleet.core.probes.message import Output, ProbeOutputError
from gpu_fleet.core.probes.plan import NodeRound, Probe, is_greedy, is_holder, pinned_to
from gpu_fleet.core.probes.status import failed_before, own_state, waiting_reason
from gpu_fleet.core.probes.throughput import Measurement, parse_throughput
from gpu_fleet.core.validation.facts import Looked, NodeFacts, Promise
from gpu_fleet.core.validation.user_pods import NO_USER_PODS, UserPods

#: The scheduler's words for 'no GPU left' (kubernetes pkg/scheduler/framework/plugins/noderesources/fit.go).
INSUFFICIENT = f"Insufficient {GPU_RESOURCE}"

#: The scheduler's words for what else a node may lack, and the kubelet's reason for a pod that it has no room for.
_SHORTAGE = re.compile(r"Insufficient (cpu|memory|ephemeral-storage)\b|(Too many pods)")
_OUT_OF = "OutOf"
#: Reason of a probe that had to give its place to a user's pod.
PREEMPTED = "Preempted"
#: Reason of a probe that a container which an admission webhook added kept from running.
INJECTED = "InjectedContainerFailed"

Parser = Callable[[str], Output]
#: What reads the reports of a probe's pods.
PARSERS: dict[Probe, Parser] = dict.fromkeys(Probe, parse_output) | {
    Probe.THROUGHPUT: parse_throughput,
    Probe.DCGM: parse_dcgm,
}


@dataclass(frozen=True)
class Trouble:
    """Why a probe has no credible result."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodEvidence:
    """One probe pod. Times in epoch seconds by the cluster's clocks, which write whole seconds.

    :ivar scheduled: when it was placed on the node, ``None`` while it is not.
    :ivar unschedulable: the scheduler's last words while it is not placed.
    :ivar refused: whether the scheduler ever said that no GPU was left for it.
    :ivar short_of: what else it was refused for that a node can run out of: CPU, memory, disk, places for pods.
    :ivar started: when its container started.
    :ivar finished: when its container ended.
    :ivar admission: why the kubelet refused the pod, if it did.
    :ivar output: the probe's report, if it left a credible one.
    :ivar trouble: why there is none, or the report's own error.
    """

    name: str
    greedy: bool
    phase: str
    created: float | None
    scheduled: float | None
    unschedulable: str | None
    refused: bool
    short_of: frozenset[str]
    started: float | None
    finished: float | None
    admission: str | None
    output: Output | None
    trouble: Trouble | None


@dataclass(frozen=True)
class NodeEvidence(Looked):
    """Everything that the verdict on one node rests on.

    :ivar users: pods that request one GPU, in the order in which they were placed.
    :ivar now: epoch seconds of the observation.
    :ivar user_pods: what users' pods do on the node now.
    """

    round: NodeRound
    users: tuple[PodEvidence, ...]
    greedy: PodEvidence | None
    now: float
    user_pods: UserPods = NO_USER_PODS

    @property
    def others_hold(self) -> bool:
        """Whether users' pods have held GPUs of the node at some time since the probes were planned."""
        return self.round.held > 0 or self.user_pods.gpus > 0 or self.user_pods.preempted

    @property
    def taken(self) -> bool:
        """Whether users' pods have taken GPUs that were free when the probes were planned."""
        return self.user_pods.preempted or self.user_pods.gpus > self.round.held

    @property
    def full(self) -> bool:
        """Whether the probes had the whole node to themselves."""
        return self.round.held == 0 and self.round.fill == self.slots

    @property
    def sharers(self) -> tuple[PodEvidence, ...]:
        """The pods that had room: the first to be placed."""
        return self.users[: self.round.fill]

    @property
    def extras(self) -> tuple[PodEvidence, ...]:
        """The pods that had to wait."""
        return self.users[self.round.fill :]

    @property
    def reports(self) -> list[Output]:
        """The reports of the pods that had room, whatever probe it is."""
        return [pod.output for pod in self.sharers if pod.output is not None]

    @property
    def outputs(self) -> list[ProbeOutput]:
        return [report for report in self.reports if isinstance(report, ProbeOutput)]

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Pod -> what it measured."""
        return {pod.name: pod.output for pod in self.sharers if isinstance(pod.output, Measurement)}

    @property
    def diagnoses(self) -> list[Diagnosis]:
        return [report for report in self.reports if isinstance(report, Diagnosis)]


def evidence_of(
    probe: Probe,
    round_: NodeRound,
    facts: NodeFacts,
    promise: Promise,
    pods: Iterable[Object],
    events: Iterable[Object],
    *,
    physical: int,
    replicas: int,
    now: float,
    user_pods: UserPods = NO_USER_PODS,
) -> NodeEvidence:
    """The evidence about one node.

    :param pods: probe pods of the round (of any node).
    :param events: events of their namespace.
    """
    refusals: dict[str, str] = {}
    for event in events:
        if event.get("reason") == "FailedScheduling":
            uid = str((event.get("involvedObject") or {}).get("uid", ""))
            refusals[uid] = f"{refusals.get(uid, '')} {event.get('message', '')}"
    mine = [pod for pod in pods if pinned_to(pod) == round_.node and not is_holder(pod)]
    views = [_pod_evidence(pod, refusals, PARSERS[probe]) for pod in mine]
    users = sorted((v for v in views if not v.greedy), key=_by_place)
    return NodeEvidence(
        facts=facts,
        promise=promise,
        physical=physical,
        replicas=replicas,
        round=round_,
        users=tuple(users),
        greedy=next((v for v in views if v.greedy), None),
        now=now,
        user_pods=user_pods,
    )


def _by_place(pod: PodEvidence) -> tuple[bool, float, bool, float, str]:
    """The order in which pods were placed; within one second, the order in which their containers started."""
    return (
        pod.scheduled is None,
        pod.scheduled or 0.0,
        pod.started is None,
        pod.started or 0.0,
        pod.name,
    )


def _pod_evidence(pod: Object, refusals: Mapping[str, str], parse: Parser) -> PodEvidence:
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    scheduled = condition(pod, "PodScheduled") or {}
    placed = scheduled.get("status") == "True" or bool(node_of(pod))
    state = own_state(pod)
    terminated = dict(state.get("terminated") or {})
    words = None if placed else str(scheduled.get("message", ""))
    output, trouble = _result(pod, terminated, words, parse)
    reason = str(status.get("reason", ""))
    told = f"{refusals.get(str(metadata.get('uid', '')), '')} {words or ''}"
    short_of = {resource or other for resource, other in _SHORTAGE.findall(told)}
    if reason.startswith(_OUT_OF) and GPU_RESOURCE not in reason:
        short_of.add(reason.removeprefix(_OUT_OF))
    return PodEvidence(
        name=name_of(pod),
        greedy=is_greedy(pod),
        phase=str(status.get("phase", "Pending")),
        created=epoch(metadata.get("creationTimestamp")),
        scheduled=epoch(scheduled.get("lastTransitionTime")) or epoch(status.get("startTime")) if placed else None,
        unschedulable=words,
        refused=INSUFFICIENT in told,
        short_of=frozenset(short_of),
        started=epoch(terminated.get("startedAt") or (state.get("running") or {}).get("startedAt")),
        finished=epoch(terminated.get("finishedAt")),
        admission=str(status.get("message", "")) if reason == "UnexpectedAdmissionError" else None,
        output=output,
        trouble=trouble,
    )


def _result(
    pod: Object, terminated: dict[str, Any], unscheduled: str | None, parse: Parser
) -> tuple[Output | None, Trouble | None]:
    """The report of an ended probe, or why there is none. Total over every state a pod can be in."""
    status = pod.get("status") or {}
    name, reason = name_of(pod), str(status.get("reason", ""))
    disrupted = condition(pod, "DisruptionTarget") or {}
    if disrupted.get("status") == "True" and disrupted.get("reason") == "PreemptionByScheduler":
        return None, Trouble(PREEMPTED, f"pod {name} gave its place to a user's pod")
    if reason == "DeadlineExceeded":
        return None, Trouble("ProbeTimedOut", f"pod {name} ran longer than its deadline")
    if reason:
        return None, Trouble(_admission_reason(reason), f"pod {name}: {reason} {status.get('message', '')}".rstrip())
    if terminated:
        return _report(name, terminated, parse)
    if words := failed_before(pod):
        return None, Trouble(INJECTED, f"pod {name}: {words}; an admission webhook added it, so no probe ran")
    if unscheduled is not None:
        if INSUFFICIENT in unscheduled:
            return None, Trouble("NoFreeGpu", f"pod {name} found no free GPU: {unscheduled}")
        return None, Trouble(
            "Unschedulable", f"pod {name} was not placed: {unscheduled or 'the scheduler said nothing'}"
        )
    waiting = waiting_reason(pod)
    if waiting and "Image" in waiting[0]:
        return None, Trouble("ImageUnpullable", f"pod {name} cannot pull its image: {waiting[0]} {waiting[1]}".rstrip())
    if waiting and waiting[0] not in ("", "ContainerCreating", "PodInitializing"):
        return None, Trouble("ContainerNotStarted", f"pod {name}: {waiting[0]} {waiting[1]}".rstrip())
    return None, Trouble("ProbeTimedOut", f"pod {name} has not finished ({status.get('phase', 'no status')})")


def _admission_reason(reason: str) -> str:
    if reason == "UnexpectedAdmissionError":
        return "AdmissionRefused"
    if reason.startswith(_OUT_OF):
        return "NoFreeGpu" if GPU_RESOURCE in reason else "Unschedulable"
    return f"Pod{reason}"


def _report(name: str, terminated: dict[str, Any], parse: Parser) -> tuple[Output | None, Trouble | None]:
    code, why = terminated.get("exitCode"), str(terminated.get("reason", ""))
    message = str(terminated.get("message") or "")
    if why == "OOMKilled":
        return None, Trouble("ProbeOOMKilled", f"pod {name} was killed for memory")
    if why in ("StartError", "ContainerCannotRun"):
        # The runtime writes its own error here, for example 'no runtime for "nvidia" is configured'.
        return None, Trouble("ContainerNotStarted", f"pod {name}: {message or why}")
    try:
        output = parse(message)
    except ProbeOutputError as error:
        if code:
            return None, Trouble("ProbeCrashed", f"pod {name} ended with status {code}: {error.message}")
        return None, Trouble(error.reason, f"pod {name}: {error.message}")
    if output.error is not None:
        return output, Trouble(output.error.reason, f"pod {name}: {output.error.message}")
    if code:
        return output, Trouble("ProbeCrashed", f"pod {name} reported no error and ended with status {code}")
    return output, None


def vanished(evidence: NodeEvidence) -> int:
    """How many planned pods are not there any more."""
    return max(0, evidence.round.users - len(evidence.users))


def overlap(pods: Sequence[PodEvidence]) -> float | None:
    """Seconds during which all of them ran at once; negative: there was no such time; ``None``: some did not run.

    By the kubelet's clock, which writes whole seconds: a window of 1 s there may be 0.1 s, but is never empty. Where
    that window is empty the probes' own clock decides, which is the same for all pods of a node and counts in ms.
    """
    starts = [pod.started for pod in pods if pod.started is not None]
    ends = [pod.finished for pod in pods if pod.finished is not None]
    if not pods or len(starts) < len(pods) or len(ends) < len(pods):
        return None
    coarse = min(ends) - max(starts)
    reports = [pod.output for pod in pods if pod.output is not None]
    if coarse > 0 or len(reports) < len(pods):
        return coarse
    fine = min(report.finished_at for report in reports) - max(report.started_at for report in reports)
    # A container's clock cannot contradict the kubelet's by more than the rounding of two time stamps.
    return fine if abs(fine - coarse) <= 2 else coarse
