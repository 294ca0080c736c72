"""What one context of a kubeconfig file says, with the files that it names."""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from gpu_fleet.core.errors import NotFound, SpecError
from gpu_fleet.hooks.kubernetes.credentials import Credentials, Endpoint, FixedCredentials, TokenFile, trusting, usable

#: Fields of a kubeconfig (kubernetes/client-go v0.36 tools/clientcmd/api/v1/types.go) that change the identity or the
#: route of a request and that helm honours. This client does not: it would act as another user than helm, or reach
#: another server.
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


@dataclass(frozen=True)
class Kubeconfig:
    """
    :ivar path: the file.
    :ivar server: base URL without a trailing slash.
    :ivar insecure: accept any certificate of the server.
    :ivar authority: PEM text; ``None`` to trust the system's authorities.
    :ivar certificate: PEM text of the client certificate.
    :ivar key: its key, PEM text.
    :ivar token: ``None`` without one.
    :ivar token_file: where another program keeps a token fresh.
    """

    path: Path
    server: str
    insecure: bool = False
    authority: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None

    @classmethod
    def read(cls, path: str | None, context: str | None) -> Kubeconfig:
        """
        :param path: the file; ``None`` for the first that ``$KUBECONFIG`` names, or the default one.
        :param context: ``None`` for the current one.
        :raises NotFound: there is no such file.
        :raises SpecError: the file, or what it holds or names, is not usable.
        """
        file = Path(path or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config").expanduser()
        config = _load(file)
        chosen = _named(config.get("contexts"), context or config.get("current-context") or "", "context")
        cluster = _named(config.get("clusters"), chosen.get("cluster", ""), "cluster")
        user = _named(config.get("users"), chosen.get("user", ""), "user") if chosen.get("user") else {}
        _refuse_plugins(file, user)
        _refuse_what_is_not_honoured(file, cluster, user)
        server = str(cluster.get("server", "")).rstrip("/")
        if not server.startswith(("https://", "http://")):
            raise SpecError(f"kubeconfig {file}: the cluster has no server address", field="cluster.access.path")
        tls = server.startswith("https://")
        return cls(
            file,
            server,
            insecure=bool(cluster.get("insecure-skip-tls-verify")),
            authority=_material(cluster, "certificate-authority", file) if tls else None,
            certificate=_material(user, "client-certificate", file) if tls else None,
            key=_material(user, "client-key", file) if tls else None,
            token=user.get("token"),
            token_file=file.parent / user["tokenFile"] if user.get("tokenFile") else None,
        )

    def fingerprint(self) -> str:
        """A digest of all fields: it changes with any of them and keeps no secret."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()

    def endpoint(self) -> Endpoint:
        """
        :raises SpecError: certificates or key are not what they should be.
        """
        credentials: Credentials = FixedCredentials(self.token)
        if self.token_file is not None:
            credentials = TokenFile(self.token_file, self.path)
        if not self.server.startswith("https://"):
            return Endpoint(self.server, None, credentials)
        with usable(self.path, "certificate-authority is no PEM certificate"):
            context = trusting(self.authority, insecure=self.insecure)
        self._load_client_certificate(context)
        return Endpoint(self.server, context, credentials)

    def _load_client_certificate(self, context: ssl.SSLContext) -> None:
        if not self.certificate or not self.key:
            return
        # OpenSSL loads only from files: a private one, deleted before anything else runs.
        with tempfile.NamedTemporaryFile("w", prefix="gpu-fleet-", suffix=".pem") as both:
            both.write(f"{self.certificate}\n{self.key}\n")
            both.flush()
            with usable(self.path, "client-certificate and client-key are no PEM pair"):
                context.load_cert_chain(both.name)


def _load(path: Path) -> dict[str, Any]:
    import yaml

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
    return config


def _named(entries: Any, name: str, kind: str) -> dict[str, Any]:
    for entry in entries or []:
        if entry.get("name") == name:
            return dict(entry.get(kind) or {})
    raise SpecError(f"the kubeconfig has no {kind} {name!r}", field="cluster.access.context", remedy="name one it has")


def _refuse_plugins(path: Path, user: Mapping[str, Any]) -> None:
    """
    :raises SpecError: the user's credentials come from a plugin.
    """
    if "exec" in user or "auth-provider" in user:
        raise SpecError(
            f"kubeconfig {path} authenticates through a plugin, which is not run here",
            field="cluster.access",
            remedy="use access mode 'eks', or a kubeconfig with a certificate or a token",
        )


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


def _material(entry: Mapping[str, Any], key: str, kubeconfig: Path) -> str | None:
    """The PEM text of ``key-data`` (base64) or of the file that ``key`` names, relative to the kubeconfig."""
    if entry.get(f"{key}-data"):
        with usable(kubeconfig, f"{key}-data is no PEM text in base64"):
            return base64.b64decode(str(entry[f"{key}-data"])).decode()
    if entry.get(key):
        with usable(kubeconfig, f"{key} cannot be read"):
            return (kubeconfig.parent / str(entry[key])).read_text()
    return None
