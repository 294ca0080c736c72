"""The verdict on a node's GPUs: an ordered list of rules over the evidence, each with one signature.

The order is that of blame: the first thing that is wrong explains what follows, so a rule that rests on another one is
skipped when that one did not pass. One defect thus has one reason.

What is to be shown, after NVIDIA's device plugin documentation ('Shared Access to GPUs'): allocatable is physical ×
replicas; CUDA works; so many containers run *at the same time*; they land on the GPUs as promised; one more has to
wait; and, if so configured, a container that asks for two shares is refused. A Job with that parallelism alone would
pass without any sharing: its pods would run one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gpu_fleet.core.capacity_objects import Object, gpus_requested, labels_of, node_of
from gpu_fleet.core.names import GPU_RESOURCE, LABEL_COMPONENT
from gpu_fleet.core.probes import COMPONENT_PROBE, Probe
from gpu_fleet.core.validation_evidence import INSUFFICIENT, NodeEvidence, overlap, vanished
from gpu_fleet.core.validation_report import Check, NodeReport, Outcome

#: NVIDIA's words for a refused request (k8s-device-plugin internal/rm/rm.go, ValidateRequest).
_TOO_LARGE = "maximum request size for shared resources"

NO_MEMORY_ISOLATION = (
    "Time-slicing isolates no memory: every sharer sees the GPU's whole memory, and one that allocates too much makes "
    "the others fail."
)

#: Reasons of failures that lie in the node itself: another node of the pool would do better. Not among them is what
#: hits any node alike (a missing RuntimeClass, an image, a quota), what is over already (a node that vanished), and
#: what the probe itself did wrong.
NODE_CAUSES: frozenset[str] = frozenset(
    {
        *("NodeNotReady", "LabelMissing", "TaintMissing"),
        *("XidError", "GpuLost", "HardwareNotReady", "DcgmFailed"),
        *("MpsDaemonAbsent", "MpsLimitMissing", "DevicePluginNotRegistered", "DevicePluginNotReady"),
        *("SharingNotApplied", "AllocatableMismatch", "DriverTooOld", "ClockSkew"),
        *("NoNvidiaSmi", "NvidiaSmiFailed", "NoGpuVisible", "NoDriverLibrary", "CudaFailed", "VectorAddFailed"),
        *("AdmissionRefused", "ContainerNotStarted", "SeesWrongGpus", "WrongResult"),
        *("RanOneAfterAnother", "GpuNotExclusive", "GpuOvercommitted", "WrongGpuCount", "DifferentGpus"),
        *("Oversubscribed", "TwoSharesGranted"),
        *("SharerStarved", "ThroughputTooLow", "GpuSlow", "NothingComputed"),
    }
)

Rule = Callable[[NodeEvidence], Check]


def _passed(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.PASSED, reason, message, figures)


def _failed(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.FAILED, reason, message, figures)


def _doubt(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.INCONCLUSIVE, reason, message, figures)


def _skipped(name: str, reason: str, message: str) -> Check:
    return Check(name, Outcome.SKIPPED, reason, message)


def node_present(e: NodeEvidence) -> Check:
    """The node is there, is not being removed, and is Ready."""
    node = e.node
    if node is None:
        return _failed("node", "NodeVanished", f"node {e.round.node} is gone or being removed")
    if not node.ready:
        return _failed("node", "NodeNotReady", f"node {node.name} is not Ready: {node.not_ready}")
    return _passed("node", "NodeReady", f"node {node.name} is Ready")


def allocatable(e: NodeEvidence) -> Check:
    """Allocatable is physical × replicas, the physical count being EC2's."""
    actual = e.node.gpus if e.node is not None else None
    figures = {"expected": e.slots, "actual": actual, "physical": e.physical, "replicas": e.replicas}
    if actual == e.slots:
        return _passed("allocatable", "AllocatableAsPromised", f"{actual} = {e.physical} × {e.replicas}", **figures)
    if not actual:
        return _failed("allocatable", "GpusGone", f"node {e.round.node} offers no {GPU_RESOURCE} any more", **figures)
    return _failed(
        "allocatable",
        "AllocatableMismatch",
        f"node {e.round.node} offers {actual} {GPU_RESOURCE}, not {e.slots} ({e.physical} physical × {e.replicas})",
        **figures,
    )


