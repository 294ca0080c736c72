"""What the end-to-end tests do with a running stack and what they see of it.

Everything goes through a public door: Airflow's REST API, kubectl as the cluster's administrator, EC2 through boto3,
the sandbox's control API. Nothing of the package is imported here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import yaml

from demo import facts, workload
from demo.api import AirflowApi, ApiError
from demo.control import Sandbox
from demo.kubectl import Kubectl
from demo.stack import ROOT, Stack
from demo.timeline import epoch
from tests.e2e.caps import CapWatch

Json = dict[str, Any]

#: The specs of the end-to-end tests all describe the one cluster that the sandbox brings up.
CLUSTER = "demo"
LIFECYCLE = f"gpu_lifecycle.{CLUSTER}"
TEARDOWN = f"gpu_teardown.{CLUSTER}"
SHARED, WHOLE = "shared-a10g", "whole-a100"
POOLS = (SHARED, WHOLE)

#: What the demo cluster's nodes offer: two A10G shared by four each, one node of eight whole A100s.
STANDING = {SHARED: [4, 4], WHOLE: [8]}

GPU = "nvidia.com/gpu"
POOL_LABEL = "karpenter.sh/nodepool"
SYSTEM_NAMESPACE = "gpu-fleet-system"
VALIDATION_NAMESPACE = "gpu-fleet-validation"
PLUGIN_NAMESPACE = "nvidia-device-plugin"

#: Real seconds; the sandbox's waits are divided by its speed, Airflow's own are not.
DEADLINES = {
    "turn": "2m",
    "clusterActive": "45s",
    "crds": "45s",
    "release": "90s",
    "nodeClassReady": "45s",
    "nodePoolReady": "45s",
    "capacity": "2m",
    "prove": "90s",
    "validation": "5m",  # the probes, which it also bounds, run in simulated time
    "drain": "2m",
    "teardown": "3m",
    "cleanup": "1m",
    "approval": "5m",
}

#: How the cluster is reached, if its API server is somebody else's: fields of the cluster file, set by conftest.py.
BORROWED: Json = {}

#: The node group that the sandbox's cluster begins with.
SYSTEM_NODE_GROUP = "system"
#: Folder of the workers' chart cache, below the stack's.
CHART_CACHE = "chart-cache"

#: Seconds between a question and its answer. The process that asked takes a moment to end; the scheduler would take
#: that late end for a failure of the process that the answer starts, and have the task tried, and asked, again.
SETTLES_S = 2.0

OVER = frozenset({"success", "failed"})
OPEN = frozenset({"queued", "running", "deferred", "up_for_retry", "scheduled", "awaiting_input"})


def merged(base: Json, changes: Mapping[str, Any]) -> Json:
    """``base`` with ``changes`` laid over it; mappings are merged, everything else is replaced."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def cluster_spec(name: str = CLUSTER, changes: Mapping[str, Any] | None = None) -> Json:
    """The shipped cluster file with short deadlines, and nodes that stay until they are torn down."""
    spec: Json = yaml.safe_load((ROOT / "include" / "clusters" / "demo.yaml").read_text())
    # Overlap and measurement pass in the sandbox's time: 5 s and 3 s at speed 15, for two busy cores to get all sharers
    # started. The sandbox's driver is newer than the least one.
    validation = {"overlap": "75s", "throughput": {"duration": "45s"}, "minimumDriver": "570"}
    # Only the tests of interruptions read the queue.
    quiet = {"queue": None}
    short = {"deadlines": DEADLINES, "drain": {"timeout": "1m"}, "validation": validation, "interruptions": quiet}
    spec = merged(spec, {"name": name, **short, **BORROWED})
    for pool in spec["nodePools"]:
        # Karpenter would remove the empty nodes while a test still looks at them.
        pool.setdefault("disruption", {})["consolidateAfter"] = "24h"
    return merged(spec, changes or {})


