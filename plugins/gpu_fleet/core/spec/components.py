"""The components that the package installs: Karpenter, the RuntimeClass, the NVIDIA device plugin."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gpu_fleet.core.kubernetes.names import DEVICE_PLUGIN_NAMESPACE, DEVICE_PLUGIN_RELEASE, KARPENTER_NAMESPACE
from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.problems import shortened
from gpu_fleet.core.spec.types.names import ChartRepository, Digest, DnsLabel, ExactVersion

_MANAGE = "false: the package waits for this component but changes nothing in it (Terraform, Argo CD, … manages it)."


def _queue(value: str) -> str:
    """What to write instead of an ARN or URL."""
    name = re.fullmatch(r"(?:arn:[\w-]+:sqs:[\w-]*:[0-9]*:|https?://\S*/)([\w-]{1,80})", value, re.ASCII)
    if name is not None:
        what = "ARN" if value.startswith("arn:") else "URL"
        return f"{value!r} is the queue's {what}; write the queue's name, {name[1]}"
    return (
        f"{shortened(value)} is not the name of an SQS queue; write its name, at most 80 letters, digits, '-' and '_' "
        "(the last part of its ARN or URL)"
    )


def _daemon_set(value: str) -> str:
    return f"{value!r} does not name a DaemonSet; write namespace/name, for example kube-system/efa-device-plugin"


DaemonSetName = Annotated[str, Pattern(r"[a-z0-9.-]+/[a-z0-9.-]+", _daemon_set)]
QueueName = Annotated[str, Pattern(r"[0-9A-Za-z_-]{0,80}", _queue)]


#: The first release of Karpenter that asks EC2 for scheduled events (aws/karpenter-provider-aws#9064).
POLLS_EC2_SINCE = (1, 12, 0)


class KarpenterChart(SpecModel):
    """Where the charts `karpenter-crd` and `karpenter` come from; both always have the same version."""

    repository: ChartRepository = Field(
        default="oci://public.ecr.aws/karpenter",
        description="OCI registry prefix or chart repository URL, without a trailing slash.",
    )
    version: ExactVersion = Field(default="1.14.1", description="Exact chart version, no range.")
    digest: Digest | None = Field(
        default=None, description="sha256 of the `karpenter` chart archive; a different archive is refused."
    )
    crd_digest: Digest | None = Field(
        default=None, description="sha256 of the `karpenter-crd` chart archive; a different archive is refused."
    )


class Karpenter(SpecModel):
    """Karpenter, which launches the nodes."""

    manage: bool = Field(default=True, description=_MANAGE)
    namespace: DnsLabel = Field(
        default=KARPENTER_NAMESPACE,
        description="kube-system: its API priority keeps Karpenter alive under load (Karpenter's own recommendation).",
    )
    chart: KarpenterChart = Field(default_factory=KarpenterChart)
    interruption_queue: QueueName | None = Field(
        default="",
        description="Name of the SQS queue from which Karpenter reads interruptions (not its ARN or URL). Needed if a "
        "pool may buy spot: without a queue Karpenter reads no interruption notices. null: accept that.",
    )
    replicas: int = Field(
        default=2, ge=1, le=5, description="Controller pods; 2 survive the loss of one system node (one is the leader)."
    )
    node_overlays: bool = Field(
        default=True,
        description="true: apply a NodeOverlay for each shared pool and enable Karpenter's feature gate for it "
        "(settings.featureGates.nodeOverlay), so that Karpenter counts shares. Without it, N pods that ask for one "
        "share each buy N nodes at once, up to the pool's limits. NodeOverlay is ALPHA in Karpenter (v1alpha1): its "
        "API may change with a minor version, and the gate also makes Karpenter apply NodeOverlays of others. "
        "false: neither.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Extra chart values under `settings`; they must not contradict the spec."
    )
    values: dict[str, Any] = Field(
        default_factory=dict, description="Extra chart values, merged last; they must not contradict the spec."
    )

    @property
    def may_poll_ec2(self) -> bool:
        """Whether Karpenter may ask EC2 for scheduled events and failed status checks, with a queue or without.

        It does from v1.12.0 on (aws/karpenter-provider-aws upgrade guide, "Upgrading to 1.12.0+"), if its role may. The
        version of a Karpenter that others manage is unknown here.
        """
        numbers = tuple(int(each) for each in re.findall(r"\d+", self.chart.version)[:3])
        return not self.manage or numbers >= POLLS_EC2_SINCE


class RuntimeClass(SpecModel):
    """The RuntimeClass `nvidia`; it must exist before the device plugin, or no plugin pod can be created."""

    manage: bool = Field(default=True, description=_MANAGE)


class DevicePluginChart(SpecModel):
    """Where the device plugin's chart comes from."""

    repository: ChartRepository = Field(
        default="https://nvidia.github.io/k8s-device-plugin",
        description="Chart repository URL or OCI registry prefix, without a trailing slash.",
    )
    name: str = Field(default=DEVICE_PLUGIN_RELEASE, min_length=1, description="Chart name in the repository.")
    version: ExactVersion = Field(default="0.20.0", description="Exact chart version, no range.")
    digest: Digest | None = Field(
        default=None, description="sha256 of the chart archive; a different archive is refused."
    )


class DevicePlugin(SpecModel):
    """The NVIDIA device plugin: one release for all pools, one config entry per distinct sharing."""

    manage: bool = Field(
        default=True,
        description="false: a device plugin that others install serves the pools' nodes; the package installs none, "
        "checks that exactly one is there, and compares its config with `sharing`.",
    )
    coexists_with: tuple[DaemonSetName, ...] = Field(
        default=(),
        max_length=50,
        description="`namespace/name` of DaemonSets that mount the kubelet's device-plugin folder but do not serve "
        "nvidia.com/gpu; any other on our nodes is refused. NVIDIA's own plugin cannot be listed here.",
    )
    namespace: DnsLabel = Field(
        default=DEVICE_PLUGIN_NAMESPACE, description="Never `default`: the chart refuses to be installed there."
    )
    chart: DevicePluginChart = Field(default_factory=DevicePluginChart)
    device_list_strategy: Literal["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"] = Field(
        default="envvar", description="How a container learns its GPUs; `envvar` is the chart's own default."
    )
    values: dict[str, Any] = Field(
        default_factory=dict, description="Extra chart values, merged last; they must not contradict the spec."
    )

    @field_validator("namespace")
    @classmethod
    def _not_default(cls, value: str) -> str:
        if value == "default":
            raise ValueError("the chart refuses namespace 'default'; use nvidia-device-plugin")
        return value
