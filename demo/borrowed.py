"""The demo on a borrowed API server: the checks before it, what it creates there, and the clean-up afterwards.

kind, k3s, envtest or a real control plane: whatever a kubeconfig reaches. The sandbox provides AWS, nodes and
Karpenter; the server is the user's, and so are its controllers and scheduler if it has them. To touch no object of
others, the demo refuses a server with anything that it would create itself, or with nodes to which its pods might be
scheduled.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from demo.belongings import Thing, belonging, things
from demo.kubectl import Kubectl
from demo.stack import StackError

MARK = "gpu-fleet-demo"
MARK_NAMESPACE = "kube-system"
#: Seconds that deleted objects may take to be gone.
PATIENCE_S = 90.0
#: A leader renews its Lease every few seconds; one older than this is dead (client-go: 15 s).
FRESH_S = 60.0
#: Maximum number of names in one line.
SHOWN = 8
#: The parts of the sandbox for a borrowed server without controllers of its own, such as envtest.
WITH_CONTROLLERS = ("aws", "controllers", "nodes", "karpenter", "charts")


def few(names: Sequence[str]) -> str:
    """Some names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass
class Borrowed:
    """A borrowed API server.

    :ivar kubeconfig: a private copy of the context that is used.
    :ivar given: the user's kubeconfig.
    :ivar version: of Kubernetes, for example ``1.36``.
    :ivar controllers: whether a kube-controller-manager and a scheduler run there.
    :ivar before: UID to kind and name of all objects when the demo began.
    """

    kubeconfig: Path
    kubectl: Kubectl
    server: str = ""
    version: str = ""
    controllers: bool = True
    before: dict[str, str] = field(default_factory=dict)
    given: Path | None = None

    @classmethod
    def open(cls, kubeconfig: Path, home: Path) -> Borrowed:
        """
        :raises StackError: it cannot be used, or must not; the message says what to do.
        """
        path = kubeconfig.expanduser().resolve()
        if not path.is_file():
            raise StackError(f"there is no kubeconfig {path}; name a file with one")
        found = cls(path, Kubectl(str(path), home), given=path)
        try:
            config = json.loads(found.kubectl.run("config", "view", "--minify", "-o", "json"))
            told = json.loads(found.kubectl.run("version", "-o", "json", "--request-timeout=10s"))["serverVersion"]
            pinned = found.kubectl.run("config", "view", "--minify", "--flatten", "--raw")
        except (RuntimeError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
            raise StackError(f"the API server of {path} does not answer: {error}; is it up?") from error
        user = (config.get("users") or [{"user": {}}])[0]["user"]
        if "exec" in user or "auth-provider" in user:
            raise StackError(
                f"{path} needs a credential plugin, which the sandbox does not run; write a kubeconfig with a client "
                "certificate or a token"
            )
        found.server = config["clusters"][0]["cluster"]["server"]
        found.version = f"{told['major']}.{str(told['minor']).rstrip('+')}"
        # A copy of this context only: a later change of the file's current context must not redirect the demo.
        found.kubeconfig = home.parent / "borrowed.kubeconfig"
        found.kubeconfig.unlink(missing_ok=True)
        with os.fdopen(os.open(found.kubeconfig, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(pinned)
        found.kubectl = Kubectl(str(found.kubeconfig), home)
        return found

    def claim(self) -> None:
        """Check that the demo harms nothing there, remember what exists, and leave a mark.

        :raises StackError: it would harm something, or another demo is there.
        """
        if self.kubectl.run_quietly("auth", "can-i", "*", "*", "--all-namespaces").strip() != "yes":
            raise StackError(f"{self.given} may not do everything on {self.server}; the demo needs cluster-admin")
        found = things(self.kubectl)
        reasons = refusals(found, f"make demo-clean KUBECONFIG_FILE={self.given}")
        if reasons:
            raise StackError(f"the demo does not run on {self.server}: " + "; ".join(reasons))
        self.controllers = has_controllers(found, datetime.now(UTC))
        self.before = {thing.uid: thing.name for thing in found}
        mark = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": MARK, "namespace": MARK_NAMESPACE, "labels": {"gpu-fleet.io/component": "demo"}},
            "data": {"since": datetime.now(UTC).isoformat(), "by": f"{getpass.getuser()}@{socket.gethostname()}"},
        }
        try:
            self.kubectl.run("create", "-f", "-", stdin=json.dumps(mark))
        except RuntimeError as error:
            raise StackError(f"another demo has just begun on {self.server}: {error}") from error

    def write_spec(self, file: Path) -> None:
        """Make a cluster file use this server: EKS tokens are valid only for the sandbox's own server."""
        spec = yaml.safe_load(file.read_text())
        spec["cluster"] |= self.cluster()
        file.write_text(yaml.safe_dump(spec, sort_keys=False))

    def cluster(self) -> dict[str, Any]:
        """The fields of a cluster file by which this server is reached."""
        return {"version": self.version, "access": {"mode": "kubeconfig", "path": str(self.kubeconfig)}}

    def clean(self) -> Cleaned:
        """Remove everything that the demo created there, and nothing else. Having nothing to do is no error.

        :raises StackError: there is no mark of a demo.
        """
        if not self.kubectl.get("configmap", MARK, "-n", MARK_NAMESPACE):
            raise StackError(f"no demo has been on {self.server}: the ConfigMap {MARK_NAMESPACE}/{MARK} is missing")
        self.controllers = has_controllers(things(self.kubectl), datetime.now(UTC))
        began = time.monotonic()
        removed: dict[str, str] = {}
        while True:
            found = things(self.kubectl)
            left = belonging(found)
            if not left or time.monotonic() - began > PATIENCE_S:
                break
            removed |= {thing.uid: thing.name for thing in left}
            self._remove(left)
            time.sleep(1.0)
        if not left:
            self.kubectl.run("delete", "configmap", MARK, "-n", MARK_NAMESPACE, "--ignore-not-found")
        gone = self._gone({thing.uid for thing in found})
        return Cleaned(sorted(removed.values()), [thing.name for thing in left], len(self.before), gone)

    def _gone(self, now: set[str]) -> list[str]:
        """What was there before and is missing now, without Leases, Endpoints and the like, which come and go."""
        fleeting = ("Lease ", "Endpoints ", "EndpointSlice ")
        return sorted(n for uid, n in self.before.items() if uid not in now and not n.startswith(fleeting))

    def _remove(self, left: list[Thing]) -> None:
        """One round: delete everything, and remove finalizers whose controller is gone.

        What fails is retried in the next round, and reported at the end if it is still there.
        """
        custom = [thing for thing in left if thing.is_custom]
        for thing in left:
            if thing.crd and custom:
                continue  # its objects first, while their kind exists
            if thing.finalizers and (thing.is_custom or thing.kind == "Node"):
                self.kubectl.run_quietly(
                    "patch", *thing.address, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
                )
            # No kubelet runs any more that could confirm the end of a pod.
            force = ("--force", "--grace-period=0") if thing.kind == "Pod" else ()
            self.kubectl.run_quietly("delete", *thing.address, "--ignore-not-found", "--wait=false", *force)
            if thing.kind == "Namespace" and thing.leaving and not self.controllers:
                self._finalize(thing)

    def _finalize(self, namespace: Thing) -> None:
        """What the namespace controller does, where there is none."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.object_name}, "spec": {}}
        path = f"/api/v1/namespaces/{namespace.object_name}/finalize"
        try:
            self.kubectl.run("replace", "--raw", path, "-f", "-", stdin=json.dumps(body))
        except RuntimeError:
            return  # it is not empty yet, or gone


@dataclass(frozen=True)
class Cleaned:
    """What the demo removed, what it could not remove, and which objects from before it are missing."""

    removed: list[str]
    left: list[str]
    before: int
    gone: list[str]

    @property
    def text(self) -> str:
        lines = [f"cluster {len(self.removed)} objects of the demo were removed from the API server"]
        if self.left:
            lines.append(f"        LEFT there: {few(self.left)}; run make demo-clean again, or delete them by hand")
        if self.before:
            fate = f"are there but for {few(self.gone)}" if self.gone else "are all there"
            lines.append(f"        the {self.before} objects from before the demo {fate}")
        return "\n".join(lines)


def refusals(found: Iterable[Thing], remedy: str) -> list[str]:
    """Why the demo must not run on a server with these objects; empty if it may.

    :param remedy: the command that removes what an earlier demo left.
    """
    found = list(found)
    ours = belonging(found)
    mark = next((thing for thing in found if thing.name == f"ConfigMap {MARK_NAMESPACE}/{MARK}"), None)
    if mark is not None:
        data = mark.data
        return [
            f"a demo of {data.get('by', 'unknown')} has been there since {data.get('since', 'unknown')}; if it has "
            f"ended, remove what it left: {remedy}"
        ]
    reasons = []
    if ours:
        reasons.append(
            f"it has {few([thing.name for thing in ours])}, which the demo would create, change and remove; use a "
            "cluster without Karpenter and without gpu-fleet"
        )
    open_nodes = [thing.object_name for thing in found if thing.kind == "Node" and not thing.cordoned]
    strangers = [name for name in open_nodes if name not in {thing.object_name for thing in ours}]
    if strangers:
        reasons.append(
            f"the demo's pods could be scheduled to {few(strangers)}, where a real kubelet would pull and start them; "
            f"cordon it while the demo runs (kubectl cordon {strangers[0]}), or use a control plane without nodes"
        )
    return reasons


def has_controllers(found: Iterable[Thing], now: datetime) -> bool:
    """Whether a controller manager runs there, according to the Lease that it renews.

    k3s runs it, and the scheduler, with the same Leases.
    """
    leases = {thing.object_name: thing for thing in found if thing.kind == "Lease" and thing.namespace == "kube-system"}
    lease = leases.get("kube-controller-manager")
    if lease is None or not lease.renewed:
        return False
    return now - datetime.fromisoformat(lease.renewed) < timedelta(seconds=FRESH_S)


def label_of(version: str, server: str, controllers: bool) -> str:
    """One line about the borrowed server, for the start."""
    whose = "its own controllers and scheduler" if controllers else "the sandbox's controllers, as it runs none itself"
    return f"using the API server {server}, Kubernetes {version}, with {whose}"
