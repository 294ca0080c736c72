"""How a cluster is reached: address, trust and credentials, from EKS or from a kubeconfig file.

Resolved once per process and cluster: creating an SSL context or asking EKS again for every call would block a
triggerer's event loop for seconds (apache/airflow#71349, #73399).
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gpu_fleet.core.errors import ApiUnavailable, NotFound, SpecError

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: Seconds after which address and trust are looked up again: a cluster may be recreated under its old name.
ENDPOINT_TTL_S = 600.0
#: Seconds after which a trigger reads a token's file again (client-go v0.36 transport/token_source.go: a minute, less
#: ten seconds).
TOKEN_FILE_TTL_S = 50.0


@dataclass(frozen=True)
class ClusterAccess:
    """Where a cluster is and which identity to use: JSON-able, without credentials, fit for trigger arguments.

    :ivar mode: ``eks`` asks EKS for address and trust and signs tokens with the Airflow connection;
        ``kubeconfig`` reads a file.
    :ivar path: kubeconfig file; ``None`` means the one ``$KUBECONFIG`` names.
    :ivar context: kubeconfig context; ``None`` means the current one.
    """

    mode: Literal["eks", "kubeconfig"]
    aws_conn_id: str | None
    region: str | None
    cluster_name: str | None
    path: str | None = None
    context: str | None = None

    @classmethod
    def from_spec(cls, spec: ClusterSpec) -> ClusterAccess:
        access = spec.cluster.access
        return cls(
            mode=access.mode,
            aws_conn_id=spec.aws.connection,
            region=spec.aws.region,
            cluster_name=spec.cluster.name,
            path=getattr(access, "path", None),
            context=getattr(access, "context", None),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClusterAccess:
        return cls(**value)

    def __str__(self) -> str:
        if self.mode == "eks":
            return f"EKS cluster {self.cluster_name!r} in {self.region or 'the default region'}"
        return f"cluster of kubeconfig {self.path or '$KUBECONFIG'!r}"


class Credentials(Protocol):
    """What authenticates a request, besides a client certificate in the SSL context."""

    def headers(self) -> dict[str, str]:
        """The headers; blocks while they are renewed."""
        ...

    def ready(self) -> dict[str, str] | None:
        """The headers if they are at hand, without blocking; ``None`` if they have to be renewed."""
        ...

    def renew(self) -> bool:
        """After a 401: drop what is cached; ``True`` if another attempt may be accepted."""
        ...


class FixedCredentials:
    """A token that never changes, or none (client certificate)."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def ready(self) -> dict[str, str]:
        return self.headers()

    def renew(self) -> bool:
        return False


