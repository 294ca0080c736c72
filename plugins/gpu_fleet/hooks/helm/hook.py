"""Helm releases of one cluster, for custom tasks: a thin layer over the release engine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.outcome import Outcome
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.releases.state import Finding
from gpu_fleet.core.releases.storage import StoredRevision
from gpu_fleet.hooks.helm.engine import ReleaseEngine
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.eks_token import TOKEN_LIFETIME_S
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook

#: Seconds of the token's life that a command's deadline must leave.
_TOKEN_MARGIN_S = 60


def access_of(value: ClusterAccess | Mapping[str, Any]) -> ClusterAccess:
    """How to reach a cluster, from its JSON form; missing fields are empty.

    :raises SpecError: naming the field.
    """
    if isinstance(value, ClusterAccess):
        return value
    known = [item.name for item in fields(ClusterAccess)]
    if not isinstance(value, Mapping):
        raise SpecError(f"is a {type(value).__name__}", field="access", remedy="a ClusterAccess or its JSON form")
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise SpecError(f"has no field {unknown[0]!r}", field="access", remedy=f"one of {', '.join(known)}")
    if value.get("mode") not in {"eks", "kubeconfig"}:
        raise SpecError(f"{value.get('mode')!r} is not known", field="access.mode", remedy="eks or kubeconfig")
    if value["mode"] == "eks" and not value.get("cluster_name"):
        raise SpecError("is missing", field="access.cluster_name", remedy="name the EKS cluster")
    return ClusterAccess.from_json({name: value.get(name) for name in known})


def check_deadline(access: ClusterAccess, policy: ReleasePolicy) -> None:
    """Refuse a helm command that may outlive its token: helm's token is fixed when it starts, and EKS lets it expire.

    :raises SpecError: naming the field.
    """
    longest = TOKEN_LIFETIME_S - _TOKEN_MARGIN_S
    if access.mode == "eks" and policy.deadline > longest:
        raise SpecError(
            f"a helm command may run for {policy.deadline} s, but EKS accepts its token for {TOKEN_LIFETIME_S} s",
            field="command_deadline",
            remedy=f"at most {longest // 60} minutes; wait for workloads with wait_for, which has no such limit",
        )


class HelmHook:
    """Observes and changes Helm releases of one cluster.

    Every change goes through the release engine: it takes the release's Lease, recovers what an earlier death left,
    and trusts what Helm's storage shows, not helm's exit code.

    :param access: the cluster: a ``ClusterAccess`` or its JSON form, such as ``{"mode": "eks", "cluster_name": …,
        "region": …, "aws_conn_id": …}`` or ``{"mode": "kubeconfig", "path": …, "context": …}``.
    :param identity: who holds the Lease meanwhile; distinct per process. Needed for changes only.
    :param run: ``<dag_id>/<run_id>``, written into the ledger.
    """

    def __init__(self, access: ClusterAccess | Mapping[str, Any], *, identity: str = "", run: str = "") -> None:
        self.access = access_of(access)
        self.identity, self.run = identity, run

    @property
    def client(self) -> KubeClient:
        return KubernetesHook(self.access).client()

    def engine(self, request: ReleaseRequest, *, lease_wait_s: float = 120.0) -> ReleaseEngine:
        """The engine for one request; see :class:`gpu_fleet.hooks.helm.engine.ReleaseEngine`."""
        check_deadline(self.access, request.policy)
        return ReleaseEngine(
            self.client, request, me=self.identity or _identity(), run=self.run, lease_wait_s=lease_wait_s
        )

    # --- looking -------------------------------------------------------------------------------------------------

    def history(self, release_name: str, namespace: str) -> tuple[StoredRevision, ...]:
        """The revisions in Helm's storage, oldest first; empty if there is no such release."""
        return ReleaseStorage(self.client, release_name, namespace).revisions()

    def get_values(self, release_name: str, namespace: str) -> dict[str, Any]:
        """The values that the newest revision was installed with; empty without a release."""
        storage = ReleaseStorage(self.client, release_name, namespace)
        revisions = storage.revisions()
        payload = storage.payload(revisions[-1]) if revisions else None
        return dict((payload or {}).get("config") or {})

    def get_manifest(self, release_name: str, namespace: str) -> str:
        """The newest revision's manifest, hooks not included; empty without a release. May hold Secrets."""
        storage = ReleaseStorage(self.client, release_name, namespace)
        revisions = storage.revisions()
        return storage.manifest(revisions[-1]) if revisions else ""

    def status(self, release_name: str, namespace: str) -> Finding:
        """The release's state, reason and a sentence, seen from what was installed last."""
        return self.engine(self._named(release_name, namespace)).assess()

    # --- changing ------------------------------------------------------------------------------------------------

    def install_or_upgrade(self, request: ReleaseRequest) -> Outcome:
        """Install or upgrade to the wanted content; writes nothing if it is deployed already."""
        return self.engine(request).install()

    def rollback(
        self, release_name: str, namespace: str, revision: int | None = None, policy: ReleasePolicy | None = None
    ) -> Outcome:
        """Roll back to a revision, or to the ledger's proven one."""
        engine = self.engine(self._named(release_name, namespace, policy))
        return engine.remediate() if revision is None else engine.roll_back(revision)

    def uninstall(self, release_name: str, namespace: str, *, keep_kinds: frozenset[str] = frozenset()) -> Outcome:
        """Uninstall the release, or resume an interrupted uninstall."""
        return self.engine(self._named(release_name, namespace)).uninstall(keep_kinds=keep_kinds)

    def test(self, release_name: str, namespace: str, policy: ReleasePolicy | None = None) -> Outcome:
        """Run the chart's tests (``helm test``)."""
        return self.engine(self._named(release_name, namespace, policy)).test()

    def _named(self, release_name: str, namespace: str, policy: ReleasePolicy | None = None) -> ReleaseRequest:
        """A request that only names a release: its chart is whatever is installed."""
        return ReleaseRequest(release_name, namespace, ChartRef(release_name), policy=policy or ReleasePolicy())


def _identity() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
