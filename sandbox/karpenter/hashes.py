"""Which fields of a NodePool and an EC2NodeClass make nodes drift when they change.

The real controllers hash Go structures with github.com/mitchellh/hashstructure, with the options ``SlicesAsSets``,
``IgnoreZeroValue`` and ``ZeroNil``: the order of lists does not count, and neither does what is empty. The values
differ from the real ones; only whether two of them are equal matters.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sandbox.karpenter.durations import seconds

Object = dict[str, Any]

#: ``hash:"ignore"`` (core ``pkg/apis/v1/nodepool.go``, NodeClaimTemplateSpec).
_POOL_IGNORES = ("requirements",)
#: ``hash:"ignore"`` (aws ``pkg/apis/v1/ec2nodeclass.go``, EC2NodeClassSpec).
_CLASS_IGNORES = (
    "subnetSelectorTerms",
    "securityGroupSelectorTerms",
    "capacityReservationSelectorTerms",
    "amiSelectorTerms",
    "amiFamily",
    "ipPrefixCount",
)
#: Held as durations and not as texts: ``10m`` and ``600s`` are the same.
_DURATIONS = ("expireAfter", "terminationGracePeriod")
_FAMILIES = {"al2": "AL2", "al2023": "AL2023", "bottlerocket": "Bottlerocket"}


def template_hash(pool: Object) -> str:
    """``karpenter.sh/nodepool-hash``: the template without requirements, which are compared with the node's labels."""
    template = pool["spec"]["template"]
    spec = {key: value for key, value in template["spec"].items() if key not in _POOL_IGNORES}
    for key in _DURATIONS:
        if key in spec:
            spec[key] = seconds(spec[key])
    return _digest({**template, "spec": spec})


def class_hash(node_class: Object) -> str:
    """``karpenter.k8s.aws/ec2nodeclass-hash``: not the selectors, whose results are compared instead.

    The AMI family counts as it follows from the alias, so another version of the same family is no difference here.
    """
    spec = {key: value for key, value in node_class["spec"].items() if key not in _CLASS_IGNORES}
    return _digest([spec, family(node_class["spec"])])


def family(spec: Object) -> str:
    """The AMI family of a class (``EC2NodeClass.AMIFamily``)."""
    if spec.get("amiFamily"):
        return str(spec["amiFamily"])
    for term in spec.get("amiSelectorTerms") or []:
        if term.get("alias"):
            return _FAMILIES.get(term["alias"].partition("@")[0], "Custom")
    return "Custom"


def _digest(value: Any) -> str:
    text = json.dumps(_plain(value), sort_keys=True)
    return str(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))


def _plain(value: Any) -> Any:
    """Without what is empty, and with every list in one order."""
    if isinstance(value, dict):
        found = {key: _plain(each) for key, each in value.items()}
        return {key: each for key, each in found.items() if each not in (None, "", 0, False, [], {})}
    if isinstance(value, list):
        return sorted((_plain(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    return value
