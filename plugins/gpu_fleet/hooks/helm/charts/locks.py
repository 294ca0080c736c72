"""Reads and writes the lock file of chart archives: ``charts.lock.yaml`` beside the folder of cluster files."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.charts.locks import (
    Locked,
    LockFile,
    charts_of,
    locked_spec,
    parse_locks,
    render_locks,
    unlocked_charts,
)
from gpu_fleet.core.releases.request import ChartRef
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.files.clusters import clusters_dir, read_cluster_file
from gpu_fleet.hooks.helm.charts.archives import fetch_chart, sha256_of

log = logging.getLogger(__name__)

LOCK_FILE = "charts.lock.yaml"
_HEAD = "# Written by `python -m gpu_fleet lock`. A run installs exactly these archives.\n"


def lock_path(folder: Path | None = None) -> Path:
    """Where the lock file of a folder of cluster files is, if there is one: ``include/charts.lock.yaml``."""
    return (folder or clusters_dir()).resolve().parent / LOCK_FILE


def read_locks(path: Path) -> LockFile | None:
    """What the lock file says; ``None`` without a file.

    :raises SpecError: if it cannot be read.
    """
    if not path.exists():
        return None
    return parse_locks(read_cluster_file(path).value, path.name)


def apply_locks(spec: ClusterSpec, folder: Path | None = None) -> ClusterSpec:
    """The spec with the lock file's digests; the spec itself without a lock file. Says which charts stay unlocked.

    :raises SpecError: a chart is not locked, or locked to another digest than the spec's.
    """
    path = lock_path(folder)
    locks = read_locks(path)
    if locks is None:
        return spec
    locked = locked_spec(spec, locks, path.name)
    for chart in unlocked_charts(spec, locks):
        log.info("%s is not in %s: it is pinned by its version, not by its digest", chart, path.name)
    return locked


def resolve_locks(specs: Iterable[ClusterSpec]) -> tuple[Locked, ...]:
    """Pull every chart of the clusters (through the configured mirrors, not from the cache) and compute its digest.

    :raises GpuFleetError: a chart cannot be pulled; nothing is written then.
    """
    wanted: dict[tuple[str, str, str], ChartRef] = {}
    for spec in specs:
        for chart in charts_of(spec):
            wanted[(chart.repository.rstrip("/"), chart.name, chart.version)] = chart
    found = []
    for (repository, name, version), chart in sorted(wanted.items()):
        archive = fetch_chart(ChartRef(chart.name, chart.version, chart.repository), cached=False)
        found.append(Locked(repository, name, version, f"sha256:{sha256_of(archive)}"))
    return tuple(found)


def write_locks(path: Path, locks: LockFile) -> None:
    """Write the lock file in one step.

    :raises SpecError: if it cannot be written.
    """
    text = _HEAD + yaml.safe_dump(render_locks(locks), sort_keys=False, width=120, allow_unicode=True)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{LOCK_FILE}-", delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}", remedy="check its folder") from error
