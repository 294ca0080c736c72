"""An API server that the sandbox does not run itself: a kind, k3s or envtest cluster, by its kubeconfig."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sandbox.kube.client import Kube
from sandbox.state import SandboxError


@dataclass(frozen=True)
class Server:
    """The address of such an API server.

    :ivar ca_data: base64 of its CA's PEM text.
    :ivar version: ``1.35``, empty if it does not say.
    """

    url: str
    ca_data: str | None
    version: str


async def find_server(path: Path, say: Callable[[str], None]) -> Server:
    """Ask the API server of a kubeconfig for its version; the simulated EKS then hands out its address.

    :raises SandboxError: if the file cannot be used or the server does not answer.
    """
    try:
        kube = Kube.from_kubeconfig(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise SandboxError(f"cannot use the kubeconfig {path}: {error}", code=2) from error
    try:
        version = await kube.raw("GET", "/version")
    except Exception as error:
        raise SandboxError(f"the API server {kube.server} of {path} does not answer: {error}") from error
    finally:
        await kube.close()
    say(f"using the API server {kube.server} ({version.get('gitVersion', 'version unknown')})")
    authority = kube.certificate_authority
    return Server(
        kube.server,
        base64.b64encode(authority.encode()).decode() if authority else None,
        _minor_version(version),
    )


def _minor_version(answer: Any) -> str:
    """``1.35`` of what ``/version`` answers: hosted servers write ``35+`` as the minor."""
    if not isinstance(answer, dict):
        return ""
    major, minor = str(answer.get("major", "")), str(answer.get("minor", "")).rstrip("+")
    return f"{major}.{minor}" if major.isdecimal() and minor.isdecimal() else ""