def room(e: NodeEvidence) -> Check:
    """Somebody else may hold the GPUs; that is no fault of the node."""
    if e.round.busy:
        return Check(
            "room", Outcome.BUSY, "Busy", f"all GPUs of node {e.round.node} are in use ({e.round.held} held by others)"
        )
    return _passed("room", "Free", f"{e.round.fill} of {e.slots} free", free=e.round.fill, held=e.round.held)


def reported(e: NodeEvidence) -> Check:
    """Every probe that had room ran and left a report without an error."""
    name = "probes"
    if missing := vanished(e):
        return _failed(
            name, "PodVanished", f"{missing} of {e.round.users} probe pod(s) of node {e.round.node} vanished"
        )
    troubled = [pod.trouble for pod in e.sharers if pod.trouble is not None]
    if troubled:
        # A pod that found no room follows from one that kept its place too long, so other reasons come first.
        first = next((trouble for trouble in troubled if trouble.reason != "NoFreeGpu"), troubled[0])
        more = f" ({len(troubled)} of {e.round.fill} probes)" if len(troubled) > 1 else ""
        return _failed(name, first.reason, first.message + more, failed=len(troubled), planned=e.round.fill)
    outputs = e.outputs
    if not outputs or len(outputs) < e.round.fill:
        return _doubt(name, "ReportsMissing", f"{len(outputs)} of {e.round.fill} probes reported")
    return _passed(
        name,
        "AllReported",
        f"{len(outputs)} probe(s) reported",
        driver=outputs[0].driver,
        cuda=outputs[0].cuda,
        gpu=outputs[0].gpus[0].name if outputs[0].gpus else "",
    )


def vector_add(e: NodeEvidence) -> Check:
    """CUDA works: NVIDIA's vectorAdd sample passed in every probe."""
    results = [output.vector_add for output in e.outputs if output.vector_add is not None]
    if not results:
        return _skipped("vectorAdd", "NotAsked", "the spec's validation.probes.vectorAdd is false")
    bad = [result for result in results if not result.passed]
    if bad:
        return _failed("vectorAdd", "VectorAddFailed", f"{len(bad)} of {len(results)} runs failed: {bad[0].output}")
    slowest = max(result.milliseconds for result in results)
    return _passed("vectorAdd", "VectorAddPassed", f"passed in {len(results)} container(s)", slowestMs=slowest)


def one_gpu_each(e: NodeEvidence) -> Check:
    """A container that asks for one GPU sees one."""
    seen = sorted({len(output.gpus) for output in e.outputs})
    if seen != [1]:
        return _failed(
            "visible", "SeesWrongGpus", f"containers that asked for one GPU see {', '.join(map(str, seen))}", seen=seen
        )
    return _passed("visible", "OneGpuEach", "every container sees exactly one GPU")


def concurrent(e: NodeEvidence) -> Check:
    """All probes with room ran at the same time."""
    if e.round.fill < 2:
        return _skipped("concurrency", "OneAtATime", "there is room for one container only")
    window = overlap(e.sharers)
    if window is None:
        return _doubt("concurrency", "NoTimes", "some probes have no start or end time")
    if window > 0:
        message = f"{e.round.fill} containers ran at the same time for {window:.1f} s"
        return _passed("concurrency", "RanTogether", message, containers=e.round.fill, seconds=round(window, 1))
    return _failed(
        "concurrency",
        "RanOneAfterAnother",
        f"{e.round.fill} containers never ran all at once (the last began {-window:.1f} s after the first had ended): "
        "the GPU is not shared",
        containers=e.round.fill,
        seconds=round(window, 1),
    )


def distribution(e: NodeEvidence) -> Check:
    """The containers are spread over the GPUs as the sharing promises.

    Exclusive: no GPU twice. Time-slicing: no GPU more often than ``replicas``; with the node filled up, every GPU
    exactly so often, whatever order the device plugin's allocation policy prefers.
    """
    counts = Counter(output.gpus[0].uuid for output in e.outputs if output.gpus)
    spread = dict(sorted(counts.items()))
    free = {o.gpus[0].uuid: o.gpus[0].memory_free_mib for o in e.outputs if o.gpus}
    figures = {"containersPerGpu": spread, "memoryFreeMiB": dict(sorted(free.items()))}
    most = max(counts.values(), default=0)
    if most > e.replicas:
        reason = "GpuNotExclusive" if e.replicas == 1 else "GpuOvercommitted"
        uuid = counts.most_common(1)[0][0]
        message = f"GPU {uuid} was given to {most} containers at once, promised were {e.replicas}"
        return _failed("distribution", reason, message, **figures)
    if e.full and len(counts) != e.physical:
        return _failed(
            "distribution",
            "WrongGpuCount",
            f"{e.round.fill} containers landed on {len(counts)} GPU(s), EC2 says the node has {e.physical}",
            **figures,
        )
    if e.physical == 1 and len(counts) > 1:
        return _failed(
            "distribution", "DifferentGpus", f"sharers of a one-GPU node saw {len(counts)} different GPUs", **figures
        )
    words = "one GPU each" if e.replicas == 1 else f"{len(counts)} GPU(s), at most {most} container(s) on each"
    return _passed("distribution", "AsPromised", words, **figures)


