"""The real helm as a child process: which binary, in which environment, with which arguments.

No Python binding is used: none can be cancelled, and the command line is the only interface with every flag that can
also be stopped and killed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gpu_fleet.core.errors import ToolError, TransientError
from gpu_fleet.core.releases.helm.output import HelmVersion, parse_version
from gpu_fleet.core.releases.helm.values import values_document
from gpu_fleet.core.releases.request import Conflicts, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.releases.storage import LABEL_DIGEST
from gpu_fleet.hooks.helm.binary.folder import PrivateFolder
from gpu_fleet.hooks.helm.binary.kubeconfig import write_kubeconfig
from gpu_fleet.hooks.helm.binary.process import Finished, run_child
from gpu_fleet.hooks.kubernetes.access import ClusterAccess

log = logging.getLogger(__name__)

#: Environment variable: path of the helm binary; without it ``helm`` of PATH.
BINARY_VARIABLE = "HELM_BIN"
#: What a child inherits. Everything else (Airflow's settings, AWS credentials, Helm's own variables) is withheld.
_INHERITED = (
    "PATH", "LANG", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
_VERSION_SECONDS = 20.0


def helm_binary() -> str:
    """Path of the helm binary.

    :raises ToolError: if there is none.
    """
    wanted = os.environ.get(BINARY_VARIABLE) or "helm"
    found = shutil.which(wanted)
    if found is None:
        raise ToolError(
            f"there is no helm: {wanted!r} is not an executable file; install helm 4.x or set {BINARY_VARIABLE}",
            reason="HelmMissing",
        )
    return found


class Helm:
    """A private home for helm commands, removed on exit (or by the next one, after a SIGKILL): a context manager.

    Helm and its Kubernetes client cache discovery by host and port and read settings from several places; they must not
    see any of another user, cluster or earlier command.

    :param access: the cluster; ``None`` for commands that need none (``pull``).
    :param stop: a non-empty answer ends the running child (task killed, Lease lost).
    """

    def __init__(self, access: ClusterAccess | None = None, *, stop: Callable[[], str] = lambda: "") -> None:
        self.access = access
        self._stop = stop
        self._folder = PrivateFolder()
        self._version: HelmVersion | None = None
        self._binary = ""

    def __enter__(self) -> Helm:
        self._binary = helm_binary()
        self._folder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.__exit__(kind, error, trace)

    @property
    def folder(self) -> Path:
        """The private directory, mode 0700."""
        if self._folder.path is None:
            raise RuntimeError("Helm is a context manager: use it in a with statement")
        return self._folder.path

    @property
    def version(self) -> HelmVersion:
        """
        :raises ToolError: if the binary is not a supported helm.
        """
        if self._version is None:
            try:
                done = self._run(["version", "--template", "{{.Version}}"], _VERSION_SECONDS, {}, None)
            except OSError as error:
                raise ToolError(
                    f"{self._binary} cannot be executed: {error.strerror or error}; install helm 4.x or set "
                    f"{BINARY_VARIABLE}",
                    reason="HelmMissing",
                ) from error
            if done.ended_by:
                raise TransientError(f"helm version: {done.ended_by}", reason="Interrupted")
            self._version = parse_version(done.stdout, self._binary)
        return self._version

    def run(self, arguments: Sequence[str], *, deadline_s: float, quiet: bool = False) -> Finished:
        """Run helm without a cluster.

        :param quiet: keep its output out of the log.
        """
        extra = {}
        if os.environ.get("HELM_REGISTRY_CONFIG"):  # logins for private registries
            extra["HELM_REGISTRY_CONFIG"] = os.environ["HELM_REGISTRY_CONFIG"]
        return self._run(arguments, deadline_s, extra, None if quiet else log.info)

    def run_in_cluster(self, arguments: Sequence[str], *, deadline_s: float, quiet: bool = False) -> Finished:
        """Run helm against the cluster, with a kubeconfig that exists only while it runs.

        :param quiet: keep its output out of the log.
        """
        if self.access is None:
            raise RuntimeError("this Helm was made without a cluster")
        kubeconfig = self.folder / "kubeconfig"
        log.info("helm %s", " ".join(arguments))
        try:
            write_kubeconfig(self.access, kubeconfig)
            return self._run(arguments, deadline_s, {"KUBECONFIG": str(kubeconfig)}, None if quiet else log.info)
        finally:
            kubeconfig.unlink(missing_ok=True)

    def _run(
        self, arguments: Sequence[str], deadline_s: float, extra: Mapping[str, str], sink: Callable[[str], None] | None
    ) -> Finished:
        home = self.folder
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        env.update(
            HOME=str(home),
            TMPDIR=str(home),
            HELM_CONFIG_HOME=str(home / "config"),
            HELM_CACHE_HOME=str(home / "cache"),
            HELM_DATA_HOME=str(home / "data"),
            HELM_DRIVER="secret",
            **extra,
        )
        return run_child(
            [self._binary, *arguments], env=env, folder=home, deadline_s=deadline_s, stop=self._stop, sink=sink
        )


def _common(request: ReleaseRequest) -> list[str]:
    return ["--namespace", request.namespace, "--timeout", f"{request.policy.operation_timeout}s"]


def _change_flags(policy: ReleasePolicy, version: HelmVersion, history: int) -> list[str]:
    flags = ["--history-max", str(history)]
    if policy.conflicts is Conflicts.FORCE and version.server_side_apply:
        # Helm's default is the way the last revision was applied; for one of Helm 3 that is client-side, which detects
        # no conflicts and refuses to force any.
        flags += ["--server-side=true", "--force-conflicts"]
    if policy.wait:
        flags += ["--wait", "--wait-for-jobs"]
    return flags


def upgrade_arguments(
    request: ReleaseRequest, chart: Path, values: Path, version: HelmVersion, *, history: int
) -> list[str]:
    """``helm upgrade --install``. Always ``--reset-values``: without it an upgrade silently inherits the values of the
    last revision, even of a failed one. ``--wait`` only on request: waiting is a trigger's job."""
    arguments = ["upgrade", request.name, str(chart), "--install", "--reset-values", "--values", str(values)]
    arguments += [*_common(request), "--labels", f"{LABEL_DIGEST}={request.digest}", "--hide-notes"]
    arguments += _change_flags(request.policy, version, history)
    if request.policy.skip_crds:
        arguments.append("--skip-crds")
    return arguments


