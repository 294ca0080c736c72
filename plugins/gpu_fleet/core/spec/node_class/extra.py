"""What an EC2NodeClass takes besides the fields of the cluster file: passed through, after a check against its schema.

The schema is that of the CRD of Karpenter v1.14.1 (aws/karpenter-provider-aws
pkg/apis/crds/karpenter.k8s.aws_ec2nodeclasses.yaml), as far as no field of the cluster file stands for it. The API
server checks the rest of the CRD's rules in the dry run before anything is applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]


def _seconds(least: int, most: int) -> Schema:
    return {"type": int, "least": least, "most": most}


#: Field of the CRD's spec -> its schema: ``type``, for a mapping ``fields`` and ``some`` (at least one), for a number
#: ``least`` and ``most``, for a text ``one_of`` or ``pattern``.
PASSED_THROUGH: Mapping[str, Schema] = {
    "context": {"type": str, "pattern": r"[\x21-\x7e]{1,512}"},
    "cpuOptions": {"type": dict, "fields": {"nestedVirtualization": {"type": str, "one_of": ("enabled", "disabled")}}},
    "connectionTracking": {
        "type": dict,
        "some": True,
        "fields": {
            "tcpEstablishedTimeout": _seconds(60, 432_000),
            "udpStreamTimeout": _seconds(60, 180),
            "udpTimeout": _seconds(30, 60),
        },
    },
    "ipPrefixCount": {"type": int, "least": 0, "most": 2**31 - 1},
}
#: Field of the CRD's spec -> the field of the cluster file that is to be used.
OWNED: Mapping[str, str] = {
    "amiFamily": "nodeClass.amiAlias or nodeClass.ami.family",
    "amiSelectorTerms": "nodeClass.amiAlias or nodeClass.ami",
    "associatePublicIPAddress": "nodeClass.associatePublicIPAddress",
    "blockDeviceMappings": "nodeClass.volumeSize, nodeClass.volume and nodeClass.osVolume",
    "capacityReservationSelectorTerms": "capacity.reservations of the pool",
    "detailedMonitoring": "nodeClass.detailedMonitoring",
    "instanceProfile": "nodeClass.role: Karpenter makes the profile itself",
    "instanceStorePolicy": "nodeClass.instanceStorePolicy",
    "kubelet": "nodeClass.kubelet",
    "metadataOptions": "nodeClass.metadataOptions",
    "networkInterfaces": "nodeClass.networkInterfaces",
    "placementGroupSelector": "nodeClass.placementGroup",
    "role": "nodeClass.role",
    "securityGroupSelectorTerms": "nodeClass.securityGroups or nodeClass.discoveryTag",
    "subnetSelectorTerms": "nodeClass.subnets or nodeClass.discoveryTag",
    "tags": "nodeClass.tags",
    "userData": "nodeClass.userData",
}
_TYPES = {int: "a whole number", str: "text", dict: "a mapping"}


def check_extra(value: Mapping[str, Any]) -> None:
    """
    :raises ValueError: for what the EC2NodeClass does not know, or what a field of the cluster file owns.
    """
    for key, given in value.items():
        if key in OWNED:
            raise ValueError(f"{key} would override the spec; remove it and use {OWNED[key]}")
        if key not in PASSED_THROUGH:
            known = ", ".join(sorted(PASSED_THROUGH))
            raise ValueError(f"an EC2NodeClass of Karpenter 1.14 has no field {key!r}; here can be {known}")
        for problem in _problems(key, given, PASSED_THROUGH[key]):
            raise ValueError(problem)


def _problems(path: str, value: Any, schema: Schema) -> Iterator[str]:
    kind = schema["type"]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield f"{path} must be {_TYPES[kind]}, not {value!r}"
    elif kind is dict:
        fields: Mapping[str, Schema] = schema["fields"]
        if schema.get("some") and not value:
            yield f"{path} is empty; give at least one of {', '.join(fields)}"
        for key, given in value.items():
            if key not in fields:
                yield f"{path} has no field {key!r}; known are {', '.join(fields)}"
            else:
                yield from _problems(f"{path}.{key}", given, fields[key])
    elif kind is int and not schema["least"] <= value <= schema["most"]:
        yield f"{path} is {value}; write {schema['least']} to {schema['most']}"
    elif "one_of" in schema and value not in schema["one_of"]:
        yield f"{path} is {value!r}; write one of {', '.join(schema['one_of'])}"
    elif "pattern" in schema and not re.fullmatch(schema["pattern"], value, re.ASCII):
        yield f"{path}: {value[:40]!r} is not a valid value; it must match {schema['pattern']}"
