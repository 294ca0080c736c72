"""An API server in a thread, real helm, and the release engine against them; nothing of it is faked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.errors import TransientError
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, DEPLOYMENT, LEASE, SECRET, ObjectRef
from gpu_fleet.core.releases.outcome import Outcome
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.releases.storage import decode_payload, payload_status
from gpu_fleet.hooks.helm.engine import ReleaseEngine
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
from sandbox.apiserver.server import Running, running
from sandbox.doors import links
from sandbox.settings import Settings

CHARTS = Path(__file__).parent / "charts"
NAMESPACE = "tiny-ns"
#: Seconds; a test that kills a holder waits for it.
LEASE_S = 4
#: A killed worker's helm has its signal at once, so that little is needed beyond the Lease.
LEASE_GRACE_S = 0.5
#: Every namespaced kind that the test charts make, and the engine's own. CRDs are left out: they stay by policy.
LOOKED_AT = ("secrets", "configmaps", "leases", "deployments", "daemonsets", "jobs", "pods")
_KINDS = frozenset({"Secret", "ConfigMap", "Deployment", "DaemonSet", "Job", "Pod"})
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def helm_binary(major: int = 4) -> str:
    """A real helm of that major version: what the environment names, else the pinned one."""
    from tools.toolchain import locate

    return str(dict(locate(os.environ, helm_major=major))["HELM_BIN"])


@dataclass
class World:
    """One cluster for one test.

    :ivar patience: seconds; how long something that must come about is waited for.
    :ivar proven: content digest that the ledger must call proven from now on; empty: none.
    """

    cluster: Running
    access: ClusterAccess
    helm: str
    tmp: Path
    loop: asyncio.AbstractEventLoop
    patience: float = 20.0
    proven: str = ""

    @property
    def client(self) -> Any:
        return KubernetesHook(self.access).client()

    def request(self, values: dict[str, Any] | None = None, *, chart: str = "tiny", **policy: Any) -> ReleaseRequest:
        policy.setdefault("create_namespace", True)
        return ReleaseRequest("tiny", NAMESPACE, ChartRef(str(CHARTS / chart)), values or {}, ReleasePolicy(**policy))

    @property
    def server_side_apply(self) -> bool:
        """Helm 4 applies on the server and so meets field conflicts."""
        return "helm-3" not in self.helm

    def engine(
        self,
        values: dict[str, Any] | None = None,
        *,
        me: str = "",
        chart: str = "tiny",
        lease_s: int = LEASE_S,
        lease_wait_s: float = 30,
        **policy: Any,
    ) -> ReleaseEngine:
        return ReleaseEngine(
            self.client,
            self.request(values, chart=chart, **policy),
            me=me or f"test@{time.monotonic_ns()}",
            run="dag/run",
            lease_wait_s=lease_wait_s,
            lease_s=lease_s,
            lease_grace_s=LEASE_GRACE_S,
        )

    def install_proven(self, values: dict[str, Any] | None = None, **policy: Any) -> int:
        outcome = self.engine(values, **policy).install()
        self.prove(outcome)
        return outcome.revision or 0

    def prove(self, outcome: Outcome) -> None:
        assert outcome.revision is not None
        self.engine().mark_proven(outcome.revision, outcome.secret_uid)
        self.proven = outcome.digest

    # --- what is there -------------------------------------------------------------------------------------------

    def statuses(self) -> dict[int, str]:
        """Revision -> status in the payload, read without the package's storage code path for listing."""
        found = self.client.list(SECRET, NAMESPACE, label_selector="owner=helm,name=tiny")
        return {
            int(item["metadata"]["labels"]["version"]): payload_status(decode_payload(item)).value for item in found
        }

    def settled(self) -> None:
        """Nothing pending, exactly one deployed, the newest; ledger and storage agree; the Lease is not held."""
        statuses = self.statuses()
        assert list(statuses.values()).count("deployed") == 1, statuses
        assert statuses[max(statuses)] == "deployed", statuses
        ledger = self.ledger()
        assert ledger["candidate"]["revision"] == max(statuses)
        assert "intent" not in ledger
        self.nobody_holds()

    def nobody_holds(self) -> None:
        lease = self.client.get(ObjectRef(LEASE, "gpu-fleet-release-tiny", NAMESPACE))
        assert not (lease or {}).get("spec", {}).get("holderIdentity")

    def ledger(self) -> dict[str, Any]:
        found = self.client.get(ObjectRef(CONFIG_MAP, "gpu-fleet-release-tiny", NAMESPACE))
        return {key: json.loads(text) for key, text in ((found or {}).get("data") or {}).items()}

    def config(self, name: str = "tiny-config") -> dict[str, Any] | None:
        found = self.client.get(ObjectRef(CONFIG_MAP, name, NAMESPACE))
        return None if found is None else dict(found["data"])

    def deployment(self) -> ObjectRef:
        return ObjectRef(DEPLOYMENT, "tiny", NAMESPACE)

    def writes(self, user_agent: str = "") -> int:
        return self.cluster.server.requests(writes=True, user_agent=user_agent)

    # --- the same through kubectl, decoded here: shares no code with the package -----------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl as a person runs it; its standard output."""
        command = [kubectl_binary(), "--kubeconfig", str(self.cluster.kubeconfig), *arguments]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.tmp)}
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def stored(self) -> Stored:
        """Helm's storage, ledger, Lease and the release's objects, read with kubectl."""
        text = self.kubectl("get", ",".join(LOOKED_AT), "--namespace", NAMESPACE, "--output", "json")
        return Stored.parse(json.loads(text)["items"])

    def nothing_half_done(self) -> Stored:
        """After a fault: nothing pending, at most one revision deployed."""
        stored = self.stored()
        problems = stored.half_done()
        assert not problems, problems
        return stored

    def right(self, message: str) -> Stored:
        """Everything is as it must be after a rerun: storage, ledger, Lease, objects."""
        stored = self.stored()
        problems = [*stored.half_done(), *stored.problems(message, self.proven)]
        assert not problems, problems
        return stored

    def converge(self, message: str = "in the end", **policy: Any) -> Stored:
        """A rerun with good values, and the verdict on what it leaves."""
        retried(lambda: self.engine({"message": message}, **policy).install())
        return self.right(message)

    # --- what is done to it --------------------------------------------------------------------------------------

    @contextmanager
    def faults(self, *rules: dict[str, Any]) -> Iterator[None]:
        board = self.cluster.settings.faults
        board.set("request-faults", {"rules": list(rules)})
        try:
            yield
        finally:
            board.clear("request-faults")

    def cut_connections(self) -> None:
        """Every connection to the API server is reset, of helm and of workers."""

        def cut() -> None:
            for link in links(self.cluster.server._runner):
                link.drop()

        self.loop.call_soon_threadsafe(cut)

    def by_hand(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """helm as a person runs it."""
        kubeconfig = str(self.cluster.kubeconfig)
        env = {"PATH": os.environ["PATH"], "HOME": str(self.tmp), "KUBECONFIG": kubeconfig}
        return subprocess.run(
            [self.helm, *arguments, "--namespace", NAMESPACE], env=env, capture_output=True, text=True, check=True
        )

    def worker(
        self, values: dict[str, Any], method: str = "install", *, lease_s: int = LEASE_S
    ) -> subprocess.Popen[str]:
        """The engine in a process of its own, like a task's worker, to be killed."""
        child = Path(__file__).with_name("helm_worker.py")
        task = {
            "access": self.access.to_json(), "chart": str(CHARTS / "tiny"), "values": values, "method": method,
            "namespace": NAMESPACE, "lease_s": lease_s, "lease_grace_s": LEASE_GRACE_S,
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, str(child), json.dumps(task)], env=worker_environment(self.helm), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """What kubectl shows of one release.

    :ivar revisions: revision -> (uid, digest label, status label, payload).
    :ivar owned: ``Kind/name`` of the objects that Helm says are this release's, other than hooks.
    """

    revisions: dict[int, tuple[str, str, str, dict[str, Any]]]
    ledger: dict[str, Any]
    holder: str
    owned: frozenset[str]
    config: dict[str, str] | None

    @classmethod
    def parse(cls, items: list[dict[str, Any]]) -> Stored:
        revisions, ledger, holder, owned, config = {}, {}, "", set(), None
        for item in items:
            metadata = item["metadata"]
            labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
            if item.get("type") == "helm.sh/release.v1" and labels.get("name") == "tiny":
                raw = gzip.decompress(base64.b64decode(base64.b64decode(item["data"]["release"])))
                digest = labels.get("gpu-fleet.io/digest", "")
                revisions[int(labels["version"])] = (metadata["uid"], digest, labels["status"], json.loads(raw))
            elif item["kind"] == "ConfigMap" and metadata["name"] == "gpu-fleet-release-tiny":
                ledger = {key: json.loads(text) for key, text in (item.get("data") or {}).items()}
            elif item["kind"] == "Lease" and metadata["name"] == "gpu-fleet-release-tiny":
                holder = item["spec"].get("holderIdentity") or ""
            elif (
                annotations.get("meta.helm.sh/release-name") == "tiny"
                and annotations.get("meta.helm.sh/release-namespace") == NAMESPACE
                and labels.get("app.kubernetes.io/managed-by") == "Helm"
            ):
                owned.add(f"{item['kind']}/{metadata['name']}")
            if item["kind"] == "ConfigMap" and metadata["name"] == "tiny-config":
                config = item["data"]
        return cls(revisions, ledger, holder, frozenset(owned), config)

    def status(self, revision: int) -> str:
        return str(self.revisions[revision][3]["info"]["status"])

    @property
    def statuses(self) -> dict[int, str]:
        return {number: self.status(number) for number in sorted(self.revisions)}

    def half_done(self) -> list[str]:
        statuses = self.statuses
        found = [f"revision {n} is {s}" for n, s in statuses.items() if s.startswith("pending") or s == "uninstalling"]
        if list(statuses.values()).count("deployed") > 1:
            found.append(f"several deployed: {statuses}")
        found += [f"label and payload of {n} differ" for n, entry in self.revisions.items() if entry[2] != statuses[n]]
        return found

    def problems(self, message: str, wanted_proven: str | None) -> list[str]:
        """What is wrong with a release that should be deployed with that message; empty if nothing is.

        :param wanted_proven: the content digest that the ledger should call proven; empty: none, ``None``: unknown.
        """
        if not self.revisions:
            return ["there is no release"]
        newest = max(self.revisions)
        uid, digest, _, payload = self.revisions[newest]
        candidate, proven = self.ledger.get("candidate") or {}, self.ledger.get("proven")
        manifest = payload.get("manifest") or ""
        found = []
        if [n for n, status in self.statuses.items() if status == "deployed"] != [newest]:
            found.append(f"the newest is not the deployed one: {self.statuses}")
        if (payload.get("config") or {}).get("message", "hello") != message:
            found.append(f"stored values are {payload.get('config')}, wanted message is {message!r}")
        if (candidate.get("revision"), candidate.get("uid"), candidate.get("digest")) != (newest, uid, digest):
            found.append(f"the ledger's candidate {candidate} is not revision {newest} ({uid}, {digest})")
        if not digest:
            found.append("the revision carries no digest")
        if "intent" in self.ledger:
            found.append(f"an intent was left: {self.ledger['intent']}")
        if wanted_proven is not None and (proven or {}).get("digest", "") != wanted_proven:
            found.append(f"the ledger says that {proven} is proven, wanted is {wanted_proven or 'none'}")
        if proven and proven["revision"] in self.revisions and self.revisions[proven["revision"]][0] != proven["uid"]:
            found.append("the proven revision's uid is not the stored one's")
        if proven and self.statuses.get(proven["revision"]) not in {None, "deployed", "superseded"}:
            found.append(f"the proven revision is {self.statuses.get(proven['revision'])}")
        if self.holder:
            found.append(f"the Lease is held by {self.holder}")
        if (self.config or {}).get("message") != message:
            found.append(f"the live ConfigMap says {self.config}")
        documents = [item for item in yaml.safe_load_all(manifest) if item]
        listed = {f"{item['kind']}/{item['metadata']['name']}" for item in documents if item["kind"] in _KINDS}
        if self.owned != listed:
            found.append(f"leaked: {sorted(self.owned - listed)}, missing: {sorted(listed - self.owned)}")
        return found


def worker_environment(helm: str) -> dict[str, str]:
    """Of a child that imports the package; its private folders are where those of the test's process are."""
    return {
        **os.environ, "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}", "HELM_BIN": helm, "TMPDIR": tempfile.gettempdir(),
    }  # fmt: skip


def task_context() -> dict[str, Any]:
    """The context of a task, without an Airflow."""
    from tests.unit.airflow_context import TaskInstance, context

    ti = TaskInstance(dag_id="dag", run_id="run")
    ti.task_id, ti.try_number, ti.map_index = "task", 1, -1  # type: ignore[attr-defined]
    return context(ti)


def operator(place: World, **changes: Any) -> Any:
    """The operator for any chart, on this world's release."""
    from gpu_fleet.helm import HelmReleaseOperator

    fields: dict[str, Any] = {
        "task_id": "task", "release_name": "tiny", "namespace": NAMESPACE, "chart": str(CHARTS / "tiny"),
        "access": place.access.to_json(), "create_namespace": True, **changes,
    }  # fmt: skip
    return HelmReleaseOperator(**fields)


@functools.cache
def kubectl_binary() -> str:
    """kubectl, whatever helm a test has chosen."""
    from tools.toolchain import locate

    return str(dict(locate({name: value for name, value in os.environ.items() if name != "HELM_BIN"}))["KUBECTL_BIN"])


def retried(call: Callable[[], Any], times: int = 3) -> Any:
    """A call as Airflow's retry policy treats it: what is transient is tried again."""
    for attempt in range(times):
        try:
            return call()
        except TransientError:
            if attempt == times - 1:
                raise
    return None


def helm_children(of: int | None = None) -> list[int]:
    """Pids of running helm processes that this test's processes started (known by their temporary folder)."""
    found, ours = [], f"TMPDIR={tempfile.gettempdir()}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        mine = b"--namespace" in argv and NAMESPACE.encode() in argv and b"helm" in argv[0] and ours in environment
        if mine and state[0] != "Z" and of in (None, int(state[1])):
            found.append(int(folder.name))
    return found


def wait_for(what: str, holds: Callable[[], Any], patience: float = 20.0) -> Any:
    """Poll until it holds; the patience is generous, a test never measures time."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found = holds()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} never came about")


@contextlib.asynccontextmanager
async def _controllers(cluster: Running) -> AsyncIterator[None]:
    from sandbox.controllers import run
    from sandbox.kube.client import Kube
    from sandbox.settings import Clock

    kube = Kube.from_kubeconfig(cluster.kubeconfig, user_agent="controllers")
    task = asyncio.create_task(run(cluster.settings, Clock(1.0), kube))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()


@contextmanager
def world(tmp: Path, helm: str, *, controllers: bool = False) -> Iterator[World]:
    """A cluster, served from a thread.

    :param controllers: also what kube-controller-manager and the scheduler do; without them, workloads stay
        as they are.
    """
    state = tmp / "state"
    state.mkdir()
    started: Any = threading.Event()
    place: dict[str, Any] = {}

    async def serve() -> None:
        place["stop"] = asyncio.Event()
        place["loop"] = asyncio.get_running_loop()
        async with running(state, settings=Settings(state_dir=state)) as cluster:
            place["cluster"] = cluster
            async with _controllers(cluster) if controllers else contextlib.nullcontext():
                started.set()
                await place["stop"].wait()
        await asyncio.sleep(0.3)  # TLS connections are closed in the loop's next rounds

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    cluster = place["cluster"]
    access = ClusterAccess("kubeconfig", None, None, None, path=str(cluster.kubeconfig))
    try:
        yield World(cluster, access, helm, tmp, place["loop"])
    finally:
        pool = KubernetesHook(access).client()._transport._pool
        if pool is not None:
            pool.clear()
        place["loop"].call_soon_threadsafe(place["stop"].set)
        thread.join(20)


def helm_missing() -> bool:
    return shutil.which(os.environ.get("HELM_BIN") or "helm") is None


@contextmanager
def private_world(
    tmp: Path, helm: str, monkeypatch: pytest.MonkeyPatch, *, controllers: bool = False
) -> Iterator[World]:
    """A world whose helm is the environment's, and a check that it leaves no kubeconfig behind."""
    monkeypatch.setenv("HELM_BIN", helm)
    private = tmp / "tmp"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    with world(tmp, helm, controllers=controllers) as found:
        yield found
    assert list(private.iterdir()) == [], "a private directory with a kubeconfig was left behind"
