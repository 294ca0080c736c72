"""Spot interruptions through the whole of it: ``python -m bench.spot [--nodes 100] [--pods 8] [--singles 20]``.

A real Airflow (standalone, SQLite) and the sandbox's AWS and API server; nodes and pods are objects, and a stand-in for
the kubelets, in a process of its own, ends each pod half a second after its deletion was requested. Karpenter has no
queue: the evictions are the package's. Messages are sent to the package's queue as EventBridge would; the times of
cordons and evictions are the API server's, from its audit log.

Printed are p50, p95 and maximum in seconds: first for single interruptions one after the other, then for all nodes at
once.

    eval "$(python tools/toolchain.py --export)"; PYTHONPATH=plugins:. python -m bench.spot
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import yaml

from bench.drain import kubelets
from demo.api import AirflowApi
from demo.control import Sandbox
from demo.kubectl import Kubectl
from demo.spot import DRAIN, await_watcher, runs_of
from demo.stack import ROOT, Stack

POOL = "shared-a10g"
QUEUE = "demo-gpu-gpu-fleet"
CRDS = ROOT / "sandbox" / "charts" / "karpenter-crd" / "templates"
#: What the package promises, in seconds.
GOALS = {"cordoned p50": 0.5, "cordoned p95": 1.0, "first eviction p95": 3.0}
STORM_GOALS = {"all cordoned": 3.0, "all evictions issued": 15.0, "all drained": 120.0}


class Bench:
    """A running stack with nodes."""

    def __init__(self, stack: Stack, pods: int) -> None:
        self.stack, self.pods = stack, pods
        state = stack.sandbox_state()
        self.sandbox = Sandbox(state)
        self.environment: dict[str, str] = state["env"]
        self.kubectl = Kubectl(self.environment["KUBECONFIG"], stack.build_dir / "home")
        self.api = AirflowApi(stack.airflow_url, "admin", stack.password())
        self.sqs = boto3.client(
            "sqs",
            region_name="us-west-2",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        self.url = self.sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]

    def prepare(self) -> None:
        """The definitions that the package asks for, and the DAG, with its watcher."""
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient

        access = ClusterAccess("kubeconfig", None, None, None, path=self.environment["KUBECONFIG"])
        self.kube = KubeClient(access)
        for path in sorted(CRDS.glob("*.yaml")):
            for document in yaml.safe_load_all(path.read_text()):
                self.kube.apply(document)
        self.api.wait_for_dag(DRAIN)
        await_watcher(self)
        time.sleep(5)

    def make(self, names: list[str]) -> None:
        from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef

        for name in names:
            labels = {"karpenter.sh/nodepool": POOL, "node.kubernetes.io/instance-type": "g5.xlarge"}
            spec = {"providerID": f"aws:///us-west-2a/{instance(name)}"}
            self.kube.create(
                {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec}
            )
            ready = {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}
            self.kube.patch(ObjectRef(NODE, name), {"status": ready}, subresource="status")
            reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
            self.kube.create(
                {
                    "apiVersion": "karpenter.sh/v1",
                    "kind": "NodeClaim",
                    "metadata": {"name": f"claim-{name}", "labels": {"karpenter.sh/nodepool": POOL}},
                    "spec": {"nodeClassRef": reference, "requirements": []},
                }
            )
            status = {"nodeName": name, **spec}
            self.kube.patch(ObjectRef(NODE_CLAIM, f"claim-{name}"), {"status": status}, subresource="status")
            for index in range(self.pods):
                owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": True}
                pod = f"{name}-{index}"
                self.kube.create(
                    {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {"name": pod, "namespace": "default", "ownerReferences": [owner]},
                        "spec": {"nodeName": name, "containers": [{"name": "c", "image": "x"}]},
                    }
                )
                running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
                self.kube.patch(ObjectRef(POD, pod, "default"), {"status": running}, subresource="status")

    def interrupt(self, names: list[str]) -> dict[str, float]:
        """Announce the end of the nodes' instances; node -> when its message was sent."""
        sent = {}
        for start in range(0, len(names), 10):
            batch = names[start : start + 10]
            entries = [{"Id": str(index), "MessageBody": json.dumps(event(name))} for index, name in enumerate(batch)]
            now = time.time()
            self.sqs.send_message_batch(QueueUrl=self.url, Entries=entries)
            sent |= dict.fromkeys(batch, now)
        return sent

    def await_empty(self, names: list[str], timeout: float = 180.0) -> float:
        """When the last pod of the nodes was gone."""
        from gpu_fleet.core.kubernetes.kinds import POD

        deadline, wanted = time.time() + timeout, set(names)
        while any(pod["spec"].get("nodeName") in wanted for pod in self.kube.list(POD)):
            if time.time() > deadline:
                raise TimeoutError("the nodes were not drained in time")
            time.sleep(0.2)
        return time.time()

    def await_runs(self, timeout: float = 180.0) -> list[dict[str, Any]]:
        """All runs of the drain, ended."""
        deadline = time.time() + timeout
        while any(run["state"] in ("queued", "running") for run in runs_of(self, DRAIN)):
            if time.time() > deadline:
                raise TimeoutError("runs of the drain are still open")
            time.sleep(0.5)
        return runs_of(self, DRAIN)

    def writes(self, since: int) -> tuple[list[dict[str, Any]], int]:
        page = self.sandbox.call("GET", "/audit", params={"since": since})
        return page["entries"], page["next"]


