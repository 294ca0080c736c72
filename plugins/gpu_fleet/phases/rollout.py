"""Rollout: the RuntimeClass, and once it exists, the device plugin's Helm release.

Until a GPU node exists, the plugin's DaemonSet wants no pods, so the release stays *unproven* here; see ``prove``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup

from gpu_fleet.core.kubernetes.names import RUNTIME_CLASS_NAME
from gpu_fleet.operators.helm.releases import InstallReleaseOperator
from gpu_fleet.operators.objects.apply import ApplyManifestsOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.sensors.gate import GateSensor

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def rollout(spec: ClusterSpec) -> Phase:
    """The RuntimeClass strictly before the plugin: its pods name it, and are refused while it is missing."""
    tasks: list[Any] = []
    with TaskGroup("rollout", tooltip="RuntimeClass, then the NVIDIA device plugin"):
        exists = GateSensor(
            task_id="runtime_class_exists",
            gate="object_exists",
            args={"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": RUNTIME_CLASS_NAME},
        )
        heads, tails = [exists], [exists]
        tasks.append(exists)
        if spec.runtime_class.manage:
            apply = ApplyManifestsOperator(task_id="apply_runtime_class", builder="runtime_class")
            apply >> exists
            heads = [apply]
            tasks.append(apply)
        if spec.device_plugin.manage:
            install = InstallReleaseOperator(task_id="install_device_plugin", component="device-plugin")
            exists >> install
            tails = [install]
            tasks.append(install)
    return Phase(heads=heads, tails=tails, tasks=tasks)
