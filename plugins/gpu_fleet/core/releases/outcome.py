"""What a call of the release engine found or did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a call found or did; JSON-able through :meth:`to_json`.

    :ivar actions: what was done, in order; empty if nothing was written.
    :ivar proven: the deployed revision is the ledger's proven one.
    :ivar passing: those of the workloads that the cluster deletes once they are done (Jobs with a ttl).
    :ivar history: the revisions that Helm keeps, oldest first, as ``<revision> <status>``.
    :ivar drift: differences between manifest and cluster that were found and left as they are.
    :ivar manifest: of the deployed revision, for people (Secrets hidden).
    """

    release: str
    namespace: str
    revision: int | None = None
    digest: str = ""
    secret_uid: str = ""
    proven: bool = False
    actions: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    crds: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    manifest: str = ""
    history: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Without the manifest, which is shown as a rendered field."""
        return {
            "release": self.release,
            "namespace": self.namespace,
            "revision": self.revision,
            "digest": self.digest,
            "secretUid": self.secret_uid,
            "proven": self.proven,
            "actions": list(self.actions),
            "workloads": list(self.workloads),
            "passing": list(self.passing),
            "crds": list(self.crds),
            "leftovers": list(self.leftovers),
            "history": list(self.history),
            "drift": list(self.drift),
        }
