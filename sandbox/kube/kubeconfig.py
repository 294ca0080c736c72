"""Reading kubeconfig files: the server and the client's identity."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Access:
    """
    :ivar ssl_context: for TLS, with the client certificate if there is one; ``None`` for a plain-text server.
    :ivar certificate_authority: PEM.
    """

    server: str
    ssl_context: ssl.SSLContext | None
    token: str | None
    certificate_authority: str | None


def read_kubeconfig(path: Path, context: str | None = None) -> Access:
    """Server, CA and identity of a context, by default the current one.

    :raises ValueError: if the file lacks the context, or its user needs an exec plugin.
    """
    config = yaml.safe_load(path.read_text())

    def named(section: str, name: str, field: str) -> dict[str, Any]:
        for entry in config.get(section) or []:
            if entry["name"] == name:
                return entry.get(field) or {}
        raise ValueError(f"{path}: no entry {name!r} under {section}")

    current = named("contexts", context or config.get("current-context", ""), "context")
    cluster = named("clusters", current["cluster"], "cluster")
    user = named("users", current["user"], "user") if current.get("user") else {}
    if "exec" in user or "auth-provider" in user:
        raise ValueError(f"{path}: user {current['user']!r} needs a credential plugin; use a certificate or a token")
    token = user.get("token")
    if not token and user.get("tokenFile"):
        token = (path.parent / user["tokenFile"]).read_text().strip()
    authority = _material(path.parent, cluster, "certificate-authority")
    return Access(
        server=cluster["server"],
        ssl_context=_ssl_context(path.parent, cluster, user) if cluster["server"].startswith("https") else None,
        token=token,
        certificate_authority=authority.decode() if authority else None,
    )


def _material(folder: Path, entry: dict[str, Any], field: str) -> bytes | None:
    """A certificate or key, from ``<field>-data`` (base64) or from the file that ``<field>`` names."""
    if data := entry.get(f"{field}-data"):
        return base64.b64decode(data)
    return (folder / entry[field]).read_bytes() if entry.get(field) else None


def _ssl_context(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    authority = _material(folder, cluster, "certificate-authority")
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _material(folder, user, "client-certificate"), _material(folder, user, "client-key")
    if certificate and key:
        # The ssl module reads client certificates from files only; mkstemp makes this one private.
        descriptor, name = tempfile.mkstemp(prefix="kube-client-", suffix=".pem")
        try:
            os.write(descriptor, certificate + b"\n" + key)
            os.close(descriptor)
            context.load_cert_chain(name)
        finally:
            os.unlink(name)
    return context
