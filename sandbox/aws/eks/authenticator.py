"""EKS bearer tokens: ``k8s-aws-v1.`` + base64url of a pre-signed ``GetCallerIdentity`` URL.

After the rules of kubernetes-sigs/aws-iam-authenticator ``pkg/token/token.go`` (prefix, host, parameters, expiry,
``x-k8s-aws-id``) and of EKS access entries. STS, to which the URL is addressed, checks the signature.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp

from sandbox.aws.eks.clusters import Eks, principal

PREFIX = "k8s-aws-v1."
CLUSTER_HEADER = "x-k8s-aws-id"
_MAX_EXPIRES = 900  # seconds, what STS itself allows
_MAX_AGE = timedelta(minutes=15)
_MAX_TOKEN = 16 * 1024
_PARAMETERS = {
    "action",
    "version",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
    "x-amz-user-agent",
}


class InvalidToken(ValueError):
    """Why a token is not accepted (the client only learns 401)."""


@dataclass(frozen=True)
class Identity:
    """Who a token speaks for, inside the cluster."""

    name: str
    groups: tuple[str, ...]
    arn: str


def signed_url(token: str, host: str, now: datetime) -> str:
    """
    The pre-signed URL in a token, after every check that needs no network.

    :param host: ``host:port`` of the sandbox's AWS endpoint; a URL that leads elsewhere must never be called.
    :raises InvalidToken: any check failed.
    """
    if len(token) > _MAX_TOKEN:
        raise InvalidToken("token is too large")
    if not token.startswith(PREFIX):
        raise InvalidToken(f"token has no prefix {PREFIX}")
    encoded = token.removeprefix(PREFIX)
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        url = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidToken("token is not base64url") from error
    if not url.isprintable():
        raise InvalidToken("URL has control characters")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidToken("URL is malformed") from error
    if parts.scheme not in ("http", "https") or parts.netloc != host or parts.path not in ("", "/"):
        raise InvalidToken(f"URL is not of {host}")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    names = [name.lower() for name, _ in pairs]
    if len(set(names)) != len(names) or not set(names) <= _PARAMETERS:
        raise InvalidToken("URL has unexpected or repeated parameters")
    query = {name.lower(): value for name, value in pairs}
    if query.get("action") != "GetCallerIdentity":
        raise InvalidToken("URL asks for something other than GetCallerIdentity")
    if CLUSTER_HEADER not in query.get("x-amz-signedheaders", "").split(";"):
        raise InvalidToken(f"{CLUSTER_HEADER} is not signed")
    _check_times(query, now)
    return url


def _check_times(query: dict[str, str], now: datetime) -> None:
    try:
        expires = int(query["x-amz-expires"])
        signed = datetime.strptime(query["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except (KeyError, ValueError) as error:
        raise InvalidToken("X-Amz-Date or X-Amz-Expires is missing or malformed") from error
    if not 0 <= expires <= _MAX_EXPIRES:
        raise InvalidToken(f"X-Amz-Expires is not within 0 and {_MAX_EXPIRES}")
    if abs(now - signed) > _MAX_AGE:
        raise InvalidToken("X-Amz-Date is more than 15 minutes away")


class Authenticator:
    """
    ``await authenticator(token)`` → the user that ``make_user`` makes of the identity, or ``None`` for 401.

    :param endpoint_url: the sandbox's AWS endpoint, where STS is asked.
    :param make_user: turns an :class:`Identity` into the API server's own user type.
    """

    def __init__(
        self, eks: Eks, endpoint_url: str, region: str, cluster_name: str, make_user: Callable[[Identity], Any]
    ) -> None:
        self._eks = eks
        self._endpoint = endpoint_url
        self._region = region
        self._cluster = cluster_name
        self._make_user = make_user
        self._identities: dict[str, tuple[datetime, str]] = {}
        self._http: aiohttp.ClientSession | None = None

    async def __call__(self, token: str) -> Any | None:
        try:
            identity = await self.identify(token)
        except InvalidToken:
            return None
        return self._make_user(identity)

    async def identify(self, token: str) -> Identity:
        """
        :raises InvalidToken: the token is not good, or its principal has no access entry.
        """
        now = datetime.now(UTC)
        url = signed_url(token, urlsplit(self._endpoint).netloc, now)
        cached = self._identities.get(token)
        if cached is not None and now < cached[0]:
            arn = cached[1]
        else:
            arn = await self._caller(url)
            self._remember(token, now, arn)
        return self._map(arn)

    def _remember(self, token: str, now: datetime, arn: str) -> None:
        """STS is asked once a minute per token, as the real one caches too."""
        self._identities = {key: value for key, value in self._identities.items() if now < value[0]}
        self._identities[token] = (now + timedelta(seconds=60), arn)

    async def _caller(self, url: str) -> str:
        from yarl import URL

        if self._http is None or self._http.closed:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        headers = {CLUSTER_HEADER: self._cluster, "Accept": "application/json"}
        try:
            async with self._http.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as reply:
                body = await reply.text()
                if reply.status != 200:
                    raise InvalidToken(f"STS answered {reply.status}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if isinstance(error, InvalidToken):
                raise
            raise InvalidToken("STS did not answer") from error
        return _arn_in(body)

    def _map(self, arn: str) -> Identity:
        state = self._eks.known(self._region, self._cluster)
        entry = state.access_entries.get(principal(arn)) if state is not None else None
        if entry is None:
            raise InvalidToken(f"{arn} has no access entry in {self._cluster}")
        session = arn.rsplit("/", 1)[-1]
        name = entry.username.replace("{{SessionName}}", session)
        return Identity(name, (*entry.kubernetes_groups, "system:authenticated"), arn)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()


def _arn_in(body: str) -> str:
    """The caller's ARN in the reply of GetCallerIdentity, JSON or XML."""
    try:
        return str(json.loads(body)["GetCallerIdentityResponse"]["GetCallerIdentityResult"]["Arn"])
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    _, start, rest = body.partition("<Arn>")
    arn, end, _ = rest.partition("</Arn>")
    if not start or not end:
        raise InvalidToken("STS answered without an ARN")
    return arn
