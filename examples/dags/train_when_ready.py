"""
# Train when GPUs are ready

Starts when pool `shared-a10g` of cluster `demo` *becomes* ready, that is, has just been proven after it was not ready
or unknown. Revalidations of a ready pool emit `…/validated` and start nothing here; schedule on that asset instead if
every proof should start a job.

Like all pods of Airflow's pod operators, the pod has no controller: while it runs, a teardown of the cluster is refused
and names this DAG, task and run (see the guide to revalidation and teardown).

Copy this file into your own DAGs folder and replace the sample image with yours.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.operators.eks import EksPodOperator
from airflow.sdk import DAG, Asset, task
from airflow.sdk.exceptions import AirflowSkipException
from kubernetes.client import models as k8s

CLUSTER, POOL = "demo", "shared-a10g"
READY = Asset(f"gpu-fleet://{CLUSTER}/{POOL}/ready")


@task
def check_still_valid(triggering_asset_events: Any) -> dict[str, Any]:
    """The facts of the newest event; skipped if the run waited so long that the nodes may be gone by now.

    Several events may have started one run (for example while the DAG was paused), and events created by hand have no
    facts.
    """
    events = triggering_asset_events.get(READY) or []
    if not events:
        raise AirflowSkipException("started by hand: no asset event shows that the pool is ready")
    extra = max(events, key=lambda event: event.timestamp).extra
    until = extra.get("validUntil")
    if until and datetime.fromisoformat(until) < datetime.now(UTC):
        raise AirflowSkipException(f"the proof was valid until {until}; see {extra.get('report')}")
    return {"gpus": (extra.get("gpus") or {}).get("allocatable"), "report": extra.get("report")}


with DAG(
    "train_when_ready",
    schedule=[READY],
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["example", "training"],
):
    train = EksPodOperator(
        task_id="train",
        aws_conn_id="aws_demo",
        region="us-west-2",
        cluster_name="demo-gpu",
        namespace="default",
        image="nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubuntu22.04",
        # Only the pool's nodes: their label, their taint, their runtime.
        node_selector={"gpu-fleet.io/pool": POOL},
        tolerations=[k8s.V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
        runtime_class_name="nvidia",
        # One share of a GPU. Its memory is not isolated: the sharers must limit what they use.
        container_resources=k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": "1"}),
        # The default of two minutes is too short for a new node (2 to 4 min) that pulls a CUDA image (up to 6 min).
        startup_timeout_seconds=900,
        on_finish_action="delete_pod",
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=1),
    )
    check_still_valid() >> train
