"""Helm's own storage: one Secret of type ``helm.sh/release.v1`` per revision.

Name ``sh.helm.release.v1.<release>.v<N>``; labels ``name``, ``owner=helm``, ``status``, ``version``, ``modifiedAt``;
``data.release`` is base64(base64(gzip(JSON))) (helm pkg/storage/driver/secrets.go and util.go). The status *in the
payload* is Helm's lock; the label only mirrors it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.names import DOMAIN

SECRET_TYPE = "helm.sh/release.v1"  # noqa: S105  (a Secret's type, not a secret)
#: Our label on each revision's Secret: the content digest that was wanted. Helm copies it to later revisions, so it
#: shows which content was wanted, never that the content was verified.
LABEL_DIGEST = f"{DOMAIN}/digest"
#: Annotations that Helm puts on every object of a release (helm pkg/action/validate.go).
ANNOTATION_RELEASE = "meta.helm.sh/release-name"
ANNOTATION_RELEASE_NAMESPACE = "meta.helm.sh/release-namespace"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
_GZIP_MAGIC = b"\x1f\x8b\x08"
_NAME = re.compile(r"sh\.helm\.release\.v1\.(?P<release>.+)\.v(?P<revision>[0-9]+)")


class ReleaseStatus(StrEnum):
    """Statuses of a revision (helm pkg/release/v1/status.go)."""

    UNKNOWN = "unknown"
    DEPLOYED = "deployed"
    UNINSTALLED = "uninstalled"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    UNINSTALLING = "uninstalling"
    PENDING_INSTALL = "pending-install"
    PENDING_UPGRADE = "pending-upgrade"
    PENDING_ROLLBACK = "pending-rollback"


PENDING = frozenset({ReleaseStatus.PENDING_INSTALL, ReleaseStatus.PENDING_UPGRADE, ReleaseStatus.PENDING_ROLLBACK})
#: An operation that was started and not finished.
UNFINISHED = PENDING | {ReleaseStatus.UNINSTALLING}


class StorageUnreadable(ValueError):
    """A release Secret cannot be decoded; the engine must then not guess."""


@dataclass(frozen=True)
class StoredRevision:
    """One revision as storage shows it.

    :ivar uid: UID of the Secret: a reinstalled release starts again at revision 1, with other UIDs.
    :ivar digest: value of :data:`LABEL_DIGEST`, empty if the revision carries none.
    :ivar modified: epoch seconds of Helm's last write, ``None`` if unknown.
    :ivar content: see :func:`fingerprint`; empty where the payload was not read.
    """

    revision: int
    status: ReleaseStatus
    secret: str
    uid: str
    digest: str = ""
    modified: float | None = None
    content: str = field(default="", compare=False)


def parse_status(value: object) -> ReleaseStatus:
    """A status word; what Helm does not define is UNKNOWN."""
    try:
        return ReleaseStatus(str(value))
    except ValueError:
        return ReleaseStatus.UNKNOWN


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def secret_name(release: str, revision: int) -> str:
    return f"sh.helm.release.v1.{release}.v{revision}"


def label_selector(release: str) -> str:
    """Selects the Secrets of one release, as Helm's own driver does."""
    return f"name={release},owner=helm"


def parse_revisions(secrets: Iterable[Mapping[str, Any]], release: str) -> tuple[StoredRevision, ...]:
    """The revisions in a list of Secrets (metadata is enough), oldest first.

    Secrets whose name is not that of a revision of the release are ignored: any client can set labels.
    """
    found = []
    for secret in secrets:
        metadata = secret.get("metadata") or {}
        match = _NAME.fullmatch(str(metadata.get("name", "")))
        if match is None or match["release"] != release:
            continue
        labels = metadata.get("labels") or {}
        found.append(
            StoredRevision(
                revision=int(match["revision"]),
                status=parse_status(labels.get("status")),
                secret=str(metadata["name"]),
                uid=str(metadata.get("uid", "")),
                digest=str(labels.get(LABEL_DIGEST, "")),
                modified=_number(labels.get("modifiedAt") or labels.get("createdAt")),
            )
        )
    return tuple(sorted(found, key=lambda item: item.revision))


