"""An API server in a thread, real helm, and the release engine against them; nothing of it is faked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_fleet.core.kinds import CONFIG_MAP, DEPLOYMENT, LEASE, SECRET, ObjectRef
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.releases.storage import decode_payload, payload_status
from gpu_fleet.hooks.helm_release import ReleaseEngine
from gpu_fleet.hooks.kubernetes import ClusterAccess, KubernetesHook
from sandbox.apiserver.server import Running, running
from sandbox.settings import Settings

CHARTS = Path(__file__).parent / "charts"
NAMESPACE = "tiny-ns"
#: Seconds; a test that kills a holder waits for it.
LEASE_S = 4
ROOT = Path(__file__).resolve().parents[2]


def helm_binary(major: int = 4) -> str:
    """A real helm of that major version: what the environment names, else the pinned one."""
    from tools.toolchain import locate

    return str(dict(locate(os.environ, helm_major=major))["HELM_BIN"])


@dataclass
class World:
    """One cluster for one test."""

    cluster: Running
    access: ClusterAccess
    helm: str
    tmp: Path

    @property
    def client(self) -> Any:
        return KubernetesHook(self.access).client()

    def request(self, values: dict[str, Any] | None = None, *, chart: str = "tiny", **policy: Any) -> ReleaseRequest:
        policy.setdefault("create_namespace", True)
        return ReleaseRequest("tiny", NAMESPACE, ChartRef(str(CHARTS / chart)), values or {}, ReleasePolicy(**policy))

    def engine(
        self, values: dict[str, Any] | None = None, *, me: str = "", chart: str = "tiny", **policy: Any
    ) -> ReleaseEngine:
        return ReleaseEngine(
            self.client,
            self.request(values, chart=chart, **policy),
            me=me or f"test@{time.monotonic_ns()}",
            run="dag/run",
            lease_wait_s=30,
            lease_s=LEASE_S,
        )

    def install_proven(self, values: dict[str, Any] | None = None, **policy: Any) -> int:
        engine = self.engine(values, **policy)
        outcome = engine.install()
        assert outcome.revision is not None
        return engine.mark_proven(outcome.revision, outcome.secret_uid).revision or 0

    # --- what is there -------------------------------------------------------------------------------------------

    def statuses(self) -> dict[int, str]:
        """Revision -> status in the payload, read without the package's storage code path for listing."""
        found = self.client.list(SECRET, NAMESPACE, label_selector="owner=helm,name=tiny")
        return {
            int(item["metadata"]["labels"]["version"]): payload_status(decode_payload(item)).value for item in found
        }

    def settled(self) -> None:
        """Nothing pending, exactly one deployed, the newest; ledger and storage agree; nobody holds the Lease."""
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

    def writes(self) -> int:
        return self.cluster.server.requests(writes=True)

    # --- what is done to it --------------------------------------------------------------------------------------

    @contextmanager
    def faults(self, *rules: dict[str, Any]) -> Iterator[None]:
        board = self.cluster.settings.faults
        board.set("request-faults", {"rules": list(rules)})
        try:
            yield
        finally:
            board.clear("request-faults")

    def by_hand(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """helm as a person runs it."""
        kubeconfig = str(self.cluster.kubeconfig)
        env = {"PATH": os.environ["PATH"], "HOME": str(self.tmp), "KUBECONFIG": kubeconfig}
        return subprocess.run(
            [self.helm, *arguments, "--namespace", NAMESPACE], env=env, capture_output=True, text=True, check=True
        )

    def worker(self, values: dict[str, Any], method: str = "install") -> subprocess.Popen[str]:
        """The engine in a process of its own, like a task's worker, to be killed."""
        child = Path(__file__).with_name("helm_worker.py")
        task = {
            "access": self.access.to_json(), "chart": str(CHARTS / "tiny"), "values": values, "method": method,
            "namespace": NAMESPACE, "lease_s": LEASE_S,
        }  # fmt: skip
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}", "HELM_BIN": self.helm}
        return subprocess.Popen(
            [sys.executable, str(child), json.dumps(task)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip


def helm_children(of: int | None = None) -> list[int]:
    """Pids of running helm processes that this test's processes started (their private HOME tells)."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        mine = b"--namespace" in argv and NAMESPACE.encode() in argv and b"helm" in argv[0]
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


@contextmanager
def world(tmp: Path, helm: str) -> Iterator[World]:
    """A cluster, served from a thread."""
    state = tmp / "state"
    state.mkdir()
    started: Any = threading.Event()
    place: dict[str, Any] = {}

    async def serve() -> None:
        place["stop"] = asyncio.Event()
        place["loop"] = asyncio.get_running_loop()
        async with running(state, settings=Settings(state_dir=state)) as cluster:
            place["cluster"] = cluster
            started.set()
            await place["stop"].wait()
        await asyncio.sleep(0.3)  # TLS connections are closed in the loop's next rounds

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    cluster = place["cluster"]
    access = ClusterAccess("kubeconfig", None, None, None, path=str(cluster.kubeconfig))
    try:
        yield World(cluster, access, helm, tmp)
    finally:
        pool = KubernetesHook(access).client()._transport._pool
        if pool is not None:
            pool.clear()
        place["loop"].call_soon_threadsafe(place["stop"].set)
        thread.join(20)


def helm_missing() -> bool:
    return shutil.which(os.environ.get("HELM_BIN") or "helm") is None
