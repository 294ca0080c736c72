"""The effects of the faults that are set on the GPUs of one node.

============================  ==========================================================================================
``gpu-lost``                  ``count`` GPUs (1) are unhealthy and the driver no longer lists them
``xid``                       ``code`` (79) was reported for a GPU
``driver-version``            the driver is ``value``
``split-sharers``             every second sharer sees another GPU than the one it got
``starved-sharer``            one of a GPU's sharers gets ``share`` (0.05) of it
``mps-daemon-absent``         the MPS control daemon ends as soon as it is started
``no-sharing-block``,
``advertise-replicas``,
``gpu-never-registers``       what the device plugin announces, see :mod:`sandbox.nodes.pods.plugin`
``probe-output``              what probes write, see :mod:`sandbox.nodes.pods.probeoutput`
============================  ==========================================================================================

Each may be limited by ``node`` (a name or a list of names), ``nodeNamePrefix`` and ``pool``. Several of a kind may be
set at a time: ``probe-output:one``, ``probe-output:two``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandbox.nodes.gpus.physical import DRIVER_VERSION, Gpu, gpu_of

Params = dict[str, Any]

#: XIDs that the device plugin ignores as errors of an application (NVIDIA/k8s-device-plugin v0.20.0
#: ``internal/rm/health.go``, ignoredXids).
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
_XID = 79  # the GPU has fallen off the bus
_SHARE = 0.05
_ANNOUNCEMENT = ("no-sharing-block", "advertise-replicas", "gpu-never-registers")


@dataclass(frozen=True)
class GpuFaults:
    """
    :ivar lost: UUIDs of GPUs that are gone.
    :ivar unhealthy: UUID of the GPU that the plugin marks unhealthy for its XID.
    :ivar xid: its code.
    :ivar phantom: a GPU that the node does not have and that sharers see nevertheless.
    :ivar share: what one of a GPU's sharers gets of it, ``None`` if all get the same.
    :ivar announcement: the faults that change what the device plugin announces.
    """

    lost: frozenset[str] = frozenset()
    unhealthy: str | None = None
    xid: int | None = None
    driver: str = DRIVER_VERSION
    phantom: Gpu | None = None
    share: float | None = None
    mps_daemon_absent: bool = False
    announcement: str = ""

    def table(self, gpus: list[Gpu]) -> str:
        """What the driver lists, see :meth:`Gpu.row`."""
        listed = [gpu for gpu in gpus if gpu.uuid not in self.lost] + ([self.phantom] if self.phantom else [])
        return "".join(gpu.row(self.driver) + "\n" for gpu in listed)


def gpu_faults_of(fault: Callable[[str], Params | None], gpus: list[Gpu], instance_id: str) -> GpuFaults:
    """
    :param fault: the parameters of a fault that is set and applies to this node.
    :param gpus: its physical GPUs; a node without GPUs has no GPU faults.
    """
    if not gpus:
        return GpuFaults()
    lost = fault("gpu-lost")
    missing = [gpu.uuid for gpu in gpus[-max(1, int(lost.get("count", 1))) :]] if lost is not None else []
    xid = fault("xid")
    code = None if xid is None else int(xid.get("code", _XID))
    driver, starved = fault("driver-version") or {}, fault("starved-sharer")
    return GpuFaults(
        lost=frozenset(missing),
        unhealthy=gpus[-1].uuid if code is not None and code not in APPLICATION_XIDS else None,
        xid=code,
        driver=str(driver.get("value", DRIVER_VERSION)),
        phantom=gpu_of(instance_id, len(gpus), gpus[0].product) if fault("split-sharers") is not None else None,
        share=None if starved is None else float(starved.get("share", _SHARE)),
        mps_daemon_absent=fault("mps-daemon-absent") is not None,
        announcement=repr([fault(name) for name in _ANNOUNCEMENT]),
    )
