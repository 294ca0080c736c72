"""One engine call in a process of its own: ``python helm_worker.py JSON``; a test kills it."""

from __future__ import annotations

import json
import os
import sys

from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.hooks.helm.engine import ReleaseEngine
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook

task = json.loads(sys.argv[1])
client = KubernetesHook(ClusterAccess.from_json(task["access"])).client()
request = ReleaseRequest(
    "tiny", task["namespace"], ChartRef(task["chart"]), task["values"], ReleasePolicy(create_namespace=True)
)
engine = ReleaseEngine(
    client,
    request,
    me=f"worker@{os.getpid()}",
    run="dag/worker",
    lease_wait_s=60,
    lease_s=task["lease_s"],
    lease_grace_s=task["lease_grace_s"],
)
print("ready to begin", flush=True)  # imports take a while; the test that kills this process waits for it
print(json.dumps(getattr(engine, task["method"])().to_json()))
