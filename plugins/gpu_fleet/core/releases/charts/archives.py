"""Where charts come from: repositories, registries, mirrors, local paths. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.names import short_hash
from gpu_fleet.core.releases.request import ChartRef

#: Environment variable: JSON object, repository or prefix of it -> mirror; for air-gapped networks.
MIRRORS_VARIABLE = "GPU_FLEET_CHART_MIRRORS"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def parse_mirrors(text: str | None) -> dict[str, str]:
    """The mirrors in the variable's value.

    :raises SpecError: if it is not a JSON object of strings.
    """
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SpecError(f"is not JSON: {error}", field=MIRRORS_VARIABLE, remedy='{"<prefix>": "<mirror>"}') from error
    if not isinstance(value, dict) or not all(isinstance(v, str) and v for v in value.values()):
        raise SpecError("is not an object of strings", field=MIRRORS_VARIABLE, remedy='{"<prefix>": "<mirror>"}')
    return {key.rstrip("/"): mirror.rstrip("/") for key, mirror in value.items()}


def mirrored(chart: ChartRef, mirrors: Mapping[str, str]) -> ChartRef:
    """The chart at its mirror: the longest prefix (at a ``/``) of its repository wins, the rest of the path is kept."""
    repository = chart.repository.rstrip("/")
    if not repository:
        return chart
    for prefix in sorted(mirrors, key=len, reverse=True):
        if repository == prefix or repository.startswith(prefix + "/"):
            return replace(chart, repository=mirrors[prefix] + repository[len(prefix) :])
    return replace(chart, repository=repository)


def is_oci(chart: ChartRef) -> bool:
    return chart.repository.startswith("oci://")


def pull_arguments(chart: ChartRef, destination: str) -> list[str]:
    """Arguments of ``helm pull`` for a chart of a repository or registry.

    A registry on this machine is accessed by plain HTTP; any other must have TLS.
    """
    if not is_oci(chart):
        source = [chart.name, "--repo", chart.repository]
    else:
        source = [f"{chart.repository}/{chart.name}"]
        if urlsplit(chart.repository).hostname in _LOOPBACK:
            source.append("--plain-http")
    return ["pull", *source, "--version", chart.version, "--destination", destination]


def cache_name(chart: ChartRef) -> str:
    """File name of a chart archive in the cache: distinct per repository, chart and version."""
    return f"{chart.name}-{chart.version}-{short_hash(chart.repository, chart.name, chart.version)}.tgz"


def check_digest(chart: ChartRef, found: str) -> None:
    """Compare an archive's sha256 (hexadecimal) with the wanted one.

    :raises SpecError: if they differ; nothing has been written to any cluster then.
    """
    if chart.sha256 and chart.sha256 != found:
        raise SpecError(
            f"the archive of {chart} has sha256 {found}, wanted is {chart.sha256}",
            field="digest",
            remedy="find out why the chart changed (a mirror must serve the publisher's archive unchanged), then "
            "correct the digest or the version; for a digest of charts.lock.yaml, run python -m gpu_fleet lock",
            reason="ChartDigestMismatch",
        )
