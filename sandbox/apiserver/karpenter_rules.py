"""The CEL rules (``x-kubernetes-validations``) of Karpenter's CRDs, written by hand.

Source of rules and messages: kubernetes-sigs/karpenter pkg/apis/crds/karpenter.sh_nodepools.yaml and
karpenter.sh_nodeclaims.yaml (v1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.apiserver.errors import Cause, invalid_value
from sandbox.apiserver.jsontools import Obj, dig, equal
from sandbox.apiserver.resources import Resource

_KARPENTER_KEYS = frozenset(
    {"karpenter.sh/capacity-type", "karpenter.sh/nodepool", "karpenter.sh/capacity-reservation-type"}
)
_AWS_KEYS = frozenset(
    {
        "karpenter.k8s.aws/capacity-reservation-type",
        "karpenter.k8s.aws/capacity-reservation-id",
        "karpenter.k8s.aws/capacity-reservation-interruptible",
        "karpenter.k8s.aws/ec2nodeclass",
        "karpenter.k8s.aws/instance-encryption-in-transit-supported",
        "karpenter.k8s.aws/instance-category",
        "karpenter.k8s.aws/instance-hypervisor",
        "karpenter.k8s.aws/instance-family",
        "karpenter.k8s.aws/instance-generation",
        "karpenter.k8s.aws/instance-local-nvme",
        "karpenter.k8s.aws/instance-size",
        "karpenter.k8s.aws/instance-cpu",
        "karpenter.k8s.aws/instance-cpu-manufacturer",
        "karpenter.k8s.aws/instance-cpu-sustained-clock-speed-mhz",
        "karpenter.k8s.aws/instance-memory",
        "karpenter.k8s.aws/instance-ebs-bandwidth",
        "karpenter.k8s.aws/instance-network-bandwidth",
        "karpenter.k8s.aws/instance-gpu-name",
        "karpenter.k8s.aws/instance-gpu-manufacturer",
        "karpenter.k8s.aws/instance-gpu-count",
        "karpenter.k8s.aws/instance-gpu-memory",
        "karpenter.k8s.aws/instance-accelerator-name",
        "karpenter.k8s.aws/instance-accelerator-manufacturer",
        "karpenter.k8s.aws/instance-accelerator-count",
        "karpenter.k8s.aws/instance-capability-flex",
        "karpenter.k8s.aws/instance-tenancy",
    }
)
_OPEN_KUBERNETES = frozenset(
    {
        "beta.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "node.kubernetes.io/windows-build",
        "node.kubernetes.io/instance-type",
    }
)


def _domain_within(key: str, domain: str) -> bool:
    prefix = key.partition("/")[0] if "/" in key else ""
    return prefix == domain or prefix.endswith("." + domain)


def _restricted(key: str) -> str | None:
    """The refusal of a label key, in the order of the CRD's rules."""
    if _domain_within(key, "kubernetes.io") and key not in _OPEN_KUBERNETES:
        prefix = key.partition("/")[0]
        if not prefix.endswith(("node.kubernetes.io", "node-restriction.kubernetes.io")):
            return 'label domain "kubernetes.io" is restricted'
    if _domain_within(key, "k8s.io") and not key.partition("/")[0].endswith("kops.k8s.io"):
        return 'label domain "k8s.io" is restricted'
    if _domain_within(key, "karpenter.sh") and key not in _KARPENTER_KEYS:
        return 'label domain "karpenter.sh" is restricted'
    if key == "karpenter.sh/nodepool":
        return 'label "karpenter.sh/nodepool" is restricted'
    if key == "kubernetes.io/hostname":
        return 'label "kubernetes.io/hostname" is restricted'
    if _domain_within(key, "karpenter.k8s.aws") and key not in _AWS_KEYS:
        return 'label domain "karpenter.k8s.aws" is restricted'
    return None


def _requirements(requirements: list[Obj], where: str, *, keys: bool) -> Iterator[Cause]:
    for index, item in enumerate(requirements):
        refusal = _restricted(str(item.get("key", ""))) if keys else None
        if refusal is not None:
            yield invalid_value(f"{where}[{index}].key", item["key"], refusal)
    for item in requirements:
        if item.get("operator") == "In" and not item.get("values"):
            yield _rule(where, requirements, "requirements with operator 'In' must have a value defined")
            break
    for item in requirements:
        if item.get("operator") in ("Gt", "Lt", "Gte", "Lte"):
            values = item.get("values") or []
            if len(values) != 1 or not str(values[0]).isdigit():
                text = "requirements operator 'Gt' or 'Lt' must have a single positive integer value"
                yield _rule(where, requirements, text)
                break
    for item in requirements:
        minimum = item.get("minValues")
        if minimum is not None and item.get("operator") == "In" and len(item.get("values") or []) < minimum:
            text = "requirements with 'minValues' must have at least that many values specified in the 'values' field"
            yield _rule(where, requirements, text)
            break


