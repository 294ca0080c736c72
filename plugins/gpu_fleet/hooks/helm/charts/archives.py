"""Pulls chart archives to the worker before anything is written to a cluster; digest checked, cached."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import yaml

from gpu_fleet.core.errors import DeadlinePassed, SpecError, TransientError
from gpu_fleet.core.releases.charts.archives import MIRRORS_VARIABLE, cache_name, check_digest, mirrored, parse_mirrors
from gpu_fleet.core.releases.charts.archives import pull_arguments as _pull_arguments
from gpu_fleet.core.releases.helm.output import pull_error
from gpu_fleet.core.releases.request import ChartRef
from gpu_fleet.hooks.helm.binary.command import Helm

log = logging.getLogger(__name__)

#: Folder of the cache. Charts of an exact version should never change; a digest detects one that was re-tagged.
CACHE_VARIABLE = "GPU_FLEET_CHART_CACHE"
_PULL_SECONDS = 120.0
_CHART_FILE = "Chart.yaml"
#: Folders of version control: a commit does not change the chart.
_NO_CONTENT = frozenset({".git", ".hg", ".svn"})


def cache_folder() -> Path:
    """The cache folder, private to the user."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gpu-fleet" / "charts"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_chart(chart: ChartRef, *, stop: Callable[[], str] = lambda: "", cached: bool = True) -> Path:
    """Path of the chart's archive (or, for a local chart, of its directory).

    :param cached: accept an archive that was pulled before.
    :raises SpecError: digest mismatch, missing local path, bad mirror setting.
    :raises Invalid: the repository has no such chart or version.
    :raises ApiUnavailable: repository or registry unreachable.
    """
    if not chart.repository:
        return _local(chart)
    source = mirrored(chart, parse_mirrors(os.environ.get(MIRRORS_VARIABLE)))
    kept = cache_folder() / cache_name(source)
    if cached and kept.is_file():
        found = sha256_of(kept)
        if not chart.sha256 or chart.sha256 == found:
            return kept
        log.warning("cached archive of %s has another sha256 (%s) than wanted; pulling it again", chart, found)
    return _pull(chart, source, kept, stop)


def identified(chart: ChartRef) -> ChartRef:
    """The same reference; of a local chart with the hash of the files at its path now.

    :raises SpecError: there is no chart at that path, or it cannot be read.
    """
    if chart.repository:
        return chart
    path = _path(chart)
    try:
        content = sha256_of(path) if path.is_file() else _tree_hash(path)
        return replace(chart, content=content, declared=declared(path))
    except OSError as error:
        raise SpecError(
            f"chart {path} cannot be read: {error}", field="chart", remedy="let the worker's user read every file of it"
        ) from error


def declared(path: Path) -> tuple[str, str] | None:
    """Name and version in the Chart.yaml of an archive or directory; ``None`` if it has no readable one, which helm
    will refuse itself."""
    try:
        metadata = yaml.safe_load(_chart_yaml(path))
    except (OSError, tarfile.TarError, EOFError, zlib.error, yaml.YAMLError):
        return None
    if not isinstance(metadata, dict) or not metadata.get("name"):
        return None
    return str(metadata["name"]), str(metadata.get("version", ""))


def _chart_yaml(path: Path) -> bytes:
    if path.is_dir():
        return (path / _CHART_FILE).read_bytes()
    with tarfile.open(path) as archive:
        for member in archive:
            # Deeper ones are those of subcharts.
            if member.isfile() and PurePosixPath(member.name).name == _CHART_FILE and _depth(member.name) == 1:
                file = archive.extractfile(member)
                return file.read() if file is not None else b""
    return b""


def _depth(name: str) -> int:
    return len([part for part in PurePosixPath(name).parts if part != "."]) - 1


def _tree_hash(root: Path) -> str:
    """sha256 over path and content of every file, independent of order, times and modes. Links are followed, as helm
    does."""
    found: list[tuple[str, str]] = []
    for name, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(name)
        folders[:] = [item for item in folders if item not in _NO_CONTENT and not _leads_back(here, item)]
        found += [((here / item).relative_to(root).as_posix(), sha256_of(here / item)) for item in files]
    lines = "".join(f"{digest} {path}\n" for path, digest in sorted(found))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _raise(error: OSError) -> None:
    raise error


def _leads_back(folder: Path, name: str) -> bool:
    return (folder / name).is_symlink() and folder.resolve().is_relative_to((folder / name).resolve())


def _path(chart: ChartRef) -> Path:
    path = Path(chart.name).expanduser().absolute()  # helm runs in another working directory
    if not path.exists():
        raise SpecError(f"there is no chart {path}", field="chart", remedy="name an archive or set repository")
    return path


def _local(chart: ChartRef) -> Path:
    path = _path(chart)
    if path.is_file():
        check_digest(chart, sha256_of(path))
    elif chart.digest:
        raise SpecError(f"{path} is a directory, which has no digest", field="digest", remedy="package the chart")
    return path


def _pull(chart: ChartRef, source: ChartRef, cached: Path, stop: Callable[[], str]) -> Path:
    what = f"pull of chart {source}"
    with Helm(stop=stop) as helm:
        destination = helm.folder / "pulled"
        destination.mkdir()
        _ = helm.version
        done = helm.run(_pull_arguments(source, str(destination)), deadline_s=_PULL_SECONDS, quiet=True)
        if done.ended_by == "deadline":
            raise DeadlinePassed(
                f"{what}: not finished after {_PULL_SECONDS:.0f} s; check the address and the network, or set a "
                f"mirror in {MIRRORS_VARIABLE}"
            )
        if done.ended_by:
            raise TransientError(f"{what}: {done.ended_by}", reason="Interrupted")
        archives = sorted(destination.glob("*.tgz"))
        if not done.ok or len(archives) != 1:
            raise pull_error(what, done.stderr or done.stdout)
        found = sha256_of(archives[0])
        check_digest(chart, found)
        log.info("pulled chart %s (sha256 %s)", source, found)
        return _keep(archives[0], cached)


def _keep(archive: Path, cached: Path) -> Path:
    """Move an archive into the cache in one step, so that no other process ever reads half of one."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=cached.parent, suffix=".part")
        os.close(descriptor)
        try:
            shutil.copyfile(archive, name)
            os.replace(name, cached)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise TransientError(
            f"chart cache {cached.parent} cannot be written: {error.strerror or error}; set {CACHE_VARIABLE}",
            reason="ChartCacheUnwritable",
        ) from error
    return cached
