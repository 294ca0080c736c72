"""What every probe's pods must do, whatever they prove: find room, run and report, with the right driver and clock.

One signature for all rules; ``gpu_fleet.core.validation.judge`` says which rests on which.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_fleet.core.spec.types.names import version_tuple
from gpu_fleet.core.validation.evidence import PREEMPTED, NodeEvidence, PodEvidence, vanished
from gpu_fleet.core.validation.report import Check, Outcome, busy, doubt, failed, passed, skipped

#: Seconds by which a node's clock may differ from the cluster's: far more than any that is set, and than time stamps of
#: whole seconds and a busy kubelet explain.
MAX_SKEW_S = 10.0

#: Reasons of a node that is Busy although it was not when its probes were planned: users' pods took GPUs meanwhile;
#: CPU, memory or places for pods are used up.
TAKEN, NO_ROOM = "TakenMeanwhile", "NoRoomLeft"

#: The reason of a probe that made no CUDA context, because too little memory is free beside users (``gpu.sh``).
LITTLE_MEMORY = "LittleMemoryFree"
#: The reasons of probes whose CUDA calls failed, and CUDA's words for a GPU without free memory
#: (``cudaErrorMemoryAllocation``, ``CUDA_ERROR_OUT_OF_MEMORY``).
_OF_CUDA, _OUT_OF_MEMORY = frozenset({"VectorAddFailed", "CudaFailed"}), "out of memory"


def room(e: NodeEvidence) -> Check:
    """Users' pods may hold the GPUs; that is no fault of the node."""
    if e.round.busy:
        if e.round.held < e.slots:
            what = "shares of GPUs" if e.replicas > 1 else "GPUs"
            held = f"users' pods hold {e.round.held} of its {e.slots} {what}"
            words = f"this probe needs node {e.round.node} to itself, and {held}"
            return busy("room", "Busy", words)
        return busy("room", "Busy", f"all GPUs of node {e.round.node} are in use ({e.round.held} held by users' pods)")
    return passed("room", "Free", f"{e.round.fill} of {e.slots} free", free=e.round.fill, held=e.round.held)


def reported(e: NodeEvidence) -> Check:
    """Every probe that had room ran and left a report without an error."""
    name = "probes"
    missing = vanished(e)
    if missing and not e.taken:
        return failed(name, "PodVanished", f"{missing} of {e.round.users} probe pod(s) of node {e.round.node} vanished")
    troubled = [(pod.trouble, _because_of_others(e, pod)) for pod in e.sharers if pod.trouble is not None]
    if blamed := [trouble for trouble, excuse in troubled if excuse is None]:
        # A pod that found no room follows from one that kept its place too long, so other reasons come first.
        first = next((trouble for trouble in blamed if trouble.reason != "NoFreeGpu"), blamed[0])
        more = f" ({len(blamed)} of {e.round.fill} probes)" if len(blamed) > 1 else ""
        return failed(name, first.reason, first.message + more, failed=len(blamed), planned=e.round.fill)
    if missing:
        message = f"{missing} of {e.round.users} probe pod(s) of node {e.round.node} gave their place to users' pods"
        return busy(name, TAKEN, message)
    if excused := [(trouble, excuse) for trouble, excuse in troubled if excuse is not None]:
        trouble, excuse = excused[0]
        return busy(name, excuse, f"pods of others use node {e.round.node}: {trouble.message}")
    reports = e.reports
    if not reports or len(reports) < e.round.fill:
        return doubt(name, "ReportsMissing", f"{len(reports)} of {e.round.fill} probes reported")
    return passed(name, "AllReported", f"{len(reports)} probe(s) reported", **reports[0].figures())


def _because_of_others(e: NodeEvidence, pod: PodEvidence) -> str | None:
    """The reason by which users' pods explain a probe's trouble; ``None``: they do not."""
    trouble = pod.trouble
    if trouble is None:
        return None
    if trouble.reason == PREEMPTED or (trouble.reason == "NoFreeGpu" and e.taken):
        return TAKEN
    if trouble.reason == "Unschedulable" and pod.short_of and e.user_pods.pods:
        return NO_ROOM
    shared = e.replicas > 1 and e.others_hold
    # The users' MPS server was there first, and serves one user id at a time.
    if shared and e.promise.mps and trouble.reason == "ProbeTimedOut":
        return TAKEN
    # Sharing isolates no memory: the last container finds none.
    if shared and trouble.reason == LITTLE_MEMORY:
        return "MemoryInUse"
    if shared and trouble.reason in _OF_CUDA and _OUT_OF_MEMORY in trouble.message.lower():
        return "MemoryInUse"
    return None


