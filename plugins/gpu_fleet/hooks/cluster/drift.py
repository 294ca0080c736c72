"""Looks for drift between a cluster and its spec; writes nothing, neither to the cluster nor to Helm's storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core import drift as rules
from gpu_fleet.core.device_plugin.neighbours import survey
from gpu_fleet.core.drift import Drift, Unread
from gpu_fleet.core.errors import GpuFleetError, TransientError
from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE, NODE_OVERLAY, NODE_POOL
from gpu_fleet.core.kubernetes.names import FIELD_MANAGER, LABEL_CLUSTER, LABEL_NODE_POOL
from gpu_fleet.core.manifests.in_use import InUse, carried_by, kept_sentences
from gpu_fleet.core.manifests.pool_facts import PoolFacts
from gpu_fleet.core.manifests.values import Component, plugin_configs
from gpu_fleet.core.releases.components import release_request
from gpu_fleet.core.releases.state import classify
from gpu_fleet.core.releases.storage import StorageUnreadable
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.cluster.in_use import observe_in_use
from gpu_fleet.hooks.cluster.neighbours import look_at_neighbours
from gpu_fleet.hooks.cluster.pool_facts import pool_facts
from gpu_fleet.hooks.helm.drift import Look, look_at_manifests, look_at_release
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient

#: The check holds no Lease, so any holder is another process.
_ME = "gpu-fleet drift check"


class DriftCheck:
    """One comparison of a cluster with its spec.

    :ivar drifts: what differs.
    :ivar unread: what could not be compared.
    :ivar compared: how many objects and releases were looked at.
    :ivar notes: facts that are worth mentioning but are not differences.
    """

    def __init__(self, kube: KubeClient, spec: ClusterSpec) -> None:
        self.kube, self.spec = kube, spec
        self.drifts: list[Drift] = []
        self.unread: list[Unread] = []
        self.compared = 0
        self.notes: list[str] = []

    def run(self) -> DriftCheck:
        self._manifests()
        self._surplus()
        self._neighbours()
        for component in rules.managed_releases(self.spec):
            self._release(component)
        return self

    def _manifests(self) -> None:
        managed = rules.managed_manifests(self.spec, self._facts())
        looks = look_at_manifests(self.kube, [item.manifest for item in managed], FIELD_MANAGER)
        for item, look in zip(managed, looks, strict=True):
            if not (item.on_demand and not look.live and look.error is None):
                self._note([look])

    def _facts(self) -> dict[str, PoolFacts]:
        """Hardware and prices, on which NodePools and NodeOverlays depend; a pool without them is not compared."""
        found = {}
        for pool in self.spec.node_pools:
            if pool.manage:
                try:
                    found[pool.name] = pool_facts(self.spec, pool)
                except GpuFleetError as error:
                    self._failed(f"NodePool {pool.name}", error)
        return found

    def _surplus(self) -> None:
        selector = f"{LABEL_CLUSTER}={self.spec.name}"
        for kind in (NODE_POOL, EC2_NODE_CLASS, NODE_OVERLAY):
            try:
                self.drifts += rules.surplus(self.spec, self.kube.list(kind, label_selector=selector))
            except GpuFleetError as error:
                self._failed(f"all of kind {kind.kind}", error)

    def _neighbours(self) -> None:
        """Device plugins of others on our nodes; see ``preflight.check_neighbours``, which refuses them."""
        try:
            conflicts = survey(self.spec, look_at_neighbours(self.kube, self.spec)).conflicts
        except GpuFleetError as error:
            self._failed("the device plugins of others", error)
            return
        drifts, unread = rules.neighbour_drifts(conflicts)
        self.drifts += drifts
        self.unread += unread

    def _release(self, component: Component) -> None:
        request = release_request(self.spec, component)
        storage = ReleaseStorage(self.kube, request.name, request.namespace)
        self.compared += 1
        try:
            if component == "device-plugin":
                request = release_request(self.spec, component, in_use=self._in_use(storage))
            seen = storage.observe(request, me=_ME)
            finding = classify(seen, request.digest, adopt=request.policy.adopt)
            stored: Mapping[str, Any] = {}
            if seen.newest is not None and seen.unreadable is None:
                stored = storage.payload(seen.newest) or {}
            expected = self._proof_expected(component)
        except StorageUnreadable as error:
            self.unread.append(Unread(str(request), "StorageUnreadable", str(error)))
            return
        except GpuFleetError as error:
            self._failed(str(request), error)
            return
        drifts, unread = rules.release_drifts(finding, seen, request, stored, proof_expected=expected)
        self.drifts += drifts
        self.unread += unread
        if finding.reason in rules.DEPLOYED:
            self._note(look_at_release(self.kube, str(stored.get("manifest") or ""), request.name, request.namespace))

    def _in_use(self, storage: ReleaseStorage) -> InUse:
        """What living nodes carry, and which config entries of the release no node carries any more: the next lifecycle
        drops those, and until then they are harmless. An entry in use that is missing is a difference.
        """
        used = observe_in_use(self.kube, self.spec)
        self.notes += kept_sentences(self.spec, used)
        newest = storage.observe().newest
        payload = (storage.payload(newest) if newest is not None else None) or {}
        carried = carried_by(payload.get("config") or {})
        unused = sorted(set(carried.entries) - set(used.entries) - set(plugin_configs(self.spec)))
        self.notes += [
            f"no node carries config entry {entry} any more; the next lifecycle drops it" for entry in unused
        ]
        return used | carried

    def _proof_expected(self, component: Component) -> bool:
        """Whether a proof is expected: nodes prove the device plugin, and there may be none that the spec wants."""
        if component != "device-plugin":
            return True
        wanting = [pool.name for pool in self.spec.node_pools if pool.wanted_nodes]
        if not wanting:
            return False
        return bool(self.kube.list_metadata(NODE, label_selector=f"{LABEL_NODE_POOL} in ({','.join(wanting)})"))

    def _note(self, looks: Iterable[Look]) -> None:
        for look in looks:
            self.compared += 1
            if look.error is not None:
                self._failed(look.target, look.error)
            self.drifts += rules.object_drifts(look.differences, look.live, look.applied)

    def _failed(self, what: str, error: GpuFleetError) -> None:
        transient = isinstance(error, TransientError)
        self.unread.append(Unread(what, error.reason, error.message, transient=transient))
