"""Would a DaemonSet's pods run on nodes that do not exist yet? By node selector, node affinity and taints. Pure.

Of a future node only some labels are known: those of its NodePool's template and requirements, and the well-known ones.
Others are set by the cloud, by Karpenter or by agents on the node (zones, labels of NFD and NVIDIA), and may or may not
be there. So the answer has three values, and *maybe* never counts as *no*.

The rules are the scheduler's (kubernetes/component-helpers ``scheduling/corev1/nodeaffinity``) and the DaemonSet
controller's (kubernetes ``pkg/controller/daemon/util/daemonset_util.go``: the tolerations that it adds).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: Domains whose labels appear on nodes although the NodePool does not name them: the cloud provider's and Karpenter's
#: (kubernetes.io 'Well-Known Labels'; karpenter.sh 'NodePools'), NFD's, NVIDIA's (GFD, GPU Operator).
FOREIGN_DOMAINS = (
    "kubernetes.io",
    "beta.kubernetes.io",
    "node.kubernetes.io",
    "topology.kubernetes.io",
    "failure-domain.beta.kubernetes.io",
    "topology.k8s.aws",
    "topology.ebs.csi.aws.com",
    "karpenter.sh",
    "karpenter.k8s.aws",
    "feature.node.kubernetes.io",
    "nvidia.com",
)
#: NVIDIA's GPU Operator sets labels with this prefix on every node with an NVIDIA GPU, and places its DaemonSets by
#: them, except where the second one is 'false' (GPU Operator documentation, 'Preventing Installation of Operands').
OPERATOR_LABELS = "nvidia.com/gpu.deploy."
LABEL_NO_OPERANDS = f"{OPERATOR_LABELS}operands"
_BLOCKING = ("NoSchedule", "NoExecute")
#: Taints that the DaemonSet controller tolerates for every DaemonSet.
_ALWAYS_TOLERATED = frozenset(
    f"node.kubernetes.io/{name}"
    for name in ("not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable")
)


class Match(StrEnum):
    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


@dataclass(frozen=True)
class Place:
    """Nodes of one kind, as far as they are known.

    :ivar name: name of the pool or the node.
    :ivar labels: key -> the values that a node may have; each node has one of them.
    :ivar taints: as Kubernetes writes them.
    :ivar complete: whether every label is known, as of a node that exists.
    """

    name: str
    labels: Mapping[str, frozenset[str]]
    taints: Sequence[Mapping[str, str]] = ()
    complete: bool = False


@dataclass(frozen=True)
class Answer:
    """
    :ivar unknown: labels on which the answer depends and that are not known.
    :ivar why_not: what keeps the pods away, if the answer is NO.
    """

    match: Match
    unknown: frozenset[str] = field(default_factory=frozenset)
    why_not: str = ""

    @property
    def reaches(self) -> bool:
        return self.match is not Match.NO


def runs_on(pod: Mapping[str, Any], place: Place) -> Answer:
    """Whether a DaemonSet with this pod spec has a pod on the nodes of a place."""
    unknown: set[str] = set()
    for key, value in (pod.get("nodeSelector") or {}).items():
        match = _expression({"key": key, "operator": "In", "values": [str(value)]}, place)
        if match is Match.NO:
            return Answer(Match.NO, why_not=f"nodeSelector {key}={value}")
        if match is Match.MAYBE:
            unknown.add(str(key))
    required = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required is not None:
        answer = _any_term(required.get("nodeSelectorTerms") or [], place)
        if answer.match is Match.NO:
            return Answer(Match.NO, why_not="its node affinity")
        unknown |= answer.unknown
    for taint in place.taints:
        if taint.get("effect") in _BLOCKING and not tolerated(taint, pod.get("tolerations") or []):
            return Answer(Match.NO, why_not=f"taint {taint.get('key')}:{taint.get('effect')}")
    return Answer(Match.MAYBE if unknown else Match.YES, frozenset(unknown))


def _any_term(terms: Iterable[Mapping[str, Any]], place: Place) -> Answer:
    """Terms are alternatives; all expressions of one term must match. Without terms nothing matches."""
    best = Answer(Match.NO)
    for term in terms:
        expressions = [*(term.get("matchExpressions") or []), *(term.get("matchFields") or [])]
        matches = {str(e.get("key")): _expression(e, place) for e in expressions}
        if not expressions or any(_expression(e, place) is Match.NO for e in expressions):
            continue
        unknown = frozenset(key for key, match in matches.items() if match is Match.MAYBE)
        if not unknown:
            return Answer(Match.YES)
        best = Answer(Match.MAYBE, unknown)
    return best


def _expression(expression: Mapping[str, Any], place: Place) -> Match:
    key, operator = str(expression.get("key", "")), str(expression.get("operator", ""))
    wanted = {str(value) for value in expression.get("values") or []}
    if key == "metadata.name":
        found = frozenset({place.name}) if place.complete else None
    elif key in place.labels:
        found = place.labels[key]
    elif not place.complete and _is_foreign(key, place):
        found = None
    else:
        return Match.YES if operator in ("NotIn", "DoesNotExist") else Match.NO
    if found is None:
        return Match.MAYBE
    match operator:
        case "Exists":
            return Match.YES
        case "DoesNotExist":
            return Match.NO
        case "In":
            fitting = found & wanted
        case "NotIn":
            fitting = found - wanted
        case "Gt" | "Lt":
            fitting = frozenset(value for value in found if _compares(value, operator, wanted))
        case _:
            return Match.MAYBE  # an operator that this version does not know
    # Some instance types of a pool are enough: nodes of these may be launched.
    return Match.YES if fitting else Match.NO


def _is_foreign(key: str, place: Place) -> bool:
    if key.startswith(OPERATOR_LABELS) and place.labels.get(LABEL_NO_OPERANDS) == frozenset({"false"}):
        return False
    domain = key.partition("/")[0] if "/" in key else ""
    return domain in FOREIGN_DOMAINS


def _compares(value: str, operator: str, wanted: Iterable[str]) -> bool:
    try:
        bound = int(next(iter(wanted)))
        return int(value) > bound if operator == "Gt" else int(value) < bound
    except (ValueError, StopIteration):
        return False


def tolerated(taint: Mapping[str, str], tolerations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a DaemonSet's pod tolerates a taint."""
    key, value, effect = str(taint.get("key", "")), str(taint.get("value") or ""), taint.get("effect")
    if key in _ALWAYS_TOLERATED:
        return True
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", effect):
            continue
        own, operator = str(toleration.get("key") or ""), str(toleration.get("operator") or "Equal")
        if (not own and operator == "Exists") or (
            own == key and (operator == "Exists" or str(toleration.get("value") or "") == value)
        ):
            return True
    return False