def driver(e: NodeEvidence) -> Check:
    """The driver is new enough; checked first, because an old one explains whatever CUDA reports."""
    name, least = "driver", e.promise.minimum_driver
    seen = sorted({report.driver for report in e.reports if report.driver})
    if least is None:
        return skipped(name, "NotAsked", "the spec's validation.minimumDriver is null")
    if not seen and (not e.outputs or any(pod.trouble for pod in e.sharers)):
        return skipped(name, "NoReport", "no probe reported a driver version; see the check 'probes' for the cause")
    unclear = [text for text in seen if not version_tuple(text)]
    if unclear or not seen:
        return doubt(name, "DriverUnknown", f"the probes reported no readable driver version: {unclear or 'none'}")
    oldest = min(seen, key=version_tuple)
    if version_tuple(oldest) < version_tuple(least):
        message = f"node {e.round.node} has driver {oldest}, the spec requires {least} or newer"
        return failed(name, "DriverTooOld", message, found=oldest, wanted=least)
    return passed(name, "DriverNewEnough", f"driver {oldest} is {least} or newer", found=oldest, wanted=least)


def clock(e: NodeEvidence) -> Check:
    """The node's clock is the cluster's: certificates, tokens and the figures of a probe rest on it.

    The kubelet's time stamps are by the node's clock, a pod's creation is by the API server's, a report by the
    container's.
    """
    name = "clock"
    for pod in e.sharers:
        report, begin, end = pod.output, pod.started, pod.finished
        pairs = [
            (pod.created, begin, "its container started before the pod was created"),
            (end, e.now, "its container ended in the future"),
        ]
        if report is not None and begin is not None and end is not None:
            pairs += [
                (begin, report.started_at, "its report began before its container"),
                (report.finished_at, end, "its report ended after its container"),
            ]
        for earlier, later, words in pairs:
            if earlier is not None and later is not None and earlier - later > MAX_SKEW_S:
                message = (
                    f"the clock of node {e.round.node} is off by about {earlier - later:.0f} s: pod {pod.name}, {words}"
                )
                return failed(name, "ClockSkew", message, seconds=round(earlier - later))
    return passed(name, "ClocksAgree", f"no time stamp is off by more than {MAX_SKEW_S:.0f} s")


def strangers(e: NodeEvidence) -> Check:
    """Which pods see the node's GPUs without having requested any. It decides nothing: it is not the node's fault.

    Only pods' specs can be read; images may set the variable as well.
    """
    name = "unasked"
    agents = [each.pod for each in e.user_pods.unasked if each.expected]
    found = [each for each in e.user_pods.unasked if not each.expected]
    also = f"; node agents that see them by design: {_listed(agents)}" if agents else ""
    if not found:
        message = f"no pod's spec shows it GPUs that it did not request{also}; what images set themselves is not known"
        return passed(name, "NoneByTheirSpecs", message, agents=agents)
    sees = [str(each) for each in found if each.certain]
    could = [str(each) for each in found if not each.certain]
    parts = [f"see GPUs without having requested any: {_listed(sees)}"] if sees else []
    parts += [f"could open GPUs without having requested any: {_listed(could)}"] if could else []
    message = f"pods on node {e.round.node} that {'; that '.join(parts)}{also}; what images set themselves is not known"
    return Check(name, Outcome.SKIPPED, "GpusSeenUnasked", message, {"sees": sees, "could": could, "agents": agents})


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def vector_add(e: NodeEvidence) -> Check:
    """CUDA works: NVIDIA's vectorAdd sample passed in every probe."""
    results = [output.vector_add for output in e.outputs if output.vector_add is not None]
    if not results:
        return skipped("vectorAdd", "NotAsked", "the spec's validation.probes.vectorAdd is false")
    bad = [result for result in results if not result.passed]
    if bad:
        return failed("vectorAdd", "VectorAddFailed", f"{len(bad)} of {len(results)} runs failed: {bad[0].output}")
    slowest = max(result.milliseconds for result in results)
    return passed("vectorAdd", "VectorAddPassed", f"passed in {len(results)} container(s)", slowestMs=slowest)


def diagnostics(e: NodeEvidence) -> Check:
    """All tests of NVIDIA's diagnostics passed; a warning does not fail a node."""
    found = e.diagnoses
    if not found:
        return doubt("dcgm", "ReportsMissing", "there is no report of the diagnostics")
    figures = {
        "level": found[0].level,
        "passed": list(found[0].passed),
        "failed": list(found[0].failed),
        "warned": list(found[0].warned),
        "skipped": list(found[0].skipped),
    }
    if found[0].failed:
        message = f"DCGM level {found[0].level}: {', '.join(found[0].failed)} failed on node {e.round.node}"
        return failed("dcgm", "DcgmFailed", f"{message}: {found[0].detail}".rstrip(": "), **figures)
    return passed(
        "dcgm", "DcgmPassed", f"DCGM level {found[0].level}: {len(found[0].passed)} test(s) passed", **figures
    )
