"""Drains nodes side by side, by the package and by ``kubectl drain``: ``python -m bench.drain [--runs 3]``.

Both drain the same number of nodes with the same pods on the same API server of the sandbox, in turn: the package in
one process, kubectl in one process per node, ten at a time. A stand-in for the kubelets, in a process of its own, ends
each pod half a second after its deletion was requested. The time is from the first cordon until the last pod is gone.

Printed are medians: seconds for all, and for the package also until the last eviction was granted.

    eval "$(python tools/toolchain.py --export)"; PYTHONPATH=plugins:. python -m bench.drain
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

#: What a container takes to end after its SIGTERM.
ENDS_AFTER_S = 0.5
#: A limit for both, far beyond what either takes.
LIMIT_S = 120


def serve(folder: str, ready: Any) -> None:
    """The API server."""
    from sandbox.apiserver import running

    async def run() -> None:
        async with running(Path(folder)) as cluster:
            ready.send(str(cluster.kubeconfig))
            await asyncio.sleep(float("inf"))

    asyncio.run(run())


def kubelets(kubeconfig: str) -> None:
    """Ends what terminates."""
    from sandbox.kube.client import Kube

    async def run() -> None:
        kube = Kube.from_kubeconfig(kubeconfig, user_agent="bench-kubelets")
        tasks: dict[str, asyncio.Task[None]] = {}

        async def end(metadata: dict[str, Any]) -> None:
            await asyncio.sleep(ENDS_AFTER_S)
            await kube.delete("Pod", metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_seconds=0)

        version = (await kube.list_page("Pod"))["metadata"]["resourceVersion"]
        while True:
            async for _, pod in kube.watch("Pod", resource_version=version):
                metadata = pod["metadata"]
                version = metadata["resourceVersion"]
                if metadata.get("deletionTimestamp") and metadata["uid"] not in tasks:
                    tasks[metadata["uid"]] = asyncio.create_task(end(metadata))

    asyncio.run(run())


class Bench:
    """Makes nodes with pods, and drains them in two ways."""

    def __init__(self, kubeconfig: str, nodes: int, pods: int) -> None:
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient

        self.kubeconfig = kubeconfig
        self.kube = KubeClient(ClusterAccess("kubeconfig", None, None, None, path=kubeconfig))
        self.names = [f"n{index}" for index in range(nodes)]
        self.pods = pods

    def make(self) -> None:
        """Nodes as new, each with its pods."""
        from gpu_fleet.core.kubernetes.kinds import NODE, POD, ObjectRef

        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": True}
        running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

        def one(node: str) -> None:
            self.kube.delete(ObjectRef(NODE, node))
            self.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
            for index in range(self.pods):
                name = f"{node}-{index}"
                metadata = {"name": name, "namespace": "default", "ownerReferences": [owner]}
                spec = {"nodeName": node, "containers": [{"name": "c", "image": "x"}]}
                self.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
                self.kube.patch(ObjectRef(POD, name, "default"), {"status": running}, subresource="status")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one, self.names))

    def check(self, who: str) -> None:
        from gpu_fleet.core.kubernetes.kinds import POD

        left = self.kube.list(POD)
        if left:
            raise SystemExit(f"{who} has left {len(left)} pods")

    def ours(self) -> tuple[float, float]:
        """Seconds for all, and until the last eviction was granted."""
        from gpu_fleet.core.drain.actions import Limits
        from gpu_fleet.core.drain.drained import Target
        from gpu_fleet.core.drain.records import Outcome, PodRecord
        from gpu_fleet.core.drain.rules import DrainRules
        from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
        from gpu_fleet.core.spec.operations import Drain
        from gpu_fleet.operators.draining.drain import drain_nodes
        from gpu_fleet.operators.draining.executor import Executor

        granted = [0.0]
        stored: dict[str, Any] = {}

        def changed(record: PodRecord) -> None:
            if record.outcome is Outcome.EVICTED:
                granted[0] = time.time()

        began = time.time()
        with Executor() as executor:
            cordon = {"spec": {"unschedulable": True}}
            executor.each(lambda node: self.kube.patch(ObjectRef(NODE, node), cordon), self.names)
        targets = [Target(node, Limits(deadline=began + LIMIT_S, margin=5.0)) for node in self.names]
        drain_nodes(
            self.kube, targets, rules=DrainRules(), policy=Drain(), on_progress=stored.update, on_change=changed
        )
        took = time.time() - began
        self.check("the package")
        return took, granted[0] - began

    def kubectl(self, at_a_time: int) -> float:
        """Seconds for all."""
        binary = os.environ.get("KUBECTL_BIN") or shutil.which("kubectl") or "kubectl"
        options = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={LIMIT_S}s"]

        def one(node: str) -> None:
            command = [binary, "--kubeconfig", self.kubeconfig, "drain", node, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"kubectl drain {node}: {done.stderr}")

        began = time.time()
        with ThreadPoolExecutor(at_a_time) as threads:
            list(threads.map(one, self.names))
        took = time.time() - began
        self.check("kubectl")
        return took


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.drain", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--pods", type=int, default=8, help="on each node")
    parser.add_argument("--at-a-time", type=int, default=10, help="processes of kubectl")
    parser.add_argument("--without-kubectl", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="gpu-fleet-bench-") as folder:
        server = context.Process(target=serve, args=(folder, sender), daemon=True)
        server.start()
        kubeconfig = receiver.recv()
        kubelet = context.Process(target=kubelets, args=(kubeconfig,), daemon=True)
        kubelet.start()
        bench = Bench(kubeconfig, options.nodes, options.pods)
        ours, kubectl = [], []
        for run in range(options.runs):
            bench.make()
            ours.append(bench.ours())
            text = f"run {run + 1}: package {ours[-1][0]:.2f} s (last eviction granted after {ours[-1][1]:.2f} s)"
            if not options.without_kubectl:
                bench.make()
                kubectl.append(bench.kubectl(options.at_a_time))
                text += f", kubectl {kubectl[-1]:.2f} s"
            print(text, flush=True)
        all_s, evicted_s = (statistics.median(column) for column in zip(*ours, strict=True))
        print(f"{options.nodes} nodes with {options.pods} pods each, medians of {options.runs} runs:")
        print(f"  package: {all_s:.2f} s, last eviction granted after {evicted_s:.2f} s")
        if kubectl:
            print(f"  kubectl drain, {options.at_a_time} at a time: {statistics.median(kubectl):.2f} s")
        for process in (kubelet, server):
            process.terminate()
            process.join()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
