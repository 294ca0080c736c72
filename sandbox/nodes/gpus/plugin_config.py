"""The NVIDIA device plugin's configuration file: how an entry is chosen and what it means.

After NVIDIA/k8s-device-plugin v0.20.0: ``cmd/config-manager/main.go`` chooses, ``api/config/v1`` parses. Error texts
are the plugin's, because they are what a person finds in its log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

GPU_RESOURCE = "nvidia.com/gpu"
CONFIG_LABEL = "nvidia.com/device-plugin.config"


class ConfigError(Exception):
    """The plugin (or its config manager) exits with this message."""


class Strategy(StrEnum):
    NONE = "none"
    TIME_SLICING = "time-slicing"
    MPS = "mps"


@dataclass(frozen=True)
class Sharing:
    """
    :ivar replicas: devices announced per physical GPU; 1 without sharing.
    :ivar resource: the name they are announced under.
    :ivar one_only: a request for more than one shared device is refused at allocation.
    """

    strategy: Strategy = Strategy.NONE
    replicas: int = 1
    resource: str = GPU_RESOURCE
    one_only: bool = False


@dataclass(frozen=True)
class PluginConfig:
    sharing: Sharing = Sharing()
    fail_on_init_error: bool = True


def choose(entries: dict[str, str], label: str | None, default: str, fallbacks: Iterable[str]) -> str:
    """The entry that a node gets, or ``""`` for the built-in defaults.

    :param label: the node's ``nvidia.com/device-plugin.config``.
    :param default: the chart's ``config.default``.
    :param fallbacks: ``named``, ``single``, ``empty``, in order.
    :raises ConfigError: when nothing fits.
    """
    if not entries:
        raise ConfigError("no configuration files available")
    if label:
        if label not in entries:
            raise ConfigError(f"specified config {label} does not exist")
        return label
    if default:
        if default not in entries:
            raise ConfigError("specified config  does not exist")
        return default
    for fallback in fallbacks:
        if fallback == "named" and "default" in entries:
            return "default"
        if fallback == "single" and len(entries) == 1:
            return next(iter(entries))
        if fallback == "empty":
            return ""
        if fallback not in ("named", "single", "empty"):
            raise ConfigError(f"unknown fallback strategy: {fallback}")
    raise ConfigError("no config was set, no default was provided, and all fallbacks failed")


def parse(text: str) -> PluginConfig:
    """
    :raises ConfigError: as the plugin's start fails, with its chain of messages.
    """
    try:
        document = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError as error:
        raise _unreadable(f"error converting YAML to JSON: yaml: {_first_line(error)}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise _unreadable(_json("cannot unmarshal into Go value of type v1.Config"))
    version = document.get("version") or "v1"
    if version != "v1":
        raise ConfigError(f"{_PREFIX}: unknown version: {version}")
    flags = _mapping(document.get("flags"), "flags")
    sharing = _mapping(document.get("sharing"), "sharing")
    # Both are decoded, so a fault in either stops the plugin; MPS wins when both are there and replicate.
    slicing = _replicated(sharing.get("timeSlicing"), Strategy.TIME_SLICING)
    mps = _replicated(sharing.get("mps"), Strategy.MPS)
    fail = flags.get("failOnInitError")
    return PluginConfig(mps or slicing or Sharing(), fail is not False)


_PREFIX = "unable to parse config file: error parsing config file"


def _unreadable(message: str) -> ConfigError:
    return ConfigError(f"{_PREFIX}: unmarshal error: {message}")


def _json(message: str) -> str:
    return f"error unmarshaling JSON: while decoding JSON: {message}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "number"
        raise _unreadable(_json(f"json: cannot unmarshal {kind} into Go struct field Config.{name}"))
    return value


def _replicated(value: Any, strategy: Strategy) -> Sharing | None:
    """One sharing block, or None if it is absent or about other resources than whole GPUs."""
    if value is None:
        return None
    block = _mapping(value, f"sharing.{strategy}")
    resources = block.get("resources")
    if not resources or not isinstance(resources, list):
        raise _unreadable(_json("no resources specified"))
    found: Sharing | None = None
    for item in resources:
        entry = _mapping(item, "resources")
        if "name" not in entry:
            raise _unreadable(_json("no resource name specified"))
        if "replicas" not in entry:
            raise _unreadable(_json("no replicas specified"))
        replicas = entry["replicas"]
        if isinstance(replicas, bool) or not isinstance(replicas, int):
            raise _unreadable(_json("json: cannot unmarshal string into Go value of type int"))
        if replicas < 2:
            raise _unreadable(_json("number of replicas must be >= 2"))
        if entry["name"] == GPU_RESOURCE or entry["name"] == "gpu":
            one_only = block.get("failRequestsGreaterThanOne", strategy is Strategy.MPS)
            renamed = bool(block.get("renameByDefault"))
            resource = f"{GPU_RESOURCE}.shared" if renamed else GPU_RESOURCE
            found = Sharing(strategy, replicas, resource, bool(one_only))
    return found
