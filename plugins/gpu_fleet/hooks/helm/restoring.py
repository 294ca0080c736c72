"""The proven content as a new request, for a release that must not be rolled back to it as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gpu_fleet.core.errors import ReleaseError
from gpu_fleet.core.releases.components import restored_request
from gpu_fleet.core.releases.decide import PRUNED
from gpu_fleet.core.releases.request import ChartRef, ReleaseRequest, content_digest
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.hooks.helm.charts.archives import fetch_chart, sha256_of
from gpu_fleet.hooks.helm.storage import ReleaseStorage

log = logging.getLogger(__name__)


def restoring_request(
    storage: ReleaseStorage, request: ReleaseRequest, seen: Observation, stop: Callable[[], str]
) -> ReleaseRequest:
    """The proven revision's chart version and values, with what living nodes need added.

    :param request: what is wanted today: release, repository, policy, and what is needed.
    :param stop: a non-empty answer ends a download of the chart.
    :raises ReleaseError: the proven revision is no longer stored, or its chart version is another archive now.
    """
    entry, stored = seen.ledger.proven, seen.proven
    payload = storage.payload(stored) if stored is not None else None
    if payload is None or entry is None:
        raise ReleaseError(f"{request}: its proven revision is no longer in Helm's history", reason=PRUNED)
    restored = restored_request(request, payload)
    values = payload.get("config") or {}
    return replace(restored, chart=_as_proven(restored.chart, values, entry.digest, request, stop))


def _as_proven(
    chart: ChartRef, values: Mapping[str, Any], digest: str, request: ReleaseRequest, stop: Callable[[], str]
) -> ChartRef:
    """The chart, pinned to the archive that was proven if it was pinned then; found from the content digest.

    :raises ReleaseError: ``OtherArchive``: charts are pinned, and that version is another archive now.
    """
    if not chart.repository:
        return request.chart
    if content_digest(chart, values) == digest:
        return chart  # it was not pinned when it was proven
    pinned = replace(chart, digest=sha256_of(fetch_chart(chart, stop=stop)))
    if content_digest(pinned, values) == digest:
        return pinned
    if not request.chart.digest:
        log.warning("%s: it cannot be verified that chart %s is the archive that was proven", request, chart)
        return chart
    raise ReleaseError(
        f"{request}: chart {chart} is not the archive that was proven, and charts are locked to "
        "their digests: find out why it was replaced, or correct devicePlugin in the cluster file and run again",
        reason="OtherArchive",
    )
