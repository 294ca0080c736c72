"""The releases that the package itself runs, as requests made of a cluster spec. Pure."""

from __future__ import annotations

from dataclasses import replace

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.names import DEVICE_PLUGIN_RELEASE, KARPENTER_CRD_RELEASE, KARPENTER_NAMESPACE, KARPENTER_RELEASE
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.values import Component, helm_values

COMPONENTS: tuple[Component, ...] = ("karpenter-crd", "karpenter", "device-plugin")

_POLICY = ReleasePolicy(create_namespace=True)


def known_component(component: str) -> Component:
    """
    :raises SpecError: naming the components there are.
    """
    for known in COMPONENTS:
        if known == component:
            return known
    raise SpecError(f"unknown component {component!r}", field="component", remedy=f"one of {', '.join(COMPONENTS)}")


def release_request(spec: ClusterSpec, component: Component) -> ReleaseRequest:
    """What the spec wants of a component's release."""
    values = helm_values(spec, component)
    if component == "device-plugin":
        plugin = spec.device_plugin
        chart = ChartRef(plugin.chart.name, plugin.chart.version, plugin.chart.repository, plugin.chart.digest or "")
        return ReleaseRequest(DEVICE_PLUGIN_RELEASE, plugin.namespace, chart, values, _POLICY)
    source = spec.karpenter.chart
    namespace = spec.karpenter.namespace
    # kube-system exists in every cluster; one that lacks it is not what it seems.
    policy = replace(_POLICY, create_namespace=namespace != KARPENTER_NAMESPACE)
    if component == "karpenter-crd":
        chart = ChartRef("karpenter-crd", source.version, source.repository, source.crd_digest or "")
        return ReleaseRequest(KARPENTER_CRD_RELEASE, namespace, chart, values, policy)
    chart = ChartRef("karpenter", source.version, source.repository, source.digest or "")
    # The chart brings the same CRDs again in crds/, which Helm never upgrades: the release karpenter-crd owns them.
    return ReleaseRequest(KARPENTER_RELEASE, namespace, chart, values, replace(policy, skip_crds=True))