def decode_payload(secret: Mapping[str, Any]) -> dict[str, Any]:
    """The release in a Secret's payload.

    :raises StorageUnreadable: if it is not what Helm writes; the message names the Secret and never shows content.
    """
    name = (secret.get("metadata") or {}).get("name", "?")
    encoded = (secret.get("data") or {}).get("release")
    if not isinstance(encoded, str) or not encoded:
        raise StorageUnreadable(f"Secret {name} has no data.release")
    try:
        raw = base64.b64decode(base64.b64decode(encoded, validate=True), validate=True)
        if raw.startswith(_GZIP_MAGIC):
            raw = gzip.decompress(raw)
        value = json.loads(raw)
    except (binascii.Error, OSError, EOFError, zlib.error, ValueError) as error:
        raise StorageUnreadable(f"Secret {name} holds no readable release: {type(error).__name__}") from error
    if not isinstance(value, dict) or not isinstance(value.get("info"), dict):
        raise StorageUnreadable(f"Secret {name} holds no release object")
    return value


def encode_payload(release: Mapping[str, Any]) -> str:
    """The value of ``data.release`` for a release; the inverse of :func:`decode_payload`."""
    raw = json.dumps(release, separators=(",", ":"), ensure_ascii=False).encode()
    packed = gzip.compress(raw, mtime=0)
    return base64.b64encode(base64.b64encode(packed)).decode()


def payload_status(release: Mapping[str, Any]) -> ReleaseStatus:
    """The status in a payload: Helm's lock."""
    return parse_status((release.get("info") or {}).get("status"))


def payload_chart(release: Mapping[str, Any]) -> str:
    """The name of the chart in a payload, empty if it has none."""
    return str(((release.get("chart") or {}).get("metadata") or {}).get("name") or "")


def fingerprint(chart: str, version: str, values: Mapping[str, Any]) -> str:
    """sha256 (first 40 hex digits) of what makes a revision's content: the chart's own name and version, and values.

    Unlike the digest label it can be computed from a stored release as well, so it shows whose content that is: Helm
    copies the label of our revision to the next one, also if a person makes that one.
    """
    text = json.dumps([chart, version.removeprefix("v"), _plain(values)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _plain(value: Any) -> Any:
    """As Helm stores it: every number is a float64, and a null is the same as a missing key.

    Values are read into Go's ``map[string]any`` (helm v4.2.3 pkg/chart/v2/loader/load.go, ``LoadValues``), so an
    integer beyond 2^53 becomes the nearest one that a float64 holds.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        held = float(value)
    except OverflowError:  # helm refuses it
        return value
    return int(held) if held.is_integer() else held


def payload_content(release: Mapping[str, Any]) -> str:
    """The :func:`fingerprint` of the release in a payload."""
    metadata = (release.get("chart") or {}).get("metadata") or {}
    return fingerprint(str(metadata.get("name", "")), str(metadata.get("version", "")), release.get("config") or {})


@dataclass(frozen=True)
class ChartTest:
    """The last run of one of the chart's tests; ``started`` is empty if it never ran."""

    phase: str
    started: str


def chart_tests(release: Mapping[str, Any]) -> dict[str, ChartTest]:
    """Name of each test hook -> its last run, as Helm notes it in the payload (helm pkg/release/v1/hook.go)."""
    found = {}
    for hook in release.get("hooks") or []:
        if "test" in (hook.get("events") or []):
            last = hook.get("last_run") or {}
            found[str(hook.get("name"))] = ChartTest(str(last.get("phase") or ""), str(last.get("started_at") or ""))
    return found


def with_status(secret: Mapping[str, Any], status: ReleaseStatus, description: str) -> dict[str, Any]:
    """A copy of a release Secret whose payload *and* label say ``status``.

    The copy keeps ``metadata.resourceVersion``, so that writing it fails if Helm (a stalled one that woke up, say)
    wrote in between.

    :raises StorageUnreadable: if the payload cannot be decoded.
    """
    release = decode_payload(secret)
    release["info"] = {**release["info"], "status": status.value, "description": description}
    return _rewritten(secret, release, {"status": status.value})


def with_manifest(secret: Mapping[str, Any], manifest: str) -> dict[str, Any]:
    """A copy of a release Secret whose payload holds another manifest; compare and swap as :func:`with_status`."""
    return _rewritten(secret, {**decode_payload(secret), "manifest": manifest}, {})


def _rewritten(secret: Mapping[str, Any], release: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    metadata = dict(secret.get("metadata") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    metadata.pop("managedFields", None)
    return {**secret, "metadata": metadata, "data": {**(secret.get("data") or {}), "release": encode_payload(release)}}