# --- places ----------------------------------------------------------------------------------------------------------


def place_of_pool(node_pool: Mapping[str, Any], region: str) -> Place:
    """The nodes that Karpenter would launch for a NodePool (karpenter.sh/v1)."""
    name = str((node_pool.get("metadata") or {}).get("name", ""))
    template = (node_pool.get("spec") or {}).get("template") or {}
    spec = template.get("spec") or {}
    labels = {
        "karpenter.sh/nodepool": frozenset({name}),
        "karpenter.sh/registered": frozenset({"true"}),
        "karpenter.sh/initialized": frozenset({"true"}),
        "topology.kubernetes.io/region": frozenset({region}),
        "kubernetes.io/os": frozenset({"linux"}),
        # Set by nodeadm from Kubernetes 1.35 on, and by GPU Feature Discovery before.
        "nvidia.com/gpu.present": frozenset({"true"}),
    }
    for requirement in spec.get("requirements") or []:
        if requirement.get("operator") == "In" and requirement.get("values"):
            labels[str(requirement["key"])] = frozenset(str(value) for value in requirement["values"])
    labels |= {str(k): frozenset({str(v)}) for k, v in ((template.get("metadata") or {}).get("labels") or {}).items()}
    return Place(name, labels, tuple(spec.get("taints") or ()))


def place_of_node(node: Mapping[str, Any], more_labels: Mapping[str, str] | None = None) -> Place:
    """An existing node.

    :param more_labels: labels that it is about to get.
    """
    metadata = node.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), **(more_labels or {})}
    taints = tuple((node.get("spec") or {}).get("taints") or ())
    known = {str(key): frozenset({str(value)}) for key, value in labels.items()}
    return Place(str(metadata.get("name", "")), known, taints, complete=True)
