"""The chart lock file: which archive each chart version was when the file was written. Pure.

::

    others: by-version   # or refuse, the default
    charts:
      - {repository: "https://nvidia.github.io/k8s-device-plugin", name: nvidia-device-plugin, version: 0.20.0,
         digest: "sha256:…", source: "where the digest was published"}

A chart that is in the lock file is installed from exactly that archive, and a spec's own ``digest`` must agree with it.
Any other chart is refused, unless ``others`` says that it is pinned by its version alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.components import COMPONENTS, chart_of
from gpu_fleet.core.releases.request import ChartRef
from gpu_fleet.core.spec import ClusterSpec

REMEDY = "run python -m gpu_fleet lock, look at the change, and commit it"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FIELDS = ("repository", "name", "version", "digest")
_SOURCE = "source"
#: What happens to a chart that is not in the file, by the value of ``others``: is it installed?
_BY_VERSION = "by-version"
_OTHERS = {"refuse": False, _BY_VERSION: True}


@dataclass(frozen=True, order=True)
class Locked:
    """One chart's archive.

    :ivar repository: the real one, never a mirror.
    :ivar digest: sha256 of the archive, with its prefix.
    :ivar source: where and when that digest was published; for people, not compared.
    """

    repository: str
    name: str
    version: str
    digest: str
    source: str = field(default="", compare=False)

    def is_chart(self, chart: ChartRef) -> bool:
        return (self.repository, self.name, self.version) == (chart.repository.rstrip("/"), chart.name, chart.version)


@dataclass(frozen=True)
class LockFile:
    """What a lock file says.

    :ivar others: charts that are not in it are installed, pinned by their version alone; otherwise they are refused.
    """

    charts: tuple[Locked, ...]
    others: bool = False

    def digest_of(self, chart: ChartRef) -> str | None:
        """The digest that the chart is locked to; ``None`` if it is not in the file."""
        return next((item.digest for item in self.charts if item.is_chart(chart)), None)


def parse_locks(value: Any, where: str) -> LockFile:
    """The contents of a lock file.

    :param value: the YAML document.
    :param where: the file's name, for messages.
    :raises SpecError: naming the malformed entry.
    """
    entries = value.get("charts") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise SpecError("holds no list 'charts'", field=where, remedy=REMEDY)
    others = value.get("others", "refuse")
    unknown = sorted(map(str, set(value) - {"charts", "others"}))
    if unknown or not isinstance(others, str) or others not in _OTHERS:
        raise SpecError(
            f"has an unknown key {unknown[0]!r}" if unknown else f"others is {others!r}",
            field=where,
            remedy=f"beside charts, a lock file has only others: {' or '.join(_OTHERS)}",
        )
    found: dict[tuple[str, str, str], Locked] = {}
    for index, entry in enumerate(entries):
        locked = _entry(entry, f"{where}: charts[{index}]")
        chart = (locked.repository, locked.name, locked.version)
        if found.setdefault(chart, locked) != locked:
            raise SpecError(
                f"{locked.name} {locked.version} has two digests, {found[chart].digest} and {locked.digest}",
                field=f"{where}: charts[{index}].digest",
                remedy=REMEDY,
            )
    return LockFile(tuple(sorted(found.values())), _OTHERS[others])


def _entry(entry: Any, where: str) -> Locked:
    """
    :raises SpecError: it is malformed.
    """
    if not isinstance(entry, Mapping) or sorted(map(str, set(entry) - {_SOURCE})) != sorted(_FIELDS):
        raise SpecError(f"must have {', '.join(_FIELDS)}, and may have {_SOURCE}", field=where, remedy=REMEDY)
    repository, name, version, digest = (str(entry[key]) for key in _FIELDS)
    locked = Locked(repository, name, version, digest, str(entry.get(_SOURCE, "")))
    if not _DIGEST.fullmatch(locked.digest):
        raise SpecError(f"{locked.digest!r} is not a sha256", field=f"{where}.digest", remedy=REMEDY)
    return locked


def render_locks(locks: LockFile) -> dict[str, Any]:
    """The YAML document of a lock file, in a fixed order."""
    charts = [
        {name: getattr(item, name) for name in _FIELDS} | ({_SOURCE: item.source} if item.source else {})
        for item in sorted(set(locks.charts))
    ]
    return {"others": _BY_VERSION, "charts": charts} if locks.others else {"charts": charts}


def charts_of(spec: ClusterSpec) -> tuple[ChartRef, ...]:
    """The charts that the spec's managed components install."""
    unmanaged = set() if spec.karpenter.manage else {"karpenter-crd", "karpenter"}
    if not spec.device_plugin.manage:
        unmanaged.add("device-plugin")
    return tuple(chart_of(spec, item) for item in COMPONENTS if item not in unmanaged)


def unlocked_charts(spec: ClusterSpec, locks: LockFile) -> tuple[ChartRef, ...]:
    """The charts of the spec that neither the lock file nor the spec itself pins by digest."""
    return tuple(chart for chart in charts_of(spec) if locks.digest_of(chart) is None and not chart.sha256)


def locked_spec(spec: ClusterSpec, locks: LockFile, where: str) -> ClusterSpec:
    """The spec with the digests of the lock file filled in.

    :raises SpecError: a chart is not in a lock file that refuses others, or the spec wants another digest.
    """
    digests: dict[str, str | None] = {}
    for chart in charts_of(spec):
        found = locks.digest_of(chart)
        if found is None and not locks.others:
            raise SpecError(f"{chart} is not in {where}", field="chart", remedy=REMEDY, reason="ChartNotLocked")
        wanted = f"sha256:{chart.sha256}" if chart.sha256 else None
        if found is not None and wanted not in (None, found):
            raise SpecError(
                f"the cluster file wants {chart} with {wanted}, {where} has {found}",
                field="chart.digest",
                remedy="correct one of them",
                reason="ChartLockDiffers",
            )
        digests[chart.name] = found or wanted
    karpenter, plugin = spec.karpenter, spec.device_plugin
    if karpenter.manage:
        update = {"digest": digests["karpenter"], "crd_digest": digests["karpenter-crd"]}
        karpenter = karpenter.model_copy(update={"chart": karpenter.chart.model_copy(update=update)})
    if plugin.manage:
        update = {"digest": digests[plugin.chart.name]}
        plugin = plugin.model_copy(update={"chart": plugin.chart.model_copy(update=update)})
    return spec.model_copy(update={"karpenter": karpenter, "device_plugin": plugin})