def write_spec(folder: Path, spec: Json) -> None:
    """Replace the cluster file in one step: the DAG processor may be reading it."""
    fresh = folder / f"{spec['name']}.new"
    fresh.write_text(yaml.safe_dump(spec, sort_keys=False))
    fresh.replace(folder / f"{spec['name']}.yaml")


def pool_changes(spec: Json, pool: str, changes: Mapping[str, Any]) -> Json:
    """``spec`` with one pool changed."""
    return {**spec, "nodePools": [merged(p, changes) if p["name"] == pool else p for p in spec["nodePools"]]}


@dataclass
class Run:
    """A Dag run that has ended."""

    fleet: Fleet
    dag_id: str
    run_id: str
    state: str
    seconds: float
    tasks: dict[str, Json] = field(default_factory=dict)

    def states(self) -> dict[str, str]:
        return {task_id: str(task["state"]) for task_id, task in self.tasks.items()}

    def in_state(self, *states: str) -> list[str]:
        """The ids of the tasks in one of the states, in order of their start."""
        found = [task for task in self.tasks.values() if task["state"] in states]
        return [t["task_id"] for t in sorted(found, key=lambda t: (t.get("start_date") or "9", t["task_id"]))]

    @property
    def failed(self) -> list[str]:
        """The failed tasks other than the run's verdict."""
        return [task_id for task_id in self.in_state("failed") if task_id != "run_verdict"]

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        return self.fleet.api.xcom(self.dag_id, self.run_id, task_id, key)

    def log(self, task_id: str, try_number: int | None = None) -> str:
        """The log of a task's try; the last one by default."""
        number = try_number or max(1, int(self.tasks[task_id].get("try_number") or 1))
        return self.fleet.api.log(self.dag_id, self.run_id, task_id, number)

    def span(self, task_id: str) -> tuple[float, float]:
        """Start and end of a task, epoch seconds."""
        task = self.tasks[task_id]
        return epoch(task["start_date"]) or 0.0, epoch(task["end_date"]) or 0.0

    def succeeded(self) -> Run:
        """Itself; an assertion that names what failed otherwise."""
        assert self.state == "success", f"{self.dag_id}/{self.run_id} ended {self.state}; failed: {self.failed}"
        return self