def rollback_arguments(request: ReleaseRequest, target: int, version: HelmVersion, *, history: int) -> list[str]:
    """``helm rollback`` to a named revision: without one helm takes the previous one, which may be the failed one."""
    arguments = ["rollback", request.name, str(target), *_common(request)]
    arguments += _change_flags(request.policy, version, history)
    if not request.policy.rollback_hooks:
        arguments.append("--no-hooks")
    return arguments


def uninstall_arguments(request: ReleaseRequest) -> list[str]:
    return ["uninstall", request.name, *_common(request), "--ignore-not-found"]


def test_arguments(request: ReleaseRequest) -> list[str]:
    return ["test", request.name, *_common(request)]


def template_arguments(request: ReleaseRequest, chart: Path, values: Path, kube_version: str) -> list[str]:
    """``helm template``: renders and checks the values against the chart's schema without touching the cluster."""
    arguments = ["template", request.name, str(chart), "--namespace", request.namespace, "--values", str(values)]
    return [*arguments, "--kube-version", kube_version] if kube_version else arguments


def dry_run_arguments(request: ReleaseRequest, chart: Path, values: Path) -> list[str]:
    """``helm upgrade --install --dry-run=server``: renders with the cluster's APIs and objects, and writes nothing."""
    arguments = ["upgrade", request.name, str(chart), "--install", "--reset-values", "--values", str(values)]
    return [*arguments, *_common(request), "--dry-run=server", "--hide-secret", "--hide-notes"]


def write_values(values: Mapping[str, Any], path: Path) -> None:
    """Write a values file (mode 0600).

    :raises SpecError: a text contains half of a surrogate pair, which is no character.
    """
    text = values_document(values)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
