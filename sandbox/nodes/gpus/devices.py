"""The kubelet's device manager: what plugins have announced on a node, and which pod holds which device.

After kubernetes/kubernetes ``pkg/kubelet/cm/devicemanager/manager.go`` (texts) and NVIDIA/k8s-device-plugin
``internal/rm/allocate.go`` (the ``distributed`` policy).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sandbox.kube.quantities import container_requests
from sandbox.nodes.gpus.physical import Gpu
from sandbox.nodes.gpus.plugin_config import Sharing

_SEPARATOR = "::"


class AdmissionError(Exception):
    """The kubelet refuses the pod for good: ``status.reason`` becomes ``UnexpectedAdmissionError``."""


@dataclass
class Announced:
    """One resource as its plugin announced it. Without a serving plugin its devices count as unhealthy."""

    devices: list[str]
    sharing: Sharing
    healthy: bool = True


def _gpu_of(device: str) -> str:
    return device.partition(_SEPARATOR)[0]


@dataclass
class DeviceManager:
    """Of one node.

    :ivar lost: UUIDs of GPUs whose devices are all unhealthy.
    :ivar unhealthy: UUID of a GPU with a reported XID: *one* of its devices is unhealthy, since the plugin maps a
        UUID to one device even when it announces several for it (``internal/rm/health.go``, ``parentToDeviceMap``).
    """

    announced: dict[str, Announced] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    unhealthy: str | None = None
    _held: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)

    def register(self, gpus: list[Gpu], sharing: Sharing, replicas: int) -> None:
        """A plugin serves: its resource becomes allocatable with its devices, replacing those of another plugin."""
        devices = [gpu.uuid for gpu in gpus]
        if replicas > 1:
            devices = [f"{gpu.uuid}{_SEPARATOR}{replica}" for gpu in gpus for replica in range(replicas)]
        self.announced[sharing.resource] = Announced(devices, sharing)

    def unregister(self, resource: str) -> None:
        """A plugin of the resource has disconnected: allocatable falls to 0, running pods keep what they hold."""
        if resource in self.announced:
            self.announced[resource].healthy = False

    def forget(self) -> None:
        """No plugin has come back in the kubelet's grace: its resources fall to 0 in the capacity, too."""
        for resource in self.announced.values():
            if not resource.healthy:
                resource.devices = []

    def _healthy(self, resource: Announced) -> list[str]:
        if not resource.healthy:
            return []
        unhealthy = next((device for device in reversed(resource.devices) if _gpu_of(device) == self.unhealthy), None)
        return [device for device in resource.devices if device != unhealthy and _gpu_of(device) not in self.lost]

    def capacity(self) -> dict[str, str]:
        return {name: str(len(resource.devices)) for name, resource in self.announced.items()}

    def allocatable(self) -> dict[str, str]:
        return {name: str(len(self._healthy(resource))) for name, resource in self.announced.items()}

    def admit(self, pod: dict[str, Any]) -> None:
        """Give the pod its devices, or nothing at all.

        :raises AdmissionError: with the kubelet's message.
        """
        uid = pod["metadata"]["uid"]
        if uid in self._held:
            return
        granted: dict[str, dict[str, list[str]]] = {}
        for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
            for name, thousandths in container_requests(container).items():
                # The device manager does not handle resources that no plugin has announced.
                if name not in self.announced or thousandths <= 0:
                    continue
                devices = self._pick(name, thousandths // 1000, granted)
                granted.setdefault(container["name"], {})[name] = devices
        self._held[uid] = granted

    def _pick(self, name: str, count: int, granted: dict[str, dict[str, list[str]]]) -> list[str]:
        resource = self.announced[name]
        healthy = self._healthy(resource)
        if not healthy:
            raise _refused(f"no healthy devices present; cannot allocate unhealthy devices {name}")
        holders = [grants for held in self._held.values() for grants in held.values()] + list(granted.values())
        taken = {device for grants in holders for device in grants.get(name, [])}
        free = [device for device in healthy if device not in taken]
        if len(free) < count:
            raise _refused(
                f"requested number of devices unavailable for {name}. Requested: {count}, Available: {len(free)}"
            )
        if count > 1 and resource.sharing.one_only:
            raise _refused(
                f'rpc error: code = Unknown desc = invalid allocation request for "{name}": invalid request: '
                f"maximum request size for shared resources is 1; found {count}"
            )
        load = Counter(_gpu_of(device) for device in taken)
        picked: list[str] = []
        for _ in range(count):
            best = min(free, key=lambda device: (load[_gpu_of(device)], resource.devices.index(device)))
            free.remove(best)
            load[_gpu_of(best)] += 1
            picked.append(best)
        return picked

    def visible_gpus(self, pod_uid: str, container: str) -> list[str]:
        """UUIDs of the GPUs that a container got, each once (its ``NVIDIA_VISIBLE_DEVICES``)."""
        grants = self._held.get(pod_uid, {}).get(container, {})
        return list(dict.fromkeys(_gpu_of(device) for devices in grants.values() for device in devices))

    def holders(self, gpu: str) -> list[str]:
        """UIDs of the pods that hold a device of the GPU, in the order of their admission."""
        return [
            uid
            for uid, held in self._held.items()
            if any(_gpu_of(device) == gpu for grants in held.values() for ids in grants.values() for device in ids)
        ]

    def sharing(self) -> Sharing:
        """How the node's GPUs are shared, as the plugin that serves them has it."""
        return next((each.sharing for each in self.announced.values() if each.healthy), Sharing())

    def free(self, pod_uid: str) -> None:
        """The pod has ended: its devices go back."""
        self._held.pop(pod_uid, None)


def _refused(cause: str) -> AdmissionError:
    return AdmissionError(f"Allocate failed due to {cause}, which is unexpected")