def physical_count(e: NodeEvidence) -> Check:
    """nvidia-smi's physical count is EC2's; only the filled node shows it, since a container sees its own GPU alone."""
    uuids = {gpu.uuid for output in e.outputs for gpu in output.gpus}
    if not e.full:
        return _skipped(
            "physical", "PartlyBusy", f"others hold {e.round.held} of {e.slots}: not all GPUs could be seen"
        )
    if len(uuids) != e.physical:
        return _failed(
            "physical", "WrongGpuCount", f"nvidia-smi shows {len(uuids)} GPU(s), EC2 says {e.physical}", seen=len(uuids)
        )
    return _passed("physical", "CountsAgree", f"nvidia-smi and EC2 agree on {e.physical}", seen=len(uuids))


def bound(e: NodeEvidence) -> Check:
    """One pod more than there is room for has to wait, because of the GPUs, as long as the others run."""
    if not e.extras:
        return _skipped("bound", "NotAsked", "the spec's validation.probes.oversubscription is false")
    extra = e.extras[0]
    if extra.scheduled is None:
        words = extra.unschedulable or ""
        if INSUFFICIENT in words:
            return _passed("bound", "OneMoreWaits", f"pod {extra.name} stayed Pending: {words}")
        return _doubt(
            "bound", "NotRefused", f"pod {extra.name} was not placed, but not for its GPU: {words or 'no reason'}"
        )
    ends = [pod.finished for pod in e.sharers if pod.finished is not None]
    if not ends:
        return _doubt("bound", "NoTimes", "no probe has an end time")
    if extra.scheduled < min(ends):
        if e.round.held:
            return _skipped("bound", "OthersFreedGpus", "a pod of somebody else ended meanwhile and made room")
        return _failed(
            "bound",
            "Oversubscribed",
            f"pod {extra.name} was placed while {e.round.fill} containers held all {e.slots} GPUs of the node",
        )
    if extra.refused:
        return _passed("bound", "OneMoreWaits", f"pod {extra.name} was placed only after another had ended")
    return _doubt("bound", "NotRefused", f"pod {extra.name} waited, but the scheduler never named {GPU_RESOURCE}")


def refusal(e: NodeEvidence) -> Check:
    """A container that asks for two shares of a GPU is refused: it would not get twice the GPU."""
    if not e.round.greedy:
        return _skipped(
            "refusal", "NotAsked", "requests for several GPUs are allowed here, or there was no room to try"
        )
    pod = e.greedy
    if pod is None:
        return _skipped("refusal", "PodVanished", "the pod that asked for two GPUs vanished")
    if pod.admission is not None:
        if _TOO_LARGE in pod.admission:
            return _passed("refusal", "TwoSharesRefused", f"a request for two was refused: {pod.admission}")
        return _skipped(
            "refusal", "RefusedOtherwise", f"the request for two was refused for another cause: {pod.admission}"
        )
    if pod.started is not None or pod.phase == "Succeeded":
        return _failed(
            "refusal",
            "TwoSharesGranted",
            f"pod {pod.name} got two shares although failRequestsGreaterThanOne is set: the plugin's config differs",
        )
    return _skipped("refusal", "NotTried", f"the pod that asked for two GPUs was not tried ({pod.phase})")


