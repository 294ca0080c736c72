"""The CEL rules (``x-kubernetes-validations``) of Karpenter's CRDs, written by hand.

Rules and messages: kubernetes-sigs/karpenter and aws/karpenter-provider-aws, pkg/apis/crds/*.yaml (v1). The domains
kubernetes.io and k8s.io are refused by Karpenter at run time, not by the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.apiserver.errors import OMITTED, Cause, invalid_value
from sandbox.apiserver.jsontools import Obj, dig, equal
from sandbox.apiserver.resources import Resource

_KARPENTER_KEYS = frozenset({"karpenter.sh/capacity-type", "karpenter.sh/nodepool"})
_AWS_KEYS = frozenset(
    f"karpenter.k8s.aws/{name}"
    for name in (
        "capacity-reservation-id",
        "capacity-reservation-interruptible",
        "capacity-reservation-type",
        "ec2nodeclass",
        "instance-accelerator-count",
        "instance-accelerator-manufacturer",
        "instance-accelerator-name",
        "instance-capability-flex",
        "instance-category",
        "instance-cpu",
        "instance-cpu-manufacturer",
        "instance-cpu-sustained-clock-speed-mhz",
        "instance-ebs-bandwidth",
        "instance-encryption-in-transit-supported",
        "instance-family",
        "instance-generation",
        "instance-gpu-count",
        "instance-gpu-manufacturer",
        "instance-gpu-memory",
        "instance-gpu-name",
        "instance-hypervisor",
        "instance-local-nvme",
        "instance-memory",
        "instance-network-bandwidth",
        "instance-size",
        "instance-tenancy",
        "nitro-sandbox",
        "placement-group-id",
        "placement-group-partition",
    )
)
_FAMILIES = ("al2", "al2023", "bottlerocket", "windows2019", "windows2022", "windows2025")
_FAMILY_NAMES = {
    "al2": "AL2",
    "al2023": "AL2023",
    "bottlerocket": "Bottlerocket",
    "windows2019": "Windows2019",
    "windows2022": "Windows2022",
    "windows2025": "Windows2025",
}
_RESERVED_TAGS = (
    "eks:eks-cluster-name",
    "karpenter.sh/nodepool",
    "karpenter.sh/nodeclaim",
    "karpenter.k8s.aws/ec2nodeclass",
)


def _failed(where: str, value: Any, message: str) -> Cause:
    """A failed CEL rule; maps and lists are not shown (apiextensions-apiserver v1.36 schema/cel/validation.go)."""
    return invalid_value(where, OMITTED if isinstance(value, (list, dict)) else value, message)


def _label_refusals(key: str, *, pool: bool) -> Iterator[str]:
    """
    Why a requirement or label may not use ``key``.

    :param pool: in a NodePool, which may not name itself either.
    """
    domain = key.partition("/")[0]
    if domain.endswith("karpenter.sh") and key not in _KARPENTER_KEYS:
        yield 'label domain "karpenter.sh" is restricted'
    if pool and key == "karpenter.sh/nodepool":
        yield 'label "karpenter.sh/nodepool" is restricted'
    if key == "kubernetes.io/hostname":
        yield 'label "kubernetes.io/hostname" is restricted'
    if domain.endswith("karpenter.k8s.aws") and key not in _AWS_KEYS:
        yield 'label domain "karpenter.k8s.aws" is restricted'


def _number(values: list[Any]) -> bool:
    return len(values) == 1 and str(values[0]).isdigit()


def _requirements(requirements: list[Obj], where: str, *, pool: bool) -> Iterator[Cause]:
    for index, item in enumerate(requirements):
        for refusal in _label_refusals(str(item.get("key", "")), pool=pool):
            yield invalid_value(f"{where}[{index}].key", item["key"], refusal)
    if any(item.get("operator") == "In" and not item.get("values") for item in requirements):
        yield _failed(where, requirements, "requirements with operator 'In' must have a value defined")
    compared = [item for item in requirements if item.get("operator") in ("Gt", "Lt", "Gte", "Lte")]
    if any(not _number(item.get("values") or []) for item in compared):
        text = "requirements operator 'Gt', 'Lt', 'Gte', or 'Lte' must have a single positive integer value"
        yield _failed(where, requirements, text)
    minimums = [item for item in requirements if item.get("operator") == "In" and item.get("minValues") is not None]
    if any(len(item.get("values") or []) < item["minValues"] for item in minimums):
        text = "requirements with 'minValues' must have at least that many values specified in the 'values' field"
        yield _failed(where, requirements, text)


def _reference(reference: Any, where: str) -> Iterator[Cause]:
    for key in ("group", "kind", "name"):
        if isinstance(reference, dict) and reference.get(key) == "":
            yield invalid_value(f"{where}.{key}", "", f"{key} may not be empty")


def _node_pool(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    labels = dig(spec, "template", "metadata", "labels") or {}
    refusals = [text for key in labels for text in _label_refusals(key, pool=True)]
    for text in dict.fromkeys(refusals):
        yield _failed("spec.template.metadata.labels", labels, text)
    inner = dig(spec, "template", "spec") or {}
    where = "spec.template.spec"
    yield from _requirements(inner.get("requirements") or [], f"{where}.requirements", pool=True)
    yield from _reference(inner.get("nodeClassRef"), f"{where}.nodeClassRef")
    budgets = dig(spec, "disruption", "budgets") or []
    if any(("schedule" in item) != ("duration" in item) for item in budgets):
        yield _failed("spec.disruption.budgets", budgets, "'schedule' must be set with 'duration'")
    static = spec.get("replicas") is not None
    if static and set(spec.get("limits") or {}) - {"nodes"}:
        yield _failed("spec", spec, "only 'limits.nodes' is supported on static NodePools")
    if static and spec.get("weight") is not None:
        yield _failed("spec", spec, "'weight' is not supported on static NodePools")
    if old is not None:
        yield from _node_pool_change(spec, old.get("spec") or {})


def _node_pool_change(spec: Obj, before: Obj) -> Iterator[Cause]:
    if ("replicas" in spec) != ("replicas" in before):
        text = (
            "Cannot transition NodePool between static (replicas set) and dynamic (replicas unset) provisioning modes"
        )
        yield _failed("spec", spec, text)
    reference = dig(spec, "template", "spec", "nodeClassRef") or {}
    old_reference = dig(before, "template", "spec", "nodeClassRef") or {}
    for key in ("group", "kind"):
        if reference.get(key) != old_reference.get(key):
            yield _failed("spec.template.spec.nodeClassRef", reference, f"nodeClassRef.{key} is immutable")


def _node_claim(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    yield from _requirements(spec.get("requirements") or [], "spec.requirements", pool=False)
    yield from _reference(spec.get("nodeClassRef"), "spec.nodeClassRef")
    if old is not None and not equal(spec, old.get("spec")):
        yield _failed("spec", spec, "spec is immutable")


def _terms(spec: Obj, name: str, allowed: tuple[str, ...], label: str) -> Iterator[Cause]:
    """Selector terms: at least one criterion each, and an id stands alone."""
    where, terms = f"spec.{name}", spec.get(name)
    if terms is None:
        return
    if name != "amiSelectorTerms" and not terms:
        yield _failed(where, terms, f"{name} cannot be empty")
    if any(not any(key in term for key in allowed) for term in terms):
        shown = ", ".join(f"'{key}'" for key in allowed)
        yield _failed(where, terms, f"expected at least one, got none, [{shown}]")
    if any("id" in term and len(term) > 1 for term in terms):
        yield _failed(
            where, terms, f"'id' is mutually exclusive, cannot be set with a combination of other fields in {label}"
        )
    for index, term in enumerate(terms):
        if any(not key or not value for key, value in (term.get("tags") or {}).items()):
            yield _failed(f"{where}[{index}].tags", term["tags"], "empty tag keys or values aren't supported")


def _images(spec: Obj) -> Iterator[Cause]:
    where, terms = "spec.amiSelectorTerms", spec.get("amiSelectorTerms") or []
    aliases = [(index, str(term["alias"])) for index, term in enumerate(terms) if "alias" in term]
    if aliases and len(terms) != 1:
        text = "'alias' is mutually exclusive, cannot be set with a combination of other amiSelectorTerms"
        yield _failed(where, terms, text)
    for index, alias in aliases:
        family, at, version = alias.partition("@")
        spot = f"{where}[{index}].alias"
        if not at or not version or not family.isalnum():
            yield invalid_value(spot, alias, "'alias' is improperly formatted, must match the format 'family@version'")
        elif family not in _FAMILIES:
            shown = ", ".join(f"'{name}'" for name in _FAMILIES)
            yield invalid_value(spot, alias, f"family is not supported, must be one of the following: {shown}")
        elif family.startswith("windows") and version != "latest":
            yield invalid_value(spot, alias, "windows families may only specify version 'latest'")
        wanted = _FAMILY_NAMES.get(family)
        if wanted and spec.get("amiFamily", wanted) not in (wanted, "Custom"):
            text = f"if set, amiFamily must be '{wanted}' or 'Custom' when using a {wanted} alias"
            if wanted == "AL2":
                text = "if set, amiFamily must be 'AL2' or 'Custom' when using an AL2 alias"
            elif wanted == "AL2023":
                text = "if set, amiFamily must be 'AL2023' or 'Custom' when using an AL2023 alias"
            yield _failed("spec", spec, text)
    if not aliases and "amiFamily" not in spec:
        yield _failed("spec", spec, "must specify amiFamily if amiSelectorTerms does not contain an alias")


def _devices(spec: Obj) -> Iterator[Cause]:
    """Volumes, interfaces, placement group and connection tracking (v1.14.1 pkg/apis/v1/ec2nodeclass.go)."""
    for index, mapping in enumerate(spec.get("blockDeviceMappings") or []):
        ebs, where = mapping.get("ebs"), f"spec.blockDeviceMappings[{index}].ebs"
        if ebs is None:
            continue
        if "snapshotID" not in ebs and "volumeSize" not in ebs:
            yield _failed(where, ebs, "snapshotID or volumeSize must be defined")
        if "volumeInitializationRate" in ebs and not ebs.get("snapshotID"):
            yield _failed(where, ebs, "snapshotID must be set when volumeInitializationRate is set")
    interfaces = spec.get("networkInterfaces") or []
    primary = {"deviceIndex": 0, "networkCardIndex": 0, "interfaceType": "interface"}
    if interfaces and not any(primary.items() <= each.items() for each in interfaces):
        text = "networkInterfaces must include a primary interface with interfaceType='interface'"
        yield _failed("spec.networkInterfaces", interfaces, text)
    places = [(each.get("networkCardIndex"), each.get("deviceIndex")) for each in interfaces]
    cards = [each.get("networkCardIndex") for each in interfaces if each.get("interfaceType") == "efa-only"]
    if len(set(places)) != len(places) or len(set(cards)) != len(cards):
        text = (
            "networkInterfaces must not have duplicate networkCardIndex and deviceIndex pairs, and can have at most "
            "one efa device per network card"
        )
        yield _failed("spec.networkInterfaces", interfaces, text)
    group = spec.get("placementGroupSelector")
    if group is not None and not ("name" in group or "id" in group):
        yield _failed("spec.placementGroupSelector", group, "expected at least one, got none, ['name', 'id']")
    if group is not None and "name" in group and "id" in group:
        yield _failed("spec.placementGroupSelector", group, "'name' and 'id' are mutually exclusive")
    tracking = spec.get("connectionTracking")
    if tracking is not None and not tracking:
        text = "at least one of tcpEstablishedTimeout, udpStreamTimeout, or udpTimeout must be set"
        yield _failed("spec.connectionTracking", tracking, text)


def _node_class(new: Obj, old: Obj | None) -> Iterator[Cause]:
    del old
    spec = new.get("spec") or {}
    if ("role" in spec) == ("instanceProfile" in spec):
        yield _failed("spec", spec, "must specify exactly one of ['role', 'instanceProfile']")
    for key in ("role", "instanceProfile"):
        if spec.get(key) == "":
            yield invalid_value(f"spec.{key}", "", f"{key} cannot be empty")
    yield from _terms(spec, "subnetSelectorTerms", ("tags", "id"), "a subnet selector term")
    yield from _terms(spec, "securityGroupSelectorTerms", ("tags", "id", "name"), "a security group selector term")
    yield from _terms(spec, "amiSelectorTerms", ("tags", "id", "name", "alias", "ssmParameter"), "amiSelectorTerms")
    yield from _images(spec)
    yield from _devices(spec)
    tags = spec.get("tags") or {}
    if "" in tags:
        yield _failed("spec.tags", tags, "empty tag keys aren't supported")
    for reserved in _RESERVED_TAGS:
        if reserved in tags:
            yield _failed("spec.tags", tags, f"tag contains a restricted tag matching {reserved}")
    if any(key.startswith("kubernetes.io/cluster") for key in tags):
        yield _failed("spec.tags", tags, "tag contains a restricted tag matching kubernetes.io/cluster/")


def _node_overlay(new: Obj, old: Obj | None) -> Iterator[Cause]:
    """CEL rules of core v1.14.1 ``pkg/apis/v1alpha1/nodeoverlay.go``."""
    del old
    spec = new.get("spec") or {}
    where, requirements = "spec.requirements", spec.get("requirements") or []
    for operator in ("NotIn", "In"):
        if any(item.get("operator") == operator and not item.get("values") for item in requirements):
            yield _failed(where, requirements, f"requirements with operator '{operator}' must have a value defined")
    compared = [item for item in requirements if item.get("operator") in ("Gt", "Lt", "Gte", "Lte")]
    if any(not _number(item.get("values") or []) for item in compared):
        text = "requirements operator 'Gt', 'Lt', 'Gte' or 'Lte' must have a single positive integer value"
        yield _failed(where, requirements, text)
    capacity = spec.get("capacity") or {}
    if any(key in capacity for key in ("cpu", "memory", "ephemeral-storage", "pods")):
        yield _failed("spec.capacity", capacity, "invalid resource restricted")
    if "price" in spec and "priceAdjustment" in spec:
        yield _failed("spec", spec, "cannot set both 'price' and 'priceAdjustment'")


_RULES = {
    ("karpenter.sh", "NodeOverlay"): _node_overlay,
    ("karpenter.sh", "NodePool"): _node_pool,
    ("karpenter.sh", "NodeClaim"): _node_claim,
    ("karpenter.k8s.aws", "EC2NodeClass"): _node_class,
}


def check(resource: Resource, new: Obj, old: Obj | None) -> list[Cause]:
    """Violated rules of a Karpenter kind; nothing for any other custom resource."""
    rules = _RULES.get((resource.group, resource.kind))
    return [] if rules is None else list(rules(new, old))
