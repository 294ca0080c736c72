"""Reads and repairs Helm's storage, and keeps the ledger, through the Kubernetes API (no helm process).

A look costs one list of metadata, one GET per payload that matters, one GET of the ledger and one of the Lease; it
writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gpu_fleet.core.errors import AlreadyExists, Conflict, Forbidden, ReleaseError
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, LEASE, SECRET, ObjectRef
from gpu_fleet.core.releases import ledger as ledgers
from gpu_fleet.core.releases import storage
from gpu_fleet.core.releases.lease import lease_name, looks_alive, parse_lease
from gpu_fleet.core.releases.ledger import Ledger
from gpu_fleet.core.releases.needed import lacking
from gpu_fleet.core.releases.objects import TypeId, with_served_types, without_kinds
from gpu_fleet.core.releases.request import ReleaseRequest, same_content
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import ReleaseStatus, StorageUnreadable, StoredRevision
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)


class ReleaseStorage:
    """Storage and ledger of one release.

    :param client: of the release's cluster.
    :param needed: a part of the values that a rollback's target must have, see :class:`ReleaseRequest`.
    :param clock: wall clock, epoch seconds; injected by tests.
    """

    def __init__(
        self,
        client: KubeClient,
        release: str,
        namespace: str,
        *,
        needed: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client, self.release, self.namespace = client, release, namespace
        self._needed = needed or {}
        self._clock = clock

    # --- looking -------------------------------------------------------------------------------------------------

    def observe(self, request: ReleaseRequest | None = None, *, me: str | None = None) -> Observation:
        """One look.

        :param request: to compare the newest revision's content with.
        :param me: own identity; another worker's live Lease is then reported as ``holder``. ``None``: do not look.
        """
        # First: what a holder that ends after this has done is in the rest of the look.
        holder = self.holder(me) if me else None
        revisions = list(self.revisions())
        unreadable, chart, content = None, "", False
        newest = revisions[-1] if revisions else None
        for index, stored in enumerate(revisions):
            if stored is not newest and stored.status is not ReleaseStatus.DEPLOYED:
                continue
            try:
                payload = self.payload(stored)
            except StorageUnreadable as error:
                unreadable = str(error)
                continue
            if payload is None:  # deleted between list and get: the next look will not list it
                continue
            revisions[index] = replace(
                stored, status=storage.payload_status(payload), content=storage.payload_content(payload)
            )
            if stored is newest:
                chart = storage.payload_chart(payload)
                content = request is not None and same_content(payload, request)
        seen = Observation(
            release=self.release,
            namespace=self.namespace,
            revisions=tuple(revisions),
            ledger=self.ledger(),
            holder=holder,
            unreadable=unreadable,
            chart=chart,
            same_content=content,
            now=self._clock(),
        )
        return replace(seen, lacking=self._lacking(seen)) if self._needed else seen

    def _lacking(self, seen: Observation) -> tuple[str, ...]:
        """What the proven revision's values lack; nothing if there is none."""
        if seen.proven is None:
            return ()
        try:
            payload = self.payload(seen.proven)
        except StorageUnreadable as error:
            return (f"its values cannot be read: {error}",)
        return lacking((payload or {}).get("config") or {}, self._needed)

    def revisions(self) -> tuple[StoredRevision, ...]:
        """The stored revisions by their labels, oldest first; payloads are not transferred."""
        selector = storage.label_selector(self.release)
        found = self.client.list_metadata(SECRET, self.namespace, label_selector=selector)
        return storage.parse_revisions(found, self.release)

    def payload(self, stored: StoredRevision) -> dict[str, Any] | None:
        """The decoded release of a revision, ``None`` if its Secret is gone.

        :raises StorageUnreadable: if it cannot be decoded.
        """
        secret = self.client.get(ObjectRef(SECRET, stored.secret, self.namespace))
        return None if secret is None else storage.decode_payload(secret)

    def manifest(self, stored: StoredRevision) -> str:
        """The manifest of a revision, hooks not included; empty if it cannot be read."""
        try:
            payload = self.payload(stored)
        except StorageUnreadable:
            return ""
        return str((payload or {}).get("manifest") or "")

    def holder(self, me: str) -> str | None:
        """The other worker that seems to hold the Lease; ``None`` also if this identity may not read Leases."""
        try:
            lease = self.client.get(ObjectRef(LEASE, lease_name(self.release), self.namespace))
        except Forbidden as error:
            log.debug("cannot see whether another worker changes release %s: %s", self.release, error.message)
            return None
        return looks_alive(parse_lease(lease), me, self._clock())

    # --- repairing -----------------------------------------------------------------------------------------------

    def unlock(self, revision: int) -> None:
        """Remove Helm's lock: rewrite a pending revision's status to failed.

        :raises Conflict: if the revision was written in between; the operation may be alive after all.
        """
        ref = ObjectRef(SECRET, storage.secret_name(self.release, revision), self.namespace)
        secret = self.client.get(ref)
        if secret is None:
            return
        if storage.payload_status(storage.decode_payload(secret)) not in storage.PENDING:
            return
        description = "marked failed by gpu-fleet: the operation died"
        self.client.replace(storage.with_status(secret, ReleaseStatus.FAILED, description))
        log.info("removed Helm's lock from %s/%s revision %s", self.namespace, self.release, revision)

    def spare(self, stored: StoredRevision, kinds: frozenset[str]) -> tuple[str, ...]:
        """Remove objects of some kinds from a stored manifest, so that an uninstall does not delete them."""
        secret = self.client.get(ObjectRef(SECRET, stored.secret, self.namespace))
        if secret is None:
            return ()
        manifest, spared = without_kinds(str(storage.decode_payload(secret).get("manifest") or ""), kinds)
        if spared:
            self.client.replace(storage.with_manifest(secret, manifest))
        return spared

    def mend(self, stored: StoredRevision, gone: Mapping[TypeId, str | None]) -> tuple[str, ...]:
        """Rewrite a stored manifest to types that the server has, see :func:`with_served_types`.

        :raises Conflict: if the revision was written in between.
        """
        secret = self.client.get(ObjectRef(SECRET, stored.secret, self.namespace))
        if secret is None:
            return ()
        manifest, changed = with_served_types(str(storage.decode_payload(secret).get("manifest") or ""), gone)
        if changed:
            self.client.replace(storage.with_manifest(secret, manifest))
        return changed

    # --- ledger --------------------------------------------------------------------------------------------------

    @property
    def _ledger_ref(self) -> ObjectRef:
        return ObjectRef(CONFIG_MAP, ledgers.config_map_name(self.release), self.namespace)

    def ledger(self) -> Ledger:
        """
        :raises ReleaseError: if the ConfigMap is not readable: what was proven must not be guessed.
        """
        try:
            return ledgers.parse_ledger(self.client.get(self._ledger_ref))
        except ValueError as error:
            raise ReleaseError(
                f"{error}; repair it, or delete it to start without a proven revision", reason="LedgerUnreadable"
            ) from error

    def write_ledger(self, ledger: Ledger) -> Ledger:
        """Compare and swap; writing what is there already writes nothing.

        :param ledger: derived from one that was read (its ``version``).
        :returns: the ledger with its new version.
        :raises Conflict: if another client wrote it since.
        """
        manifest = ledgers.render_ledger(ledger, self.release, self.namespace)
        try:
            written = self.client.replace(manifest) if ledger.version else self.client.create(manifest)
        except (Conflict, AlreadyExists):
            # A repeated request may meet its own first attempt, whose answer got lost.
            current = self.ledger()
            if replace(current, version="") == replace(ledger, version=""):
                return current
            raise
        return ledgers.parse_ledger(written)

    def delete_ledger(self) -> None:
        self.client.delete(self._ledger_ref)