class TokenFile:
    """A token kept fresh in a file by somebody else (kubeconfig ``tokenFile``)."""

    def __init__(self, path: Path, kubeconfig: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._kubeconfig, self._monotonic = path, kubeconfig, monotonic
        self._read: tuple[float, str] | None = None

    def headers(self) -> dict[str, str]:
        """:raises SpecError: the file cannot be read."""
        read_at = self._monotonic()
        with _usable(self._kubeconfig, f"tokenFile {self._path}"):
            token = self._path.read_text().strip()
        self._read = (read_at, token)
        return {"Authorization": f"Bearer {token}"}

    def ready(self) -> dict[str, str] | None:
        read = self._read
        if read is None or self._monotonic() - read[0] >= TOKEN_FILE_TTL_S:
            return None
        return {"Authorization": f"Bearer {read[1]}"}

    def renew(self) -> bool:
        self._read = None
        return True


@dataclass(frozen=True)
class Endpoint:
    """A resolved cluster.

    :ivar server: base URL without a trailing slash.
    :ivar ssl_context: ``None`` for plain http.
    """

    server: str
    ssl_context: ssl.SSLContext | None
    credentials: Credentials


_lock = threading.Lock()
_locks: dict[ClusterAccess, threading.Lock] = {}
_endpoints: dict[ClusterAccess, tuple[int, float, Endpoint]] = {}


def resolve(access: ClusterAccess) -> Endpoint:
    """The cluster's endpoint, cached for :data:`ENDPOINT_TTL_S`. Blocking; triggers use ``kubernetes_endpoints.py``.

    :raises NotFound: the EKS cluster, file or context does not exist.
    :raises ApiUnavailable: the cluster has no endpoint yet.
    :raises SpecError: the kubeconfig, or what it holds or names, is not usable.
    """
    with _lock:
        own = _locks.setdefault(access, threading.Lock())
    # One lock per cluster: an AWS region that does not answer must not hold up the others.
    with own:
        found = known(access)
        if found is not None:
            return found
        endpoint = _resolve_eks(access) if access.mode == "eks" else _resolve_kubeconfig(access)
        _endpoints[access] = (os.getpid(), time.monotonic(), endpoint)
        return endpoint


def known(access: ClusterAccess) -> Endpoint | None:
    """The cluster's endpoint if it was looked up lately; never blocks."""
    found = _endpoints.get(access)
    if found and found[0] == os.getpid() and time.monotonic() - found[1] < ENDPOINT_TTL_S:
        return found[2]
    return None


def forget(access: ClusterAccess, endpoint: Endpoint | None = None) -> None:
    """Look the cluster up again next time (its address or trust may have changed).

    :param endpoint: only if it is still this one: of many watches that break at once, one look-up is enough.
    """
    found = _endpoints.get(access)
    if found is not None and (endpoint is None or found[2] is endpoint):
        _endpoints.pop(access, None)


def proxy_for(server: str) -> str | None:
    """The HTTP proxy that the environment asks for (``HTTPS_PROXY``, ``NO_PROXY``), as the stock client does."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(server)
    proxy = getproxies().get(parts.scheme)
    return None if not proxy or proxy_bypass(parts.netloc) else proxy


def _resolve_eks(access: ClusterAccess) -> Endpoint:
    from gpu_fleet.hooks.aws import aws_session
    from gpu_fleet.hooks.kubernetes.eks_token import EksCredentials

    if not access.cluster_name:
        raise SpecError("access mode 'eks' needs the cluster's name", field="cluster.name", remedy="set it")
    aws = aws_session(access.aws_conn_id, access.region)
    try:
        cluster = aws.call("eks", "describe_cluster", name=access.cluster_name)["cluster"]
    except NotFound as error:
        raise NotFound(
            f"there is no EKS cluster {access.cluster_name!r} in {aws.region} for {aws.label}; "
            "check cluster.name, aws.region and the account of the connection",
            reason="ClusterNotFound",
        ) from error
    server = cluster.get("endpoint")
    authority = (cluster.get("certificateAuthority") or {}).get("data")
    if not server or not authority:
        raise ApiUnavailable(
            f"EKS cluster {access.cluster_name!r} is {cluster.get('status')} and has no API endpoint yet",
            reason="ClusterNotActive",
        )
    context = _context(base64.b64decode(authority).decode())
    return Endpoint(server.rstrip("/"), context, EksCredentials(aws, access.cluster_name))


def _context(authority: str | None, *, insecure: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority)
    # Cluster CAs predate the strict X.509 profile that Python 3.13 asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _usable(kubeconfig: Path, what: str) -> Iterator[None]:
    """
    :raises SpecError: what a kubeconfig holds or names cannot be read, or is not what it should be.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # among them ssl.SSLError, binascii.Error and UnicodeDecodeError
        raise SpecError(
            f"kubeconfig {kubeconfig}: {what}: {error}",
            field="cluster.access.path",
            remedy="correct the kubeconfig, or the file it names, or name another kubeconfig",
        ) from error


def _named(entries: Any, name: str, kind: str) -> dict[str, Any]:
    for entry in entries or []:
        if entry.get("name") == name:
            return dict(entry.get(kind) or {})
    raise SpecError(f"the kubeconfig has no {kind} {name!r}", field="cluster.access.context", remedy="name one it has")


#: Fields of a kubeconfig (kubernetes/client-go v0.36 tools/clientcmd/api/v1/types.go) that change who asks, or which
#: way, and that helm honours: this client, which does not, would be somebody else than helm, or reach another server.
_NOT_HONOURED = {
    "cluster": {
        "proxy-url": "set HTTPS_PROXY and NO_PROXY for workers and triggerers",
        "tls-server-name": "use an address that is in the server's certificate",
    },
    "user": {
        "as": "give the user the rights that it needs, or use a kubeconfig of that user",
        "as-uid": "use a kubeconfig of that user",
        "as-groups": "use a kubeconfig of a user in these groups",
        "as-user-extra": "use a kubeconfig of that user",
        "username": "use a client certificate or a token: no API server takes passwords any more",
        "password": "use a client certificate or a token: no API server takes passwords any more",
    },
}


def _refuse_what_is_not_honoured(path: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """
    :raises SpecError: naming the first field that this client would pass over.
    """
    for kind, entry in (("cluster", cluster), ("user", user)):
        for key, remedy in _NOT_HONOURED[kind].items():
            if entry.get(key):
                raise SpecError(
                    f"kubeconfig {path}: the {kind}'s {key} is not honoured here, and helm would honour it",
                    field="cluster.access.path",
                    remedy=remedy,
                )


def _resolve_kubeconfig(access: ClusterAccess) -> Endpoint:
    import yaml

    path = Path(access.path or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config").expanduser()
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise NotFound(f"there is no kubeconfig {path}; check cluster.access.path", reason="NoKubeconfig") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(
            f"cannot read kubeconfig {path}: {error}", field="cluster.access.path", remedy="name a kubeconfig file"
        ) from error
    if not isinstance(config, dict):
        raise SpecError(f"{path} is not a kubeconfig", field="cluster.access.path", remedy="name a kubeconfig file")
    context = _named(config.get("contexts"), access.context or config.get("current-context") or "", "context")
    cluster = _named(config.get("clusters"), context.get("cluster", ""), "cluster")
    user = _named(config.get("users"), context.get("user", ""), "user") if context.get("user") else {}
    if "exec" in user or "auth-provider" in user:
        raise SpecError(
            f"kubeconfig {path} authenticates through a plugin, which is not run here",
            field="cluster.access",
            remedy="use access mode 'eks', or a kubeconfig with a certificate or a token",
        )
    _refuse_what_is_not_honoured(path, cluster, user)
    server = str(cluster.get("server", "")).rstrip("/")
    ssl_context = None
    if server.startswith("https://"):
        authority = _material(cluster, "certificate-authority", path)
        with _usable(path, "certificate-authority is no PEM certificate"):
            ssl_context = _context(authority, insecure=bool(cluster.get("insecure-skip-tls-verify")))
        _load_client_certificate(ssl_context, user, path)
    elif not server.startswith("http://"):
        raise SpecError(f"kubeconfig {path}: the cluster has no server address", field="cluster.access.path")
    token_file = user.get("tokenFile")
    credentials = TokenFile(path.parent / token_file, path) if token_file else FixedCredentials(user.get("token"))
    return Endpoint(server, ssl_context, credentials)


def _material(entry: Mapping[str, Any], key: str, kubeconfig: Path) -> str | None:
    """The PEM text of ``key-data`` (base64) or of the file that ``key`` names, relative to the kubeconfig."""
    if entry.get(f"{key}-data"):
        with _usable(kubeconfig, f"{key}-data is no PEM text in base64"):
            return base64.b64decode(str(entry[f"{key}-data"])).decode()
    if entry.get(key):
        with _usable(kubeconfig, f"{key} cannot be read"):
            return (kubeconfig.parent / str(entry[key])).read_text()
    return None


def _load_client_certificate(context: ssl.SSLContext, user: Mapping[str, Any], kubeconfig: Path) -> None:
    certificate = _material(user, "client-certificate", kubeconfig)
    key = _material(user, "client-key", kubeconfig)
    if not certificate or not key:
        return
    # OpenSSL loads only from files: a private one, gone before anything else runs.
    with tempfile.NamedTemporaryFile("w", prefix="gpu-fleet-", suffix=".pem") as both:
        both.write(f"{certificate}\n{key}\n")
        both.flush()
        with _usable(kubeconfig, "client-certificate and client-key are no PEM pair"):
            context.load_cert_chain(both.name)
