"""What is checked and made ready before a release is touched: the chart, the values, the namespace."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import yaml

from gpu_fleet.core.errors import AlreadyExists, Conflict, NotFound
from gpu_fleet.core.kubernetes.kinds import NAMESPACE, ObjectRef
from gpu_fleet.core.releases.helm.output import error_of
from gpu_fleet.core.releases.request import ReleaseRequest
from gpu_fleet.hooks.helm.binary.command import Helm, dry_run_arguments, template_arguments, write_values
from gpu_fleet.hooks.helm.charts.archives import declared
from gpu_fleet.hooks.helm.gone_kinds import gone_types
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

_TEMPLATE_SECONDS = 60.0
#: Begins each document of what ``helm template`` prints.
_DOCUMENT = "---\n"
#: Errors that are certain without a cluster, and errors that are certain once the cluster was asked: a template may
#: fail because of ``.Capabilities`` or ``lookup``. Anything else is left to the real upgrade.
_CERTAIN = frozenset({"ValuesSchema"})
_CERTAIN_IN_CLUSTER = frozenset({"ValuesSchema", "InvalidManifest", "KubeVersionUnsupported"})


@dataclass(frozen=True)
class Package:
    """What is to be installed, on this machine.

    :ivar chart: the archive, or the directory of a local chart.
    :ivar values: the values file.
    :ivar declared: name and version in the Chart.yaml; ``None`` if it has no readable one.
    :ivar rendered: the manifest that this chart and these values make; empty if it is not known.
    """

    chart: Path
    values: Path
    declared: tuple[str, str] | None = None
    rendered: str = ""

    @property
    def chart_name(self) -> str:
        """The chart's name as its archive has it; empty if unknown."""
        return self.declared[0] if self.declared is not None else ""


def package_of(client: KubeClient, request: ReleaseRequest, helm: Helm, chart: Path, *, render: bool) -> Package:
    """Make everything ready for an install or upgrade: values file, checked rendering, namespace.

    :param chart: the chart on this machine.
    :param render: something will be installed, so refuse values that do not render.
    :raises GpuFleetError: the values, the chart or the namespace will not do; no release was touched.
    """
    values = helm.folder / "values.json"
    write_values(request.values, values)
    rendered = check_rendering(client, request, helm, chart, values) if render else ""
    ensure_namespace(client, request)
    return Package(chart, values, declared(chart), rendered)


def check_rendering(client: KubeClient, request: ReleaseRequest, helm: Helm, chart: Path, values: Path) -> str:
    """Refuse bad values before anything is written. If rendering without the cluster fails where the cluster's APIs or
    objects may matter, the cluster is asked.

    :returns: the rendered manifest (of a very large one only its end), empty if it could not be rendered without the
        cluster.
    """
    kube_version = str(client.raw("GET", "/version").get("gitVersion", "")).split("-")[0]
    done = helm.run(template_arguments(request, chart, values, kube_version), deadline_s=_TEMPLATE_SECONDS, quiet=True)
    if done.ok:
        return _whole_documents(done.stdout)
    what = f"rendering of {request}"
    error = error_of(what, done.stderr)
    if error.reason in _CERTAIN:
        raise error
    if error.reason in _CERTAIN_IN_CLUSTER:
        log.info("%s; asking the cluster", error)
        arguments = dry_run_arguments(request, chart, values)
        done = helm.run_in_cluster(arguments, deadline_s=_TEMPLATE_SECONDS, quiet=True)
        if done.ok:
            return ""
        error = error_of(what, done.stderr)
        if error.reason in _CERTAIN_IN_CLUSTER:
            raise error
    log.warning("%s; continuing, because helm may succeed with access to the cluster", error)
    return ""


def _whole_documents(manifest: str) -> str:
    """The manifest from the beginning of a document on: the end of helm's output that is kept may begin anywhere."""
    if manifest.startswith(_DOCUMENT):
        return manifest
    _, separator, rest = manifest.partition(f"\n{_DOCUMENT}")
    return separator.lstrip() + rest if separator else manifest


def unknown_kinds(client: KubeClient, manifest: str) -> tuple[str, ...]:
    """``Kind (apiVersion)`` of the objects whose kind the cluster does not have; helm's own message may name none.

    It only explains another error: if the manifest cannot be read, nothing is named.
    """
    try:
        gone = gone_types(client, manifest)
    except yaml.YAMLError as error:
        log.debug("the rendered manifest cannot be read: %s", error)
        return ()
    return tuple(
        f"{kind} ({api_version}{f'; it is served as {served}' if served else ''})"
        for (api_version, kind), served in sorted(gone.items())
    )


def ensure_namespace(client: KubeClient, request: ReleaseRequest) -> None:
    """
    :raises NotFound: if the namespace is missing and may not be created.
    :raises Conflict: while it is being deleted.
    """
    name = request.namespace
    found = client.get(ObjectRef(NAMESPACE, name))
    if found is None:
        if not request.policy.create_namespace:
            raise NotFound(
                f"namespace: there is no namespace {name!r} for {request}; create it, or set create_namespace",
                reason="NamespaceMissing",
            )
        try:
            client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        except AlreadyExists:
            log.info("namespace %s was created by another client meanwhile", name)
    elif (found.get("metadata") or {}).get("deletionTimestamp"):
        raise Conflict(
            f"{request}: namespace {name!r} is being deleted; run again when it is gone",
            reason="NamespaceTerminating",
        )
