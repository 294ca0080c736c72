"""Takes, renews and releases a release's Lease; the rules are in ``core/releases/lease.py``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from gpu_fleet.core.errors import AlreadyExists, ClusterBusy, Conflict, GpuFleetError
from gpu_fleet.core.kubernetes.kinds import LEASE, ObjectRef
from gpu_fleet.core.releases.lease import (
    LEASE_SECONDS,
    RENEWALS,
    TAKEOVER_GRACE_SECONDS,
    LeaseRecord,
    lease_name,
    may_take,
    parse_lease,
    render_lease,
)
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


class ReleaseLease:
    """The right to change one release: a context manager around everything that writes.

    :param me: identity, distinct per process.
    :param wait_s: seconds to wait for another holder before :class:`ClusterBusy`; for a holder that does not renew its
        Lease at least until that Lease has expired.
    :param seconds: seconds without renewal after which a holder has lost the Lease, and ends its helm.
    :param grace: seconds after that until the holder's helm is surely dead, and another worker may take the Lease.
    :param stop: a non-empty answer ends the wait.
    """

    def __init__(
        self,
        client: KubeClient,
        release: str,
        namespace: str,
        me: str,
        *,
        wait_s: float,
        seconds: int = LEASE_SECONDS,
        grace: float = TAKEOVER_GRACE_SECONDS,
        stop: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._release, self._namespace, self._me = client, release, namespace, me
        self._wait_s, self._seconds, self._grace, self._stop = wait_s, seconds, grace, stop
        self._clock, self._monotonic, self._sleep = clock, monotonic, sleep
        self._record: LeaseRecord | None = None
        self._acquired = 0.0
        self._renewed_at = 0.0
        self._lost = ""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> str:
        """Why the Lease is no longer ours; empty while it is. A writer must ask before each write, and stop."""
        if not self._lost and self._record is not None and self._monotonic() - self._renewed_at > self._seconds:
            # Not renewed for its whole duration (this process was stopped, or the API was away): another worker may
            # hold it by now.
            self._lost = f"the Lease of release {self._namespace}/{self._release} expired"
        return self._lost

    def __enter__(self) -> ReleaseLease:
        self._take()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{self._release}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop_renewing() is None:
            return
        try:
            self._write("")
        except GpuFleetError as failure:  # it expires by itself
            log.warning("cannot release the Lease of release %s: %s", self._release, failure)

    def forget(self) -> None:
        """Delete the Lease: the release is gone for good."""
        record = self._stop_renewing()
        if record is None:
            return
        try:
            self._delete(record)
        except Conflict:  # a renewal whose answer got lost, or another worker's write
            if not self._still_ours() or self._record is None:
                return
            self._delete(self._record)
        self._record = None

    def _stop_renewing(self) -> LeaseRecord | None:
        """End the renewal.

        :returns: the record as last written; ``None`` if there is none, or if it is no longer ours.
        """
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        return None if self.lost else self._record

    def _delete(self, record: LeaseRecord) -> None:
        ref = ObjectRef(LEASE, lease_name(self._release), self._namespace)
        self._client.delete(ref, uid=record.uid or None, version=record.version or None)

    # --- taking --------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        started = self._monotonic()
        seen: LeaseRecord | None = None
        seen_since = started
        alive = False
        reported = ""
        while True:
            record = parse_lease(self._client.get(ObjectRef(LEASE, lease_name(self._release), self._namespace)))
            if record != seen:
                alive = seen is not None  # its holder renewed it while we watched
                seen, seen_since = record, self._monotonic()
            now = self._monotonic()
            if may_take(record, self._me, now - seen_since, grace=self._grace) and self._try_take(record):
                return
            holder = record.holder if record else ""
            if holder and holder != reported:
                log.info("release %s/%s is held by %s; waiting", self._namespace, self._release, holder)
                reported = holder
            # Only an expired Lease shows that its holder is dead: less patience than that would never get it.
            dead_after = record.duration + self._grace + _POLL_SECONDS if record and not alive else 0.0
            patience = max(self._wait_s, dead_after)
            if self._stop() or now - started > patience:
                raise ClusterBusy(
                    f"release {self._namespace}/{self._release} is being changed by {holder or 'another worker'}; "
                    "run again when it has ended",
                    reason="ReleaseHeld",
                )
            self._sleep(_POLL_SECONDS)

    def _try_take(self, record: LeaseRecord | None) -> bool:
        if record is not None and record.holder and record.holder != self._me:
            log.warning("taking over the Lease of release %s from %s, which is dead", self._release, record.holder)
        self._acquired = self._clock()
        self._record = record
        try:
            self._write(self._me)
        except (Conflict, AlreadyExists):
            self._record = None
            return False
        return True

    def _write(self, holder: str) -> None:
        started = self._monotonic()
        previous = self._record
        body = render_lease(
            self._release,
            self._namespace,
            holder,
            self._clock(),
            previous=previous,
            acquired=self._acquired,
            duration=self._seconds,
        )
        written = self._client.replace(body) if previous is not None else self._client.create(body)
        self._record = parse_lease(written)
        self._renewed_at = started  # the moment before the call: the server may have been slow

    # --- keeping -------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._done.wait(self._seconds / RENEWALS):
            if self.lost:
                return
            try:
                self._write(self._me)
            except Conflict:
                if not self._still_ours():
                    return
            except GpuFleetError as error:
                log.warning("cannot renew the Lease of release %s: %s", self._release, error)

    def _still_ours(self) -> bool:
        """After a conflict: our own repeated write, or another holder?"""
        try:
            record = parse_lease(self._client.get(ObjectRef(LEASE, lease_name(self._release), self._namespace)))
        except GpuFleetError:
            return True  # unknown; `lost` decides by time
        if record is not None and record.holder == self._me:
            self._record = record
            return True
        self._lost = (
            f"the Lease of release {self._namespace}/{self._release} was taken by "
            f"{record.holder if record and record.holder else 'another worker'}"
        )
        return False


def forget_free_lease(client: KubeClient, release: str, namespace: str, me: str) -> bool:
    """Delete the Lease of a release that is gone, if one is left and no other worker holds it.

    :returns: whether none is left; otherwise its holder is at work, or died, and the Lease must be taken first.
    """
    ref = ObjectRef(LEASE, lease_name(release), namespace)
    record = parse_lease(client.get(ref))
    if record is None:
        return True
    if record.holder not in {"", me}:
        return False
    try:
        client.delete(ref, uid=record.uid, version=record.version)
    except Conflict:  # another worker took it at this very moment
        return False
    return True
