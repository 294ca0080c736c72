"""User data of a pool's nodes: what the cluster file says, and what sharing and fast start need. Pure.

AL2023: the user's parts first and ours behind them, because of two NodeConfigs the later one counts, and Karpenter
appends its own as the last (awslabs/amazon-eks-ami v20260714 nodeadm/internal/api/merge.go;
aws/karpenter-provider-aws v1.14.1 pkg/providers/amifamily/bootstrap/nodeadm.go). What the user wrote is not changed.

Bottlerocket: one TOML document of both. The device plugin's settings are in bottlerocket-os/bottlerocket
sources/shared-defaults/nvidia-k8s-device-plugin.toml; those of time-slicing and their defaults in the core kit's
packages/nvidia-k8s-device-plugin/nvidia-k8s-device-plugin-conf. Its ``rename-by-default`` is true unless it is set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from typing import Any

import yaml

from gpu_fleet.core.spec import NodePool, TimeSlicing
from gpu_fleet.core.spec.node_class import Family, NodeClass
from gpu_fleet.core.spec.node_class.bottlerocket import bottlerocket_settings
from gpu_fleet.core.spec.node_class.fast_start import FastStart
from gpu_fleet.core.spec.node_class.node_config import API_VERSION, KIND
from gpu_fleet.core.spec.node_class.user_data import NODE_CONFIG, Part, parts_of

#: Separates the parts of an archive that we write; no part may have a line of it.
_BOUNDARY = "gpu-fleet"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def user_data(node_class: NodeClass, pool: NodePool, start: FastStart) -> str:
    """The user data of a pool's EC2NodeClass; empty if none is needed."""
    text = node_class.user_data or ""
    if node_class.family is Family.AL2023:
        ours = {"FastImagePull": True} if start.parallel else {}
        return _archive([*parts_of(text), _gates(ours)]) if ours else text
    ours = _settings(pool, start)
    return toml_text(_merged(bottlerocket_settings(text), ours)) if ours else text


# --- AL2023 ----------------------------------------------------------------------------------------------------------


def _gates(gates: Mapping[str, bool]) -> Part:
    config = {"apiVersion": API_VERSION, "kind": KIND, "spec": {"featureGates": dict(gates)}}
    return Part(NODE_CONFIG, yaml.safe_dump(config, sort_keys=False))


def _archive(parts: list[Part]) -> str:
    boundary = _BOUNDARY
    while any(f"--{boundary}" in part.text for part in parts):
        boundary += "-"
    lines = ["MIME-Version: 1.0", f'Content-Type: multipart/mixed; boundary="{boundary}"', ""]
    for part in parts:
        lines += [f"--{boundary}", f"Content-Type: {part.kind}", "", part.text.rstrip("\n"), ""]
    return "\n".join([*lines, f"--{boundary}--", ""])


# --- Bottlerocket ----------------------------------------------------------------------------------------------------


def _settings(pool: NodePool, start: FastStart) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(pool.sharing, TimeSlicing):
        slicing = {
            "replicas": pool.sharing.replicas,
            "rename-by-default": False,
            "fail-requests-greater-than-one": pool.sharing.fail_requests_greater_than_one,
        }
        nvidia = {"device-sharing-strategy": "time-slicing", "time-slicing": slicing}
        found["kubelet-device-plugins"] = {"nvidia": nvidia}
    if start.parallel:
        # bottlerocket.dev/en/os/1.53.x/api/settings/container-runtime-plugins, 'Parallel Pull Unpack Mode'.
        found["container-runtime"] = {"snapshotter": "soci"}
        found["container-runtime-plugins"] = {"soci-snapshotter": {"pull-mode": "parallel-pull-unpack"}}
    return {"settings": found} if found else {}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def toml_text(document: Mapping[str, Any]) -> str:
    """A document as TOML, which the standard library reads but does not write; equal documents give equal texts."""
    return "\n".join(_table(document, ())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        yield ""
        yield f"[{'.'.join(_key(part) for part in path)}]"
    for key, value in sorted(plain.items()):
        yield f"{_key(key)} = {_value(value)}"
    for key, value in sorted(table.items()):
        if isinstance(value, Mapping):
            yield from _table(value, (*path, key))


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _text(value: str) -> str:
    # TOML's escapes are JSON's, and it also wants DEL escaped (https://toml.io/en/v1.0.0#string).
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case datetime() | date() | time():
            return value.isoformat()
        case str():
            return _text(value)
        case list():
            return f"[{', '.join(_value(item) for item in value)}]"
        case Mapping():
            return f"{{ {', '.join(f'{_key(key)} = {_value(item)}' for key, item in sorted(value.items()))} }}"
    raise TypeError(f"{value!r} has no form in TOML")
