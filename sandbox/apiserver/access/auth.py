"""Authentication: bearer tokens, client certificates, service-account tokens, impersonation."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from sandbox.apiserver.errors import unauthorized
from sandbox.apiserver.jsontools import Obj

MASTERS = "system:masters"
AUTHENTICATED = "system:authenticated"


@dataclass(frozen=True)
class User:
    """An authenticated identity, as ``authentication.k8s.io`` describes it."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def info(self) -> Obj:
        found: Obj = {"username": self.name, "groups": list(self.groups)}
        if self.uid:
            found["uid"] = self.uid
        if self.extra:
            found["extra"] = {key: list(values) for key, values in self.extra.items()}
        return found


Authenticator = Callable[[str], Awaitable[User | None]]


async def refuse_tokens(token: str) -> User | None:
    """An authenticator for clusters that take client certificates only."""
    del token
    return None


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class ServiceAccountTokens:
    """Tokens of service accounts: JWTs signed with a key of this process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def issue(self, namespace: str, name: str, uid: str, audiences: list[str], seconds: int) -> tuple[str, int]:
        """(token, expiry in epoch seconds)"""
        expiry = int(time.time()) + seconds
        claims = {
            "aud": audiences or ["https://kubernetes.default.svc"],
            "exp": expiry,
            "iss": "https://kubernetes.default.svc",
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        head = _base64(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = f"{head}.{_base64(json.dumps(claims).encode())}"
        return f"{body}.{self._sign(body)}", expiry

    def _sign(self, body: str) -> str:
        return _base64(hmac.new(self._key, body.encode(), hashlib.sha256).digest())

    def user(self, token: str) -> User | None:
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._sign(body), signature):
            return None
        raw = body.partition(".")[2]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
        if claims["exp"] < time.time():
            return None
        account = claims["kubernetes.io"]
        namespace = account["namespace"]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
        return User(claims["sub"], groups, account["serviceaccount"]["uid"])


def certificate_user(request: web.Request) -> User | None:
    """The identity in the client certificate that the TLS handshake verified."""
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    if not certificate:
        return None
    names = [pair for part in certificate.get("subject", ()) for pair in part]
    common = [value for key, value in names if key == "commonName"]
    if not common:
        return None
    groups = tuple(value for key, value in names if key == "organizationName")
    return User(common[0], (*groups, AUTHENTICATED))


async def authenticate(request: web.Request, authenticator: Authenticator, accounts: ServiceAccountTokens) -> User:
    """
    :raises ApiError: 401 unless a certificate or a token says who it is.
    """
    user = certificate_user(request)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if user is None and scheme.lower() == "bearer" and token:
        user = accounts.user(token) or await authenticator(token)
        if user is not None and AUTHENTICATED not in user.groups:
            user = User(user.name, (*user.groups, AUTHENTICATED), user.uid, user.extra)
    if user is None:
        raise unauthorized()
    return user