#: Probe -> its rules, each with the names of the checks that must have passed before it makes sense.
RULES: dict[Probe, tuple[tuple[Rule, tuple[str, ...]], ...]] = {
    Probe.VECTORADD: (
        (node_present, ()),
        (allocatable, ("node",)),
        (room, ("allocatable",)),
        (reported, ("room",)),
        (vector_add, ("probes",)),
        (one_gpu_each, ("probes",)),
    ),
    Probe.OVERFLOW: (
        (node_present, ()),
        (allocatable, ("node",)),
        (refusal, ("allocatable",)),
    ),
}
RULES[Probe.SHARING] = RULES[Probe.EXCLUSIVE] = (
    *RULES[Probe.VECTORADD],
    (concurrent, ("probes",)),
    (distribution, ("visible", "concurrency")),
    (physical_count, ("distribution",)),
    (bound, ("concurrency",)),
    (refusal, ("room",)),
)

_NOT_REACHED = "NotReached"


def _holds(check: Check) -> bool:
    """Whether other checks may rest on this one: it passed, or was left out because it does not apply."""
    return check.outcome is Outcome.PASSED or (check.outcome is Outcome.SKIPPED and check.reason != _NOT_REACHED)


def judge_node(probe: Probe, evidence: NodeEvidence) -> NodeReport:
    """The report on one node. Total: whatever the evidence, every rule is listed with an outcome."""
    checks: list[Check] = []
    for rule, needed in RULES[probe]:
        before = {check.name: check for check in checks}
        broken = next((name for name in needed if not _holds(before[name])), None)
        if broken is None:
            checks.append(rule(evidence))
        else:
            checks.append(_skipped(_CHECK_OF[rule], _NOT_REACHED, f"rests on check '{broken}', which did not pass"))
    instance = evidence.node.instance() if evidence.node is not None else {}
    return NodeReport(evidence.round.node, instance, tuple(checks))


#: The name of each rule's check.
_CHECK_OF: dict[Rule, str] = {
    node_present: "node",
    allocatable: "allocatable",
    room: "room",
    reported: "probes",
    vector_add: "vectorAdd",
    one_gpu_each: "visible",
    concurrent: "concurrency",
    distribution: "distribution",
    physical_count: "physical",
    bound: "bound",
    refusal: "refusal",
}


def refused_node(node: str, reason: str, message: str) -> NodeReport:
    """The report on a node whose probes the API server would not even create."""
    return NodeReport(node, {}, (_failed("probes", reason, message),))


def refusal_reason(message: str) -> str:
    """The reason of a probe that the API server refuses to create, from the server's words."""
    if "RuntimeClass" in message:
        return "RuntimeClassMissing"
    if "exceeded quota" in message:
        return "QuotaExceeded"
    return "ProbesForbidden"


def claims_unchanged(before: Sequence[str], after: Iterable[str], pods: Iterable[Object], pool_pods: set[str]) -> Check:
    """Validation neither bought nor lost a node.

    :param before: NodeClaims when the nodes were protected, :param after: now.
    :param pods: all pods; users' pods may have asked for more nodes meanwhile, which is not our doing.
    :param pool_pods: uids of pods that wait for, or run on, nodes that are new.
    """
    now = set(after)
    added, removed = sorted(now - set(before)), sorted(set(before) - now)
    figures = {"before": len(set(before)), "after": len(now), "added": added, "removed": removed}
    if removed:
        message = f"NodeClaim(s) {', '.join(removed)} went away during validation, although their nodes were protected"
        return _failed("nodeClaims", "NodeClaimsLost", message, **figures)
    if not added:
        return _passed("nodeClaims", "Unchanged", f"{len(now)} NodeClaim(s) before and after", **figures)
    others = [
        pod
        for pod in pods
        if gpus_requested(pod) and not is_ours(pod) and str((pod.get("metadata") or {}).get("uid", "")) in pool_pods
    ]
    if others:
        return _passed(
            "nodeClaims",
            "OthersAskedForMore",
            f"{len(added)} NodeClaim(s) came for {len(others)} pod(s) of users",
            **figures,
        )
    message = f"NodeClaim(s) {', '.join(added)} appeared during validation, and no pod of a user asked for them"
    return _failed("nodeClaims", "NodeClaimsBought", message, **figures)


def is_ours(pod: Object) -> bool:
    """Whether a pod is a probe or a placeholder of this package."""
    return labels_of(pod).get(LABEL_COMPONENT) in (COMPONENT_PROBE, "placeholder", "hold")


def asking_for_new_nodes(pods: Iterable[Object], known_nodes: Iterable[str]) -> set[str]:
    """uids of pods that have no node, or one that was not there before."""
    known = set(known_nodes)
    return {
        str((pod.get("metadata") or {}).get("uid", "")) for pod in pods if not node_of(pod) or node_of(pod) not in known
    }
