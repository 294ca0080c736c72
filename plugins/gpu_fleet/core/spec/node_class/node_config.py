"""AL2023's user data: NodeConfigs, checked for what must not be in them. Pure.

nodeadm ignores keys that it does not know (awslabs/amazon-eks-ami v20260714 nodeadm/internal/api/bridge/decode.go
decodes without strictness), and the NodeConfigs of all parts are merged in their order, Karpenter's as the last
(nodeadm/internal/api/merge.go): both would silently lose what the user wrote.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from gpu_fleet.core.spec.node_class.kubelet import owned_fields
from gpu_fleet.core.spec.node_class.user_data import Part, UserDataError, mapping, parts_of

API_VERSION, KIND = "node.eks.aws/v1alpha1", "NodeConfig"

#: Key of a NodeConfig's spec -> what it may contain; ``None``: not looked into
#: (awslabs/amazon-eks-ami v20260714 nodeadm/api/v1alpha1/nodeconfig_types.go).
_SPEC: Mapping[str, frozenset[str] | None] = {
    "cluster": frozenset({"name", "apiServerEndpoint", "certificateAuthority", "cidr", "enableOutpost", "id"}),
    "containerd": frozenset({"config", "baseRuntimeSpec"}),
    "instance": frozenset({"localStorage", "environment", "network"}),
    "kubelet": frozenset({"config", "flags", "maxPodsExpression"}),
    "featureGates": frozenset({"InstanceIdNodeName", "FastImagePull"}),
}
_STORAGE = ("spec", "instance", "localStorage")
_LOCAL_STORAGE = frozenset({"strategy", "mountPath", "disabledMounts"})
_LABELS, _TAINTS = "nodePools[].labels", "nodePools[].taints"
#: Flag of the kubelet -> the field that is to be used.
_FLAGS = {"--node-labels": _LABELS, "--register-with-taints": _TAINTS, "--max-pods": "nodeClass.kubelet.maxPods"}


def node_configs(text: str) -> list[Mapping[str, Any]]:
    """The NodeConfigs in user data that :func:`al2023_problems` finds nothing in."""
    return [yaml.safe_load(part.text) for part in parts_of(text) if part.is_node_config]


def al2023_problems(text: str) -> Iterator[UserDataError]:
    """Everything that is wrong with AL2023's user data."""
    try:
        parts = parts_of(text)
    except UserDataError as error:
        yield error
        return
    for part in parts:
        if part.is_node_config:
            yield from _node_config(part)