def _rule(where: str, value: Any, message: str) -> Cause:
    """A failed CEL rule; maps and lists are printed by their type, as the real server does."""
    shown = "array" if isinstance(value, list) else "object" if isinstance(value, dict) else value
    return invalid_value(where, shown, message)


def _node_class_reference(reference: Any, where: str) -> Iterator[Cause]:
    if not isinstance(reference, dict):
        return
    for key in ("group", "kind", "name"):
        if reference.get(key) == "":
            yield invalid_value(f"{where}.{key}", "", f"{key} may not be empty")


def _node_pool(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    template = spec.get("template") or {}
    inner = template.get("spec") or {}
    for key, value in (dig(template, "metadata", "labels") or {}).items():
        refusal = _restricted(key)
        if refusal is not None:
            yield _rule("spec.template.metadata.labels", {key: value}, refusal)
    yield from _requirements(inner.get("requirements") or [], "spec.template.spec.requirements", keys=True)
    reference = inner.get("nodeClassRef")
    yield from _node_class_reference(reference, "spec.template.spec.nodeClassRef")
    budgets = dig(spec, "disruption", "budgets") or []
    if any(("schedule" in item) != ("duration" in item) for item in budgets):
        yield _rule("spec.disruption.budgets", budgets, "'schedule' must be set with 'duration'")
    static = spec.get("replicas") is not None
    if static and set(spec.get("limits") or {}) - {"nodes"}:
        yield _rule("spec", spec, "only 'limits.nodes' is supported on static NodePools")
    if static and spec.get("weight") is not None:
        yield _rule("spec", spec, "'weight' is not supported on static NodePools")
    if old is None:
        return
    before = old.get("spec") or {}
    if static != (before.get("replicas") is not None):
        text = (
            "Cannot transition NodePool between static (replicas set) and dynamic (replicas unset) provisioning modes"
        )
        yield _rule("spec", spec, text)
    old_reference = dig(before, "template", "spec", "nodeClassRef")
    if isinstance(reference, dict) and isinstance(old_reference, dict):
        where = "spec.template.spec.nodeClassRef"
        for key in ("group", "kind"):
            if reference.get(key) != old_reference.get(key):
                yield _rule(where, reference, f"nodeClassRef.{key} is immutable")


def _node_claim(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    yield from _requirements(spec.get("requirements") or [], "spec.requirements", keys=False)
    yield from _node_class_reference(spec.get("nodeClassRef"), "spec.nodeClassRef")
    if old is not None and not equal(spec, old.get("spec")):
        yield _rule("spec", spec, "spec is immutable")


def _node_class(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    if bool(spec.get("role")) == bool(spec.get("instanceProfile")):
        yield _rule("spec", spec, "must specify exactly one of ['role', 'instanceProfile']")
    for key in ("subnetSelectorTerms", "securityGroupSelectorTerms", "amiSelectorTerms"):
        terms = spec.get(key)
        if terms == []:
            yield _rule(f"spec.{key}", terms, f"{key} cannot be empty")
    aliases = [term for term in spec.get("amiSelectorTerms") or [] if term.get("alias")]
    if aliases and len(spec["amiSelectorTerms"]) > 1:
        text = "'alias' is mutually exclusive, cannot be set with a combination of other amiSelectorTerms"
        yield _rule("spec.amiSelectorTerms", spec["amiSelectorTerms"], text)
    if old is not None and bool(spec.get("role")) != bool(dig(old, "spec", "role")):
        text = "changing from 'instanceProfile' to 'role' is not supported. You must delete and recreate this node class if you want to change this."
        yield _rule("spec", spec, text)


_RULES = {
    ("karpenter.sh", "NodePool"): _node_pool,
    ("karpenter.sh", "NodeClaim"): _node_claim,
    ("karpenter.k8s.aws", "EC2NodeClass"): _node_class,
}


def check(resource: Resource, new: Obj, old: Obj | None) -> Iterator[Cause]:
    rules = _RULES.get((resource.group, resource.kind))
    if rules is not None:
        yield from rules(new, old)