def instance(name: str) -> str:
    return f"i-{int(name[1:]):017x}"


def event(name: str) -> dict[str, Any]:
    return {
        "version": "0",
        "id": f"bench-{name}-{time.time()}",
        "detail-type": "EC2 Spot Instance Interruption Warning",
        "source": "aws.ec2",
        "account": "123456789012",
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": "us-west-2",
        "resources": [],
        "detail": {"instance-id": instance(name), "instance-action": "terminate"},
    }


def moments(entries: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Node -> when it was first written to by the trigger or a worker; node -> when its pods' evictions were asked."""
    cordons: dict[str, float] = {}
    evictions: dict[str, list[float]] = {}
    for entry in entries:
        target = entry.get("objectRef") or {}
        at = entry.get("stageTimestamp") or entry.get("requestReceivedTimestamp")
        if at is None or int((entry.get("responseStatus") or {}).get("code") or 0) >= 400:
            continue
        when = datetime.fromisoformat(str(at)).timestamp()
        if target.get("resource") == "nodes" and entry.get("verb") == "patch" and not target.get("subresource"):
            cordons.setdefault(str(target["name"]), when)
        if target.get("subresource") == "eviction":
            evictions.setdefault(str(target["name"]).rpartition("-")[0], []).append(when)
    return cordons, evictions


def row(what: str, values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    found = {
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        "max": ordered[-1],
    }
    print(f"{what:<44} p50 {found['p50']:6.2f}  p95 {found['p95']:6.2f}  max {found['max']:6.2f}  (n = {len(ordered)})")
    return found


def singles(bench: Bench, names: list[str]) -> None:
    print(f"\n{len(names)} interruptions, one after the other, {bench.pods} pods each")
    bench.make(names)
    _, mark = bench.writes(0)
    cordoned, first, empty = [], [], []
    for name in names:
        sent = bench.interrupt([name])[name]
        end = bench.await_empty([name])
        entries, mark = bench.writes(mark)
        cordons, evictions = moments(entries)
        cordoned.append(cordons[name] - sent)
        first.append(min(evictions[name]) - sent)
        empty.append(end - sent)
    bench.await_runs()
    found = row("message sent -> node cordoned", cordoned)
    evicted = row("message sent -> first eviction", first)
    row("message sent -> last pod gone", empty)
    print(f"goals: cordoned p50 {found['p50'] <= GOALS['cordoned p50']}, p95 {found['p95'] <= GOALS['cordoned p95']}, "
          f"first eviction p95 {evicted['p95'] <= GOALS['first eviction p95']}")  # fmt: skip


def storm(bench: Bench, names: list[str]) -> None:
    print(f"\n{len(names)} interruptions at once, {bench.pods} pods each")
    bench.make(names)
    _, mark = bench.writes(0)
    known = {run["dag_run_id"] for run in runs_of(bench, DRAIN)}
    sent = bench.interrupt(names)
    began = min(sent.values())
    end = bench.await_empty(names)
    entries, _ = bench.writes(mark)
    cordons, evictions = moments(entries)
    runs = [run for run in bench.await_runs() if run["dag_run_id"] not in known]
    row("message sent -> node cordoned", [cordons[name] - sent[name] for name in names])
    row("message sent -> first eviction on the node", [min(evictions[name]) - sent[name] for name in names])
    figures = {
        "all cordoned": max(cordons[name] for name in names) - began,
        "all evictions issued": max(max(times) for times in evictions.values()) - began,
        "all drained": end - began,
    }
    for what, seconds in figures.items():
        print(f"{what:<44} {seconds:6.2f}  goal {STORM_GOALS[what]:.0f}: {seconds <= STORM_GOALS[what]}")
    print(f"{len(runs)} runs: {', '.join(sorted(run['state'] for run in runs))}")


def cluster_file(folder: Path) -> None:
    """The demo's file for this bench: Karpenter without a queue, and an API server reached as in the demo."""
    spec = yaml.safe_load((ROOT / "include" / "clusters" / "demo.yaml").read_text())
    spec["karpenter"]["interruptionQueue"] = None
    spec["interruptions"] = {"queue": QUEUE, "proveSuccessor": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.spot", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--pods", type=int, default=8)
    parser.add_argument("--singles", type=int, default=20)
    options = parser.parse_args(argv)
    build = Path(tempfile.mkdtemp(prefix="bench-spot-"))
    stack = Stack(build_dir=build, speed=10.0, clusters_dir=build / "clusters", sandbox_parts=("aws", "apiserver"))
    cluster_file(build / "clusters")
    helper = None
    try:
        stack.start()
        bench = Bench(stack, options.pods)
        bench.prepare()
        helper = multiprocessing.Process(target=kubelets, args=(bench.environment["KUBECONFIG"],), daemon=True)
        helper.start()
        singles(bench, [f"n{index}" for index in range(options.singles)])
        storm(bench, [f"n{index}" for index in range(1000, 1000 + options.nodes)])
        return 0
    finally:
        if helper is not None:
            helper.terminate()
        stack.stop()
        shutil.rmtree(build, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