def _node_config(part: Part) -> Iterator[UserDataError]:
    try:
        documents = [each for each in yaml.safe_load_all(part.text) if each is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = part.line + mark.line if mark is not None else part.line
        words = str(getattr(error, "problem", None) or error).splitlines()[0]
        yield UserDataError(
            f"not valid YAML: {words}",
            "correct it; a script begins with #!, and a MIME archive with MIME-Version: 1.0",
            line,
        )
        return
    document = documents[0] if len(documents) == 1 else None
    if not isinstance(document, Mapping):
        yield UserDataError(
            "not one YAML mapping, so Karpenter would run it as a script",
            f"write a NodeConfig (apiVersion: {API_VERSION}), or a script that begins with #!",
            part.line,
        )
        return
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(key) != wanted:
            yield UserDataError(
                f"{key} is {_shown(document.get(key))}, and nodeadm reads nothing but {wanted}",
                f"write {key}: {wanted}",
                _at(part, key),
            )
            return
    spec = document.get("spec")
    if not isinstance(spec, Mapping):
        yield UserDataError("the NodeConfig has no spec", "add it", _at(part, "spec"))
        return
    yield from (
        UserDataError(f"{key!r} is not a key of a NodeConfig, and nodeadm ignores it", "correct it", _at(part, key))
        for key in document
        if key not in ("apiVersion", "kind", "metadata", "spec")
    )
    yield from _spec(part, spec)


def _spec(part: Part, spec: Mapping[str, Any]) -> Iterator[UserDataError]:
    for key, value in spec.items():
        if key not in _SPEC:
            known = ", ".join(_SPEC)
            yield UserDataError(
                f"spec.{key} is not a field of a NodeConfig, and nodeadm ignores it",
                f"one of {known}",
                _at(part, "spec", key),
            )
            continue
        if not isinstance(value, Mapping):
            yield UserDataError(f"spec.{key} must be a mapping", "write {key: value}", _at(part, "spec", key))
            continue
        for name in value:
            if name not in (_SPEC[key] or {name}):
                yield UserDataError(
                    f"spec.{key}.{name} is not a field of a NodeConfig, and nodeadm ignores it",
                    f"one of {', '.join(sorted(_SPEC[key] or ()))}",
                    _at(part, "spec", key, name),
                )
    if "cluster" in spec:
        yield UserDataError(
            "spec.cluster is written by Karpenter, which overrides it", "remove it", _at(part, "spec", "cluster")
        )
    for name, value in mapping(spec.get("featureGates")).items():
        if not isinstance(value, bool):
            yield UserDataError(
                f"spec.featureGates.{name} is {_shown(value)}",
                "write true or false",
                _at(part, "spec", "featureGates", name),
            )
    yield from _kubelet(part, mapping(spec.get("kubelet")))
    yield from _containerd(part, mapping(spec.get("containerd")))
    storage = mapping(mapping(spec.get("instance")).get("localStorage"))
    for name in storage:
        if name not in _LOCAL_STORAGE:
            yield UserDataError(
                f"spec.instance.localStorage.{name} is not a field of a NodeConfig, and nodeadm ignores it",
                f"one of {', '.join(sorted(_LOCAL_STORAGE))}",
                _at(part, *_STORAGE, name),
            )
    strategy = storage.get("strategy")
    if strategy == "RAID0":
        yield UserDataError(
            "with spec.instance.localStorage.strategy alone Karpenter does not know the size of the disks",
            "remove it and write nodeClass.instanceStorePolicy: RAID0",
            _at(part, *_STORAGE, "strategy"),
        )
    elif strategy is not None and (not isinstance(strategy, str) or strategy not in ("RAID10", "Mount")):
        yield UserDataError(
            f"strategy {_shown(strategy)} is unknown", "one of RAID10, Mount", _at(part, *_STORAGE, "strategy")
        )


def _kubelet(part: Part, kubelet: Mapping[str, Any]) -> Iterator[UserDataError]:
    owned = {**owned_fields(), "registerWithTaints": _TAINTS}
    for name in mapping(kubelet.get("config")):
        if name in owned:
            yield UserDataError(
                f"spec.kubelet.config.{name} is not seen by Karpenter, which counts with it",
                f"remove it and use {owned[name]}",
                _at(part, "spec", "kubelet", "config", name),
            )
    flags = kubelet.get("flags")
    for index, flag in enumerate(flags if isinstance(flags, list) else ()):
        name = flag.partition("=")[0] if isinstance(flag, str) else ""
        if name in _FLAGS:
            yield UserDataError(
                f"the kubelet's flag {name} is set by Karpenter",
                f"remove it and use {_FLAGS[name]}",
                _at(part, "spec", "kubelet", "flags", index),
            )


def _containerd(part: Part, containerd: Mapping[str, Any]) -> Iterator[UserDataError]:
    config = containerd.get("config")
    if config is None:
        return
    line = _at(part, "spec", "containerd", "config")
    if not isinstance(config, str):
        yield UserDataError("spec.containerd.config is not text", "write TOML as a block: config: |", line)
        return
    try:
        tomllib.loads(config)
    except tomllib.TOMLDecodeError as error:
        yield UserDataError(f"spec.containerd.config is not valid TOML: {error}", "correct it", line)


def _shown(value: Any) -> str:
    """A value in words; a collection may be huge, through aliases."""
    return repr(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _at(part: Part, *path: str | int) -> int:
    """The line of the whole text on which something of the NodeConfig is written; of its nearest parent if need be."""
    node, line = yaml.compose(part.text, Loader=yaml.SafeLoader), part.line
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == str(key)), None)
            if found is None:
                break
            (name, node) = found
            line = part.line + name.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            node = node.value[key]
            line = part.line + node.start_mark.line
    return line
