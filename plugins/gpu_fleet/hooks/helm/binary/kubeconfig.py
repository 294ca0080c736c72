"""The kubeconfig of a helm child: one cluster, one user, all inline, in a private file that exists during the call."""

from __future__ import annotations

import base64
import json
import os
import ssl
from pathlib import Path
from typing import Any

from gpu_fleet.hooks.kubernetes.access import ClusterAccess, resolve


def write_kubeconfig(access: ClusterAccess, path: Path) -> None:
    """Write a kubeconfig (mode 0600) with a *fresh* token.

    A helm operation must not start with a token about to expire: EKS accepts one for 15 minutes.
    """
    text = json.dumps(_config(access))  # JSON is YAML
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _config(access: ClusterAccess) -> dict[str, Any]:
    cluster, user = _from_eks(access) if access.mode == "eks" else _from_file(access)
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    }


def _from_eks(access: ClusterAccess) -> tuple[dict[str, Any], dict[str, Any]]:
    endpoint = resolve(access)
    endpoint.credentials.renew()
    token = endpoint.credentials.headers()["Authorization"].removeprefix("Bearer ")
    cluster: dict[str, Any] = {"server": endpoint.server}
    if endpoint.ssl_context is not None:
        authorities = endpoint.ssl_context.get_ca_certs(binary_form=True)
        pem = "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in authorities)
        cluster["certificate-authority-data"] = base64.b64encode(pem.encode()).decode()
    return cluster, {"token": token}


_INLINE = {"certificate-authority", "client-certificate", "client-key"}


def _from_file(access: ClusterAccess) -> tuple[dict[str, Any], dict[str, Any]]:
    """The access's context of a kubeconfig file, with referenced files inlined. The file was checked by ``resolve``."""
    import yaml

    resolve(access)
    path = Path(access.path or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config").expanduser()
    config = yaml.safe_load(path.read_text())
    context = _named(config["contexts"], access.context or config.get("current-context"), "context")
    cluster = _named(config["clusters"], context.get("cluster"), "cluster")
    user = _named(config.get("users") or [], context.get("user"), "user") if context.get("user") else {}
    for entry in (cluster, user):
        for key in _INLINE & entry.keys():
            content = (path.parent / str(entry.pop(key))).read_bytes()
            entry.setdefault(f"{key}-data", base64.b64encode(content).decode())
    if "tokenFile" in user:
        user["token"] = (path.parent / str(user.pop("tokenFile"))).read_text().strip()
    return cluster, user


def _named(entries: list[dict[str, Any]], name: str | None, kind: str) -> dict[str, Any]:
    return next(dict(entry.get(kind) or {}) for entry in entries if entry.get("name") == name)
