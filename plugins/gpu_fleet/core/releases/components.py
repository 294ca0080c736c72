"""The releases that the package itself runs, as requests made of a cluster spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.names import (
    DEVICE_PLUGIN_RELEASE,
    KARPENTER_CRD_RELEASE,
    KARPENTER_NAMESPACE,
    KARPENTER_RELEASE,
)
from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE, InUse, needed_values
from gpu_fleet.core.manifests.values import Component, helm_values
from gpu_fleet.core.releases.needed import with_needed
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.spec import ClusterSpec

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


def chart_of(spec: ClusterSpec, component: Component) -> ChartRef:
    """The chart that a component is installed from."""
    if component == "device-plugin":
        plugin = spec.device_plugin.chart
        return ChartRef(plugin.name, plugin.version, plugin.repository, plugin.digest or "")
    source = spec.karpenter.chart
    digest = source.crd_digest if component == "karpenter-crd" else source.digest
    return ChartRef(component, source.version, source.repository, digest or "")


def release_request(spec: ClusterSpec, component: Component, *, in_use: InUse = NOTHING_IN_USE) -> ReleaseRequest:
    """What the spec wants of a component's release.

    :param in_use: what living nodes carry; the device plugin's release keeps it, in upgrades and in rollbacks.
    """
    values, chart = helm_values(spec, component, in_use=in_use), chart_of(spec, component)
    if component == "device-plugin":
        return ReleaseRequest(
            DEVICE_PLUGIN_RELEASE, spec.device_plugin.namespace, chart, values, _POLICY, needed=needed_values(in_use)
        )
    namespace = spec.karpenter.namespace
    # kube-system exists in every cluster: one without it is broken, and must not be given one.
    policy = replace(_POLICY, create_namespace=namespace != KARPENTER_NAMESPACE)
    if component == "karpenter-crd":
        return ReleaseRequest(KARPENTER_CRD_RELEASE, namespace, chart, values, policy)
    # The chart contains the same CRDs in crds/, which Helm never upgrades: the release karpenter-crd owns them.
    return ReleaseRequest(KARPENTER_RELEASE, namespace, chart, values, replace(policy, skip_crds=True))


def restored_request(wanted: ReleaseRequest, proven: Mapping[str, Any], *, digest: str = "") -> ReleaseRequest:
    """The proven revision's chart version and values, with what living nodes need added.

    :param wanted: today's request: release, repository, policy, and what is needed.
    :param proven: the proven revision's decoded payload.
    :param digest: sha256 of the archive of that version, where it is known.
    """
    metadata = (proven.get("chart") or {}).get("metadata") or {}
    chart = replace(wanted.chart, version=str(metadata.get("version") or wanted.chart.version), digest=digest)
    return replace(wanted, chart=chart, values=with_needed(proven.get("config") or {}, wanted.needed))
