"""AWS Signature Version 4, the verifying side.

After docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html: header form (``Authorization``) and query form
(pre-signed URLs). Only what clients send over plain HTTP/1.1 with a body is covered, not chunked uploads to S3.
"""

from __future__ import annotations

import hashlib
import hmac
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote

ALGORITHM = "AWS4-HMAC-SHA256"
_CLOCK_SKEW = timedelta(minutes=15)
_EMPTY_BODY = hashlib.sha256(b"").hexdigest()
_HEADER = re.compile(
    r"^AWS4-HMAC-SHA256\s+Credential=([^,\s]+),\s*SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})$"
)


@dataclass(frozen=True)
class Request:
    """
    A request as it came over the wire.

    :ivar path: raw path, percent-encoded as received.
    :ivar query: raw query string, without ``?``.
    :ivar headers: lower-case names.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Signature:
    """The signature data of a request. ``expires`` is set for pre-signed URLs only (seconds)."""

    access_key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    value: str
    timestamp: datetime
    expires: int | None
    token: str | None

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


class MalformedSignature(ValueError):
    """There is something that should be a signature and cannot be read."""


def find(request: Request) -> Signature | None:
    """The signature of a request, ``None`` if it has none."""
    authorization = request.headers.get("authorization")
    if authorization is not None:
        match = _HEADER.match(authorization.strip())
        if match is None:
            raise MalformedSignature("Authorization header is not a Signature Version 4 one")
        credential, signed, value = match.groups()
        return _signature(
            credential,
            signed,
            value,
            request.headers.get("x-amz-date"),
            None,
            request.headers.get("x-amz-security-token"),
        )
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        return None
    try:
        expires = int(query["X-Amz-Expires"])
        return _signature(
            query["X-Amz-Credential"],
            query["X-Amz-SignedHeaders"],
            query["X-Amz-Signature"],
            query["X-Amz-Date"],
            expires,
            query.get("X-Amz-Security-Token"),
        )
    except (KeyError, ValueError) as error:
        raise MalformedSignature(f"pre-signed query lacks or garbles {error}") from error


def _signature(
    credential: str, signed: str, value: str, stamp: str | None, expires: int | None, token: str | None
) -> Signature:
    try:
        access_key, date, region, service, end = credential.rsplit("/", 4)
        timestamp = datetime.strptime(stamp or "", "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise MalformedSignature("Credential or X-Amz-Date is malformed") from error
    if end != "aws4_request" or not (stamp or "").startswith(date):
        raise MalformedSignature("Credential scope does not fit X-Amz-Date")
    return Signature(access_key, date, region, service, tuple(signed.split(";")), value, timestamp, expires, token)


def as_header(signature: Signature) -> str:
    """The ``Authorization`` header that says the same."""
    return (
        f"{ALGORITHM} Credential={signature.access_key}/{signature.scope}, "
        f"SignedHeaders={';'.join(signature.signed_headers)}, Signature={signature.value}"
    )


def in_time(signature: Signature, now: datetime) -> bool:
    """Whether the signature is neither from the future nor expired."""
    # STS accepts a pre-signed URL for 15 minutes, whatever X-Amz-Expires (aws-iam-authenticator pkg/token/token.go).
    own = signature.expires is not None and signature.service != "sts"
    lifetime = timedelta(seconds=signature.expires or 0) if own else _CLOCK_SKEW
    return signature.timestamp - _CLOCK_SKEW <= now <= signature.timestamp + lifetime


def verify(request: Request, signature: Signature, secret: str) -> bool:
    """Whether the holder of ``secret`` made the signature for exactly this request."""
    canonical = "\n".join(
        [
            request.method,
            _canonical_path(request.path, signature.service),
            _canonical_query(request.query),
            *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signature.signed_headers),
            "",
            ";".join(signature.signed_headers),
            _payload_hash(request, signature),
        ]
    )
    text = "\n".join(
        [
            ALGORITHM,
            signature.timestamp.strftime("%Y%m%dT%H%M%SZ"),
            signature.scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{secret}".encode()
    for part in (signature.date, signature.region, signature.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return "host" in signature.signed_headers and hmac.compare_digest(expected, signature.value)


def _canonical_path(path: str, service: str) -> str:
    if service == "s3":  # the one service that signs the path as sent
        return path or "/"
    normal = posixpath.normpath(path or "/").replace("//", "/")
    if path.endswith("/") and normal != "/":
        normal += "/"
    return quote(normal, safe="/~")


def _canonical_query(query: str) -> str:
    pairs = []
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name != "X-Amz-Signature":
            pairs.append((name, value))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _payload_hash(request: Request, signature: Signature) -> str:
    if signature.expires is not None and signature.service != "s3":
        return request.headers.get("x-amz-content-sha256", _EMPTY_BODY)
    stated = request.headers.get("x-amz-content-sha256")
    actual = hashlib.sha256(request.body).hexdigest()
    # A SHA-256 in the header is never trusted: a changed body must not verify.
    return stated if stated is not None and not re.fullmatch(r"[0-9a-f]{64}", stated) else actual
