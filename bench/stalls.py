"""Measures how one cluster, node or pod slows down the others: ``python -m bench.stalls [hang|nodes|pods]``.

``hang``: triggers wait for a cluster whose AWS endpoint accepts connections and never answers; measured is how long the
gate of a healthy cluster takes beside them. ``nodes``: the gate of one drain of 200 nodes, whose pods all end at once.
``pods``: time and memory that a task needs to look at a cluster with 50,000 pods, ten of whose nodes matter.

The API server is a stand-in in a process of its own; it knows only pods and RuntimeClasses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE = 500
PADDING = "x" * 5_000  # with it a pod is as large as one with its managedFields
LIMIT_S = 60.0


def pod(index: int, node: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"p{index}", "namespace": "d", "uid": f"u{index}", "annotations": {"padding": PADDING}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": "Running"},
    }


class Server:
    """Serves pods, spread over nodes. Watches stay open until there is one per node; then all pods are deleted.

    :param pods: how many.
    :param nodes: over how many nodes.
    """

    def __init__(self, pods: int, nodes: int) -> None:
        self.pods, self.nodes = pods, nodes
        self.open, self.all_open = 0, asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                url = urlsplit(line.split()[1].decode())
                query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
                if query.get("watch"):
                    return await self.watch(writer, query)
                body = json.dumps(self.page(url.path, query)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except ConnectionError:
            return None
        finally:
            writer.close()

    def page(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        version = {"resourceVersion": "1"}
        if path.endswith("runtimeclasses"):
            return {"items": [{"metadata": {"name": "nvidia"}}], "metadata": version}
        if "pods" not in path:
            return {"items": [], "metadata": version}
        fields = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if "=" in part)
        node = fields.get("spec.nodeName")
        if node is not None:
            mine = range(int(node[1:]), self.pods, self.nodes) if node else ()
            return {"items": [pod(index, node) for index in mine], "metadata": version}
        start = int(query.get("continue", 0))
        end = min(start + PAGE, self.pods)
        items = [pod(index, f"n{index % self.nodes}") for index in range(start, end)]
        return {"items": items, "metadata": version | ({"continue": str(end)} if end < self.pods else {})}

    async def watch(self, writer: asyncio.StreamWriter, query: dict[str, str]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        await writer.drain()
        self.open += 1
        if self.open >= self.nodes:
            self.all_open.set()
        await self.all_open.wait()
        node = query.get("fieldSelector", "").removeprefix("spec.nodeName=")
        for index in range(int(node[1:]), self.pods, self.nodes) if self.pods else ():
            writer.write(json.dumps({"type": "DELETED", "object": pod(index, node)}).encode() + b"\n")
        await writer.drain()
        await asyncio.sleep(2 * LIMIT_S)


def serve(pods: int, nodes: int, port: Any) -> None:
    async def run() -> None:
        server = await asyncio.start_server(Server(pods, nodes).handle, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def kubeconfig(folder: Path, port: int) -> dict[str, Any]:
    """Access arguments for the stand-in."""
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    keys = ("aws_conn_id", "region", "cluster_name", "context")
    return {"mode": "kubeconfig", "path": str(path)} | dict.fromkeys(keys)


async def gate(name: str, args: dict[str, Any], access: dict[str, Any]) -> str:
    """The reason of a trigger's event, and how long it took."""
    from gpu_fleet.triggers.gate import GateTrigger

    now = time.time()
    trigger = GateTrigger(name, args, access, now + LIMIT_S, now)
    (event,) = [event.payload async for event in trigger.run()]
    return f"{event['type']} {event['verdict']['reason']} after {time.time() - now:.1f} s"


async def hang(access: dict[str, Any]) -> None:
    mute = socket.create_server(("127.0.0.1", 0), backlog=1024)  # no connection is ever accepted
    connection = {
        "conn_type": "aws",
        "login": "AKIAIOSFODNN7EXAMPLE",
        "password": "not-a-key",
        "extra": {"endpoint_url": f"http://127.0.0.1:{mute.getsockname()[1]}"},
    }
    os.environ["AIRFLOW_CONN_MUTE"] = json.dumps(connection)
    sick = {"mode": "eks", "aws_conn_id": "mute", "region": "sa-east-1", "path": None, "context": None}
    runtime_class = {
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": "nvidia", "namespaced": False,
    }  # fmt: skip
    waiting = [
        asyncio.create_task(gate("object_exists", runtime_class, {**sick, "cluster_name": f"c{index}"}))
        for index in range(20)
    ]
    await asyncio.sleep(2)
    print("healthy cluster:", await gate("object_exists", runtime_class, access), flush=True)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def nodes(access: dict[str, Any], count: int) -> None:
    args = {"nodes": [f"n{i}" for i in range(count)], "uids": [f"u{i}" for i in range(count)], "blocked": []}
    print(f"drain of {count} nodes:", await gate("pods_gone", args, access), flush=True)


def look(way: str, access: dict[str, Any], many: int) -> None:
    from gpu_fleet.core.kubernetes.kinds import POD
    from gpu_fleet.core.validation.user_pods import user_pods_by_node
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook

    kube = KubernetesHook(ClusterAccess.from_json(access)).client()
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    wanted = {f"n{i}" for i in range(10)}
    if way == "all":
        found = user_pods_by_node(kube.list(POD))
    elif way == "kept":
        found = user_pods_by_node(kube.list(POD, keep=lambda item: item["spec"]["nodeName"] in wanted))
    else:
        from gpu_fleet.hooks.cluster.pods import pods_on

        found = user_pods_by_node(pods_on(kube, wanted))
    seconds, grown = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    held = sum(found[name].gpus for name in wanted)
    print(f"{many} pods, {way}: {seconds:.1f} s, {grown / 1024:.0f} MiB more at its peak, {held} GPUs held", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stalls", description=__doc__)
    parser.add_argument("what", nargs="*", default=["hang", "nodes", "pods"])
    parser.add_argument("--pods", type=int, default=50_000)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for what in options.what:
        sizes = {"hang": (0, 1), "nodes": (200, 200), "pods": (options.pods, options.pods // 50)}[what]
        receiver, sender = context.Pipe()
        server = context.Process(target=serve, args=(*sizes, sender), daemon=True)
        server.start()
        with tempfile.TemporaryDirectory(prefix="gpu-fleet-bench-") as folder:
            access = kubeconfig(Path(folder), receiver.recv())
            if what == "hang":
                asyncio.run(hang(access))
            elif what == "nodes":
                asyncio.run(nodes(access, sizes[1]))
            else:
                for way in ("all", "kept", "by node"):
                    child = context.Process(target=look, args=(way, access, options.pods))
                    child.start()
                    child.join()
        server.terminate()
        server.join()
    sys.stdout.flush()
    os._exit(0)  # boto3's threads would continue for minutes


if __name__ == "__main__":
    main()
