"""What is wrong with a node's GPUs, from its capacity *and* its allocatable: one rule for all callers. Pure.

The capacity gate, the device plugin's proof and validation must give the same answer. Broken hardware is never blamed
on the config, and a wrong config never on the hardware.

The kubelet puts every device that a plugin has announced into the capacity, and only the healthy ones into allocatable
(kubernetes v1.36 pkg/kubelet/cm/devicemanager/manager.go ``GetCapacity``). So the *capacity* shows how the plugin's
config advertises the GPUs that it found, and the difference to allocatable shows what has been lost since. One XID
marks one device: the whole GPU where GPUs are exclusive, one share where they are shared (NVIDIA/k8s-device-plugin
v0.20.0 internal/rm/health.go maps a GPU's UUID to one of its devices).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from gpu_fleet.core.kubernetes.names import GPU_RESOURCE
from gpu_fleet.core.kubernetes.objects import HARDWARE_CONDITION, PoolNode

#: The EKS node monitoring agent's reason for an XID that calls for a repair (aws/eks-node-monitoring-agent
#: docs/node-health-issues.adoc; milder ones are events, ``NvidiaXID<code>Warning``).
_XID = re.compile(r"NvidiaXID(?P<code>[0-9]+)Error")
#: The agent's reason for a GPU that the driver no longer lists.
_COUNT_MISMATCH = "NvidiaDeviceCountMismatch"

#: Seconds for which the kubelet keeps the devices of a plugin that is gone, as unhealthy ones (kubernetes
#: pkg/kubelet/cm/devicemanager/endpoint.go ``endpointStopGracePeriod``, 5 minutes), and publishes the change after it
#: (``nodeStatusUpdateFrequency``, 10 s).
ENDPOINT_GRACE_S = 315.0


class Cause(StrEnum):
    """What a node's number of GPUs means; the values are the reasons that verdicts carry."""

    AS_PROMISED = "AllocatableAsPromised"
    NOT_REGISTERED = "ResourceNotRegistered"  # no plugin serves, or none has announced a device yet
    LOST = "GpuLost"  # hardware
    NOT_SHARED = "SharingNotApplied"  # config: every GPU is announced once
    OTHER_NUMBER = "AllocatableMismatch"  # config: another number of replicas


#: Reasons that lie in one machine, and neither in a config, nor in a release, nor in another node.
HARDWARE_REASONS = frozenset({Cause.LOST.value, "XidError", "HardwareNotReady"})
#: What the hardware reasons have in common, for a message.
REPLACE = "replace the node (delete its NodeClaim)"


@dataclass(frozen=True)
class Fault:
    """A fault of the hardware that the node itself reports.

    :ivar xid: the code of an XID.
    """

    reason: str
    message: str
    xid: int | None = None
    condition: str = ""


def reported_fault(node: str, hardware: tuple[str, str, str] | None) -> Fault | None:
    """The fault that the EKS node monitoring agent reports; ``None`` if there is none, or no agent.

    :param hardware: status, reason and message of the condition :data:`HARDWARE_CONDITION`.
    """
    if hardware is None or hardware[0] != "False":
        return None
    _, reason, message = hardware
    words = f"node {node}: {HARDWARE_CONDITION} is False, {reason}: {message}".rstrip(": ")
    if xid := _XID.fullmatch(reason):
        return Fault("XidError", words, xid=int(xid["code"]))
    if reason == _COUNT_MISMATCH:
        return Fault(Cause.LOST.value, words)
    return Fault("HardwareNotReady", words, condition=reason)


@dataclass(frozen=True)
class Count:
    """The rule's answer.

    :ivar message: a sentence that names the node and its numbers.
    """

    cause: Cause
    message: str

    @property
    def right(self) -> bool:
        return self.cause is Cause.AS_PROMISED

    @property
    def hardware(self) -> bool:
        return self.cause is Cause.LOST


def vouched_for(started: float | None, initialized_at: float | None, now: float | None) -> bool:
    """Whether 'no healthy device' is reported by the plugin that runs now, and not left over from one that is gone.

    :param started: epoch seconds at which the plugin that serves now started, ``None`` if that is not known.
    :param initialized_at: epoch seconds at which Karpenter found the GPUs registered.
    :param now: epoch seconds of the look; ``None`` if time does not count.
    """
    if started is None:
        return False
    if initialized_at is not None and started <= initialized_at:
        return True
    return now is not None and now - started >= ENDPOINT_GRACE_S


def count(
    node: str, *, allocatable: int | None, capacity: int | None, physical: int, replicas: int, vouched: bool
) -> Count:
    """What a node's numbers mean.

    If the plugin started after a GPU was lost, only the arithmetic is left: other replicas change the number in steps
    of the physical count, lost GPUs in steps of the replicas. If both fit, the config is named.

    :param allocatable: ``nvidia.com/gpu`` in the node's allocatable; ``None``: it does not have the resource.
    :param capacity: ``nvidia.com/gpu`` in the node's capacity; ``None``: it does not have the resource.
    :param physical: GPUs of the node according to EC2.
    :param replicas: how often each GPU is to be advertised.
    :param vouched: see :func:`vouched_for`.
    """
    healthy = allocatable or 0
    announced = max(capacity or 0, healthy)
    if not announced or (not healthy and not vouched):
        return Count(Cause.NOT_REGISTERED, f"node {node} offers no {GPU_RESOURCE}")
    slots = physical * replicas
    cause = _of_announced(announced, physical, replicas)
    unhealthy = announced - healthy
    if cause in (Cause.AS_PROMISED, Cause.LOST) and unhealthy:
        return Count(
            Cause.LOST,
            f"node {node} has {announced} {GPU_RESOURCE}, of which only {healthy} are healthy: a GPU is lost or faulty",
        )
    also = f" (and {unhealthy} of them are unhealthy)" if unhealthy else ""
    match cause:
        case Cause.AS_PROMISED:
            return Count(cause, f"{announced} = {physical} × {replicas}")
        case Cause.LOST:
            left = f"{announced // replicas} of its {physical} GPUs are left"
            return Count(cause, f"node {node} offers {announced} {GPU_RESOURCE}: {left}")
        case Cause.NOT_SHARED:
            return Count(
                cause,
                f"node {node} offers its {physical} GPU(s) unshared, not {slots} shares{also}: no sharing is "
                "configured",
            )
        case _:
            numbers = f"not {slots} ({physical} physical × {replicas})"
            return Count(cause, f"node {node} offers {announced} {GPU_RESOURCE}{also}, {numbers}")


def count_of(node: PoolNode, *, physical: int, replicas: int, vouched: bool) -> Count:
    """:func:`count` for a node as the gates see it."""
    return count(
        node.name,
        allocatable=node.gpus,
        capacity=node.capacity,
        physical=physical,
        replicas=replicas,
        vouched=vouched,
    )


def _of_announced(announced: int, physical: int, replicas: int) -> Cause:
    """What the number of announced devices says about the plugin's config."""
    slots = physical * replicas
    if announced == slots:
        return Cause.AS_PROMISED
    if replicas > 1 and announced == physical:
        return Cause.NOT_SHARED
    if announced < slots and announced % replicas == 0 and (replicas == 1 or announced % physical):
        return Cause.LOST
    return Cause.OTHER_NUMBER
