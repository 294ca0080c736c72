"""The chart lock file: which archive each chart version was when the file was written. Pure.

::

    charts:
      - {repository: "https://nvidia.github.io/k8s-device-plugin", name: nvidia-device-plugin, version: 0.20.0,
         digest: "sha256:…"}

With a lock file every chart that a run installs must be in it; a spec's own ``digest`` must agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.components import COMPONENTS, chart_of
from gpu_fleet.core.releases.request import ChartRef
from gpu_fleet.core.spec import ClusterSpec

REMEDY = "run python -m gpu_fleet lock, look at the change, and commit it"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FIELDS = ("repository", "name", "version", "digest")


@dataclass(frozen=True, order=True)
class Locked:
    """One chart's archive. ``repository`` is the real one, never a mirror."""

    repository: str
    name: str
    version: str
    digest: str

    def is_chart(self, chart: ChartRef) -> bool:
        return (self.repository, self.name, self.version) == (chart.repository.rstrip("/"), chart.name, chart.version)


def parse_locks(value: Any, where: str) -> tuple[Locked, ...]:
    """The entries of a lock file.

    :param value: the YAML document.
    :param where: the file's name, for messages.
    :raises SpecError: naming the malformed entry.
    """
    entries = value.get("charts") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise SpecError("holds no list 'charts'", field=where, remedy=REMEDY)
    found = []
    for index, entry in enumerate(entries):
        field = f"{where}: charts[{index}]"
        if not isinstance(entry, Mapping) or sorted(map(str, entry)) != sorted(_FIELDS):
            raise SpecError(f"must have exactly {', '.join(_FIELDS)}", field=field, remedy=REMEDY)
        locked = Locked(*(str(entry[name]) for name in _FIELDS))
        if not _DIGEST.fullmatch(locked.digest):
            raise SpecError(f"{locked.digest!r} is not a sha256", field=f"{field}.digest", remedy=REMEDY)
        found.append(locked)
    return tuple(sorted(found))


def render_locks(locks: Iterable[Locked]) -> dict[str, Any]:
    """The YAML document of a lock file, in a fixed order."""
    return {"charts": [{name: getattr(item, name) for name in _FIELDS} for item in sorted(set(locks))]}


def charts_of(spec: ClusterSpec) -> tuple[ChartRef, ...]:
    """The charts that the spec's managed components install."""
    unmanaged = set() if spec.karpenter.manage else {"karpenter-crd", "karpenter"}
    if not spec.device_plugin.manage:
        unmanaged.add("device-plugin")
    return tuple(chart_of(spec, item) for item in COMPONENTS if item not in unmanaged)


def locked_spec(spec: ClusterSpec, locks: Iterable[Locked], where: str) -> ClusterSpec:
    """The spec with the digests of the lock file filled in.

    :raises SpecError: a chart is not in the lock file, or the spec wants another digest.
    """
    known = tuple(locks)
    digests = {}
    for chart in charts_of(spec):
        found = next((item.digest for item in known if item.is_chart(chart)), None)
        if found is None:
            raise SpecError(f"{chart} is not in {where}", field="chart", remedy=REMEDY, reason="ChartNotLocked")
        if chart.sha256 and f"sha256:{chart.sha256}" != found:
            raise SpecError(
                f"the cluster file wants {chart} with sha256:{chart.sha256}, {where} has {found}",
                field="chart.digest",
                remedy="correct one of them",
                reason="ChartLockDiffers",
            )
        digests[chart.name] = found
    karpenter, plugin = spec.karpenter, spec.device_plugin
    if karpenter.manage:
        update = {"digest": digests["karpenter"], "crd_digest": digests["karpenter-crd"]}
        karpenter = karpenter.model_copy(update={"chart": karpenter.chart.model_copy(update=update)})
    if plugin.manage:
        update = {"digest": digests[plugin.chart.name]}
        plugin = plugin.model_copy(update={"chart": plugin.chart.model_copy(update=update)})
    return spec.model_copy(update={"karpenter": karpenter, "device_plugin": plugin})