@dataclass
class Fleet:
    """The stack's doors, opened.

    :ivar clusters_dir: the folder of cluster files that Airflow reads.
    :ivar caps: the oracle that counts instances during the present test.
    :ivar tools: folder of the links ``helm`` that Airflow's tasks run, see :meth:`helm_replaced_by`.
    """

    stack: Stack
    clusters_dir: Path
    tools: Path
    home: Path
    runs: list[tuple[str, str]] = field(default_factory=list)
    caps: CapWatch | None = None

    def __post_init__(self) -> None:
        state = self.stack.sandbox_state()
        self.environment: dict[str, str] = state["env"]
        self.sandbox = Sandbox(state)
        self.kubectl = Kubectl(self.environment["KUBECONFIG"], self.home)
        self.api = AirflowApi(self.stack.airflow_url, "admin", self.stack.password())
        self._clients: dict[str, Any] = {}
        self._helm = (self.tools / "helm").resolve()

    def close(self) -> None:
        self.api.close()
        self.sandbox.close()
        for client in self._clients.values():
            client.close()

    # --- cluster files -----------------------------------------------------------------------------------------------
    def write_cluster(self, name: str = CLUSTER, changes: Mapping[str, Any] | None = None) -> Json:
        """Write the cluster file ``<name>.yaml``: the shipped one with short deadlines and ``changes``."""
        spec = cluster_spec(name, changes)
        self.write_spec(spec)
        return spec

    def write_spec(self, spec: Json) -> None:
        write_spec(self.clusters_dir, spec)

    # --- runs --------------------------------------------------------------------------------------------------------
    def start(self, dag_id: str = LIFECYCLE, conf: Json | None = None) -> str:
        """Trigger a run; returns its run id."""
        self.api.wait_for_dag(dag_id)
        run_id = self.api.trigger(dag_id, conf)
        self.runs.append((dag_id, run_id))
        return run_id

    def follow(
        self,
        dag_id: str,
        run_id: str,
        *,
        answer: str | None = "Approve",
        before_answer: Callable[[], None] | None = None,
        on_tick: Callable[[dict[str, Json]], None] | None = None,
        timeout: float = 300,
        interval: float = 0.7,
    ) -> Run:
        """Wait for the end of a run.

        :param answer: given to every task that asks a person: ``Approve``, ``Reject``, or ``None`` for no answer.
        :param before_answer: called before that.
        :param on_tick: called at every look with the tasks by id.
        """
        began = time.monotonic()
        asked: dict[tuple[str, int], float] = {}
        answered: set[tuple[str, int]] = set()
        while True:
            self.stack.check()
            run = self.api.run(dag_id, run_id)
            tasks = {task["task_id"]: task for task in self.api.tasks(dag_id, run_id)}
            for task_id, task in tasks.items():
                if task["state"] != "awaiting_input" or answer is None:
                    continue
                question = task_id, int(task.get("try_number") or 1)
                since = asked.setdefault(question, time.monotonic())
                if question not in answered and time.monotonic() - since >= SETTLES_S:
                    answered.add(question)
                    if before_answer is not None:
                        before_answer()
                    self.api.answer(dag_id, run_id, task_id, answer)
            if on_tick is not None:
                on_tick(tasks)
            if run["state"] in OVER:
                seconds = (epoch(run["end_date"]) or 0.0) - (epoch(run["start_date"]) or 0.0)
                return Run(self, dag_id, run_id, run["state"], seconds, tasks)
            if time.monotonic() - began > timeout:
                still = [f"{task_id} {task['state']}" for task_id, task in tasks.items() if task["state"] in OPEN]
                raise TimeoutError(f"{dag_id}/{run_id} still runs after {timeout:.0f} s: {', '.join(still)}")
            time.sleep(interval)

    def approve(self, dag_id: str, run_id: str, task_id: str = "teardown.approve", timeout: float = 90) -> None:
        """Approve, and approve again if it is asked again, until the task has taken the answer in."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            task = self.wait_for_task(dag_id, run_id, task_id, "awaiting_input", "success")
            if task["state"] == "success":
                return
            time.sleep(SETTLES_S)
            with suppress(ApiError):  # it has been answered, and is not asked again yet
                self.api.answer(dag_id, run_id, task_id)
        raise TimeoutError(f"{dag_id}/{run_id}: {task_id} was not done {timeout:.0f} s after its first question")

    def run(self, dag_id: str = LIFECYCLE, conf: Json | None = None, **follow: Any) -> Run:
        """:meth:`start` and :meth:`follow`."""
        return self.follow(dag_id, self.start(dag_id, conf), **follow)

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, *states: str, timeout: float = 120) -> Json:
        """Wait until a task of a run is in one of the states; returns the task instance."""
        wanted = set(states)

        def look() -> Json | None:
            task = next((t for t in self.api.tasks(dag_id, run_id) if t["task_id"] == task_id), None)
            return task if task is not None and task["state"] in wanted else None

        task: Json = until(f"{task_id} {'/'.join(states)}", look, timeout)
        return task

    def lifecycle(self, *, cluster: str = CLUSTER, **conf: Any) -> Run:
        """One lifecycle run to its end, ``until: validated`` unless said otherwise."""
        return self.run(f"gpu_lifecycle.{cluster}", {"until": "validated", **conf})

    def teardown(self, *, cluster: str = CLUSTER, **follow: Any) -> Run:
        return self.run(f"gpu_teardown.{cluster}", **follow)

    def events(self, uri: str) -> list[Json]:
        """The asset events of a URI, oldest first."""
        assets = self.api.call("GET", "/assets", params={"uri_pattern": uri, "limit": 100})["assets"]
        found: list[Json] = []
        for asset in assets:
            if asset["uri"] == uri:
                query = {"asset_id": asset["id"], "order_by": "timestamp", "limit": 100}
                found += self.api.call("GET", "/assets/events", params=query)["asset_events"]
        return found

    def query(self, sql: str, *args: Any) -> list[sqlite3.Row]:
        """Read Airflow's database (read-only), for what the REST API does not tell, such as a task's pid."""
        with closing(sqlite3.connect(f"file:{self.stack.database}?mode=ro", uri=True, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(sql, args).fetchall()

    # --- the cluster -------------------------------------------------------------------------------------------------
    def objects(self, kinds: str, *args: str) -> list[Json]:
        """``kubectl get KINDS -A``; kinds that the cluster does not know (yet) give an empty list."""
        return self.kubectl.get(kinds, "-A", *args)

    def nodes(self) -> list[Json]:
        """The GPU nodes."""
        return self.kubectl.get("nodes", "-l", POOL_LABEL)

    def allocatable(self) -> dict[str, list[int]]:
        """Pool to the GPUs that each of its nodes offers."""
        found: dict[str, list[int]] = {}
        for node in self.nodes():
            count = int(node["status"].get("allocatable", {}).get(GPU, "0"))
            found.setdefault(node["metadata"]["labels"][POOL_LABEL], []).append(count)
        return found

    def node_claims(self) -> dict[str, Json]:
        """NodeClaims by UID."""
        return {claim["metadata"]["uid"]: claim for claim in self.objects("nodeclaims.karpenter.sh")}

    def releases(self) -> dict[str, Json]:
        """Helm releases by name: newest revision, status and what the ledger has proven."""
        return {row["name"]: row for row in facts.releases(self.kubectl)}

    def revisions(self) -> dict[str, str]:
        """Every Helm release Secret by name, with its status."""
        secrets = self.objects("secrets", "-l", "owner=helm")
        return {s["metadata"]["name"]: s["metadata"]["labels"]["status"] for s in secrets}

    def history(self, release: str, namespace: str) -> list[Json]:
        """``helm history`` of a release, oldest first, as a user sees it."""
        env = {**os.environ, "KUBECONFIG": self.environment["KUBECONFIG"], "HOME": str(self.home)}
        command = [str(self._helm), "history", release, "--namespace", namespace, "--output", "json"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        value: list[Json] = json.loads(done.stdout)
        return value

    def turn_holder(self) -> Json:
        """The record of the cluster lock; empty if no run holds it."""
        records = self.kubectl.get("configmap", "turn", "-n", SYSTEM_NAMESPACE)
        return dict(records[0].get("data") or {}) if records else {}

    def snapshot(self) -> dict[str, str]:
        """Every object of the cluster by ``kind namespace/name``: UID and generation, or a digest of its content where
        the server counts no generations. Left out: Events and Leases, whose purpose is to change."""
        names = self.kubectl.run("api-resources", "--verbs=list", "-o", "name").split()
        kinds = [name for name in names if name.split(".")[0] not in ("events", "leases", "componentstatuses")]
        found: dict[str, str] = {}
        for item in self.objects(",".join(kinds)):
            meta = item["metadata"]
            key = f"{item['kind']} {meta.get('namespace', '')}/{meta['name']}"
            generation = meta.get("generation")
            found[key] = f"{meta.get('uid')} " + (f"generation {generation}" if generation else _digest(item))
        return found

    # --- AWS ---------------------------------------------------------------------------------------------------------
    def aws(self, service: str) -> Any:
        """A boto3 client of the sandbox's account."""
        if service not in self._clients:
            env = self.environment
            self._clients[service] = boto3.client(
                service,
                endpoint_url=env["AWS_ENDPOINT_URL"],
                region_name=env["AWS_DEFAULT_REGION"],
                aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            )
        return self._clients[service]

    def instances(self) -> dict[str, Json]:
        """Karpenter's EC2 instances that are not terminated, by id."""
        filters = [
            {"Name": "tag-key", "Values": [POOL_LABEL]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]},
        ]
        pages = self.aws("ec2").get_paginator("describe_instances").paginate(Filters=filters)
        return {i["InstanceId"]: i for page in pages for r in page["Reservations"] for i in r["Instances"]}

    # --- disturbing it -----------------------------------------------------------------------------------------------
    @contextmanager
    def fault(self, name: str, params: Json | None = None, count: int | None = None) -> Iterator[None]:
        """A fault of the sandbox, for as long as the block lasts."""
        self.sandbox.set_fault(name, params, count)
        try:
            yield
        finally:
            self.sandbox.clear_fault(name)

    @contextmanager
    def part_stopped(self, part: str) -> Iterator[None]:
        """A part of the sandbox is down while the block lasts."""
        self.sandbox.call("POST", f"/parts/{part}/stop")
        try:
            yield
        finally:
            self.sandbox.call("POST", f"/parts/{part}/start")

    @contextmanager
    def helm_replaced_by(self, script: str | None) -> Iterator[None]:
        """Airflow's tasks find another program as helm (a shell script), or none, while the block lasts."""
        link = self.tools / "helm"
        link.unlink()
        if script is not None:
            link.write_text(f"#!/bin/sh\n{script}\n")
            link.chmod(0o755)
        try:
            yield
        finally:
            self.restore_helm()

    def forget_charts(self) -> None:
        """Empty the workers' cache of charts, so that the next install must pull them."""
        shutil.rmtree(self.stack.build_dir / CHART_CACHE, ignore_errors=True)

    def restore_helm(self) -> None:
        link = self.tools / "helm"
        link.unlink(missing_ok=True)
        link.symlink_to(self._helm)

    # --- a user's job ---------------------------------------------------------------------------------------------
    def users_job(self, pool: str = SHARED) -> list[str]:
        """A Deployment of GPU pods in a user's namespace, running. Returns its nodes."""
        return workload.start(self.kubectl, pool)

    def end_users_job(self) -> None:
        if self.kubectl.get("namespace", workload.NAMESPACE):
            self.kubectl.run("delete", "namespace", workload.NAMESPACE)

    # --- from one test to the next -----------------------------------------------------------------------------------
    def leftovers(self) -> list[str]:
        """What of the GPU capacity exists, in words; empty when everything has been torn down."""
        found = [f"EC2 instance {instance_id}" for instance_id in self.instances()]
        kinds = "nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws"
        kinds = (*kinds, "nodeoverlays.karpenter.sh")
        found += [f"{o['kind']} {o['metadata']['name']}" for kind in kinds for o in self.objects(kind)]
        found += [f"Node {node['metadata']['name']}" for node in self.nodes()]
        found += [f"Helm revision {name} {status}" for name, status in self.revisions().items()]
        found += [f"RuntimeClass {o['metadata']['name']}" for o in self.objects("runtimeclasses")]
        for namespace in (SYSTEM_NAMESPACE, VALIDATION_NAMESPACE, PLUGIN_NAMESPACE):
            pods = self.kubectl.get("pods", "-n", namespace)
            found += [f"Pod {namespace}/{pod['metadata']['name']}" for pod in pods]
        holder = self.turn_holder()
        if holder:
            found.append(f"the turn is held by {holder}")
        return found

    def end_open_runs(self) -> None:
        """Fail every run that is still open, so that the next test does not queue behind it.

        Such a run still gives back what it holds; until then it is open.
        """
        still_open = "SELECT dag_id, run_id FROM dag_run WHERE state IN ('queued', 'running')"
        for row in self.query(still_open):
            with suppress(ApiError):
                path = f"/dags/{row['dag_id']}/dagRuns/{row['run_id']}"
                self.api.call("PATCH", path, json={"state": "failed"})
        until("the end of the runs that were marked failed", lambda: not self.query(still_open), 180)

    def repair(self) -> None:
        """Clear all faults and put back what a test took away; the cluster's content stays."""
        self.sandbox.call("DELETE", "/faults")
        for part, state in self.sandbox.call("GET", "/status")["parts"].items():
            if state == "stopped":
                self.sandbox.call("POST", f"/parts/{part}/start")
        self.restore_helm()
        self.end_open_runs()

    def reset(self) -> None:
        """:meth:`repair`, the shipped cluster file again, and an empty cluster (by the package's own teardown)."""
        self.repair()
        self.write_cluster()
        self.await_dags()
        self.end_users_job()
        self.end_node_groups()
        if self.leftovers():
            self.terminate_unclaimed()
            self.teardown()
        left = self.leftovers()
        assert not left, f"the teardown between two tests left: {left}"

    def await_dags(self) -> None:
        """Until Airflow has the DAGs of the shipped cluster file, which a test has changed, broken or removed.

        A run that began before would begin with the tasks and Params of the file as it was. Neither that a DAG is there
        nor its tags tell: Airflow writes a DAG's tasks at most every ``[core] min_serialized_dag_update_interval``, and
        its tags at each parse. So the tasks are looked at: each pool of the file has some.
        """
        pools = [pool["name"] for pool in cluster_spec(CLUSTER)["nodePools"]]

        def read(dag_id: str) -> bool:
            if self.api.call("GET", f"/dags/{dag_id}")["is_stale"]:
                return False
            tasks = [task["task_id"] for task in self.api.call("GET", f"/dags/{dag_id}/tasks")["tasks"]]
            return all(any(pool in task for task in tasks) for pool in pools)

        for dag_id in (LIFECYCLE, TEARDOWN):
            self.api.wait_for_dag(dag_id)
            until(f"{dag_id} to be read again", lambda dag_id=dag_id: read(dag_id), 90)  # type: ignore[misc]

    def end_node_groups(self) -> None:
        """Other teams' managed node groups with their instances: while one with GPUs exists, also without a node, a
        teardown rightly keeps the RuntimeClass for it."""
        eks, cluster = self.aws("eks"), str(self.sandbox.state["cluster"])
        for group in eks.list_nodegroups(clusterName=cluster)["nodegroups"]:
            if group != SYSTEM_NODE_GROUP:
                self._end_instances_of(group)
                eks.delete_nodegroup(clusterName=cluster, nodegroupName=group)

    def _end_instances_of(self, group: str) -> None:
        filters = [
            {"Name": "tag:eks:nodegroup-name", "Values": [group]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        found = self.aws("ec2").describe_instances(Filters=filters)["Reservations"]
        ids = [instance["InstanceId"] for each in found for instance in each["Instances"]]
        if ids:
            self.aws("ec2").terminate_instances(InstanceIds=ids)
        label = f"eks.amazonaws.com/nodegroup={group}"
        until(f"the end of the nodes of {group}", lambda: not self.kubectl.get("nodes", "-l", label))

    def terminate_unclaimed(self) -> None:
        """Instances that Karpenter knows nothing of (a fault's doing): the package reports them, a person ends them."""
        claimed = {
            str(c.get("status", {}).get("providerID", "")).rsplit("/", 1)[-1] for c in self.node_claims().values()
        }
        stray = sorted(set(self.instances()) - claimed)
        if stray:
            self.aws("ec2").terminate_instances(InstanceIds=stray)
            until("the end of stray instances", lambda: not set(stray) & set(self.instances()), 60)

    def is_standing(self) -> bool:
        """Whether the newest lifecycle run succeeded for all pools, and what it built still stands and is ready."""
        rows = self.query("SELECT state, conf FROM dag_run WHERE dag_id = ? ORDER BY id DESC LIMIT 1", LIFECYCLE)
        if not rows or rows[0]["state"] != "success" or "pools" in str(rows[0]["conf"]):
            return False
        healthy = all(
            r["status"] == "deployed" and r.get("proven_revision") == r["revision"] for r in self.releases().values()
        )
        offered = {pool: sorted(n) for pool, n in self.allocatable().items()}
        return healthy and offered == STANDING and all(self.is_ready(pool) for pool in POOLS)

    def karpenters_queue(self) -> str | None:
        """The interruption queue that Karpenter reads, if any."""
        for deployment in self.kubectl.get("deployment", "karpenter", "-n", "kube-system"):
            for container in deployment["spec"]["template"]["spec"]["containers"]:
                for variable in container.get("env", []):
                    if variable["name"] == "INTERRUPTION_QUEUE":
                        return variable.get("value") or None
        return None

    def is_ready(self, pool: str) -> bool:
        """Whether a pool was last published as ready, and not, since then, as not ready."""
        rows = self.query(
            "SELECT uri FROM asset_event JOIN asset ON asset.id = asset_event.asset_id "
            "WHERE uri IN (?, ?) ORDER BY asset_event.id DESC LIMIT 1",
            *(f"gpu-fleet://{CLUSTER}/{pool}/{topic}" for topic in ("ready", "not-ready")),
        )
        return bool(rows) and str(rows[0]["uri"]).endswith("/ready")

    def stand(self, changes: Mapping[str, Any] | None = None) -> None:
        """See to it that the demo cluster's capacity stands, proven and validated, with a lifecycle run if need be.

        :param changes: of the cluster file; of these, what Karpenter reads is seen to be as the file says.
        """
        queue = self.write_cluster(changes=changes)["karpenter"]["interruptionQueue"]
        if not self.is_standing():
            self.reset()
            self.write_cluster(changes=changes)
            self.lifecycle().succeeded()
        elif self.karpenters_queue() != queue:
            self.lifecycle().succeeded()

    def post_mortem(self, runs: list[tuple[str, str]], lines: int = 40) -> str:
        """The end of the log of each failed or open task of the runs."""
        told: list[str] = []
        for dag_id, run_id in runs:
            try:
                state = self.api.run(dag_id, run_id)["state"]
                told.append(f"=== {dag_id} {run_id}: {state}")
                for task in self.api.tasks(dag_id, run_id):
                    if task["state"] not in {"failed", *OPEN} or task["task_id"] == "run_verdict":
                        continue
                    number = max(1, int(task.get("try_number") or 1))
                    told.append(f"--- {task['task_id']} (try {number}): {task['state']}")
                    text = self.api.log(dag_id, run_id, task["task_id"], number) if task["start_date"] else ""
                    told += [line[:600] for line in text.splitlines()[-lines:]]
            except Exception as error:  # noqa: BLE001 - the report of a failure must not hide the failure
                told.append(f"(no more to tell of {dag_id} {run_id}: {error!r})")
        return "\n".join(told)


def until(what: str, look: Callable[[], Any], timeout: float = 60, interval: float = 0.3) -> Any:
    """Look until it is true; returns what it gave.

    :raises TimeoutError: naming what did not come.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s in vain for: {what}")
        time.sleep(interval)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What two snapshots do not share."""
    keys = sorted(set(before) | set(after))
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _digest(item: Json) -> str:
    meta = {k: v for k, v in item["metadata"].items() if k not in ("resourceVersion", "managedFields")}
    content = {k: v for k, v in item.items() if k not in ("status", "metadata")} | {"metadata": meta}
    return "content " + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def find_tools() -> dict[str, str]:
    """HELM_BIN and KUBECTL_BIN: those of the environment, else the pinned ones."""
    from tools.toolchain import locate

    return locate(os.environ)
