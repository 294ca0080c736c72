"""
# Request GPUs, then train

For jobs that request their own GPUs: this DAG starts `gpu_lifecycle` for its pool only, waits until that run has
launched and proven the nodes, and trains. If the nodes exist already, the lifecycle changes nothing and takes about as
long as the proof.

No task has to release the capacity: the pod is deleted when it ends, whatever its result, and Karpenter removes nodes
that have been idle for the pool's `disruption.consolidateAfter`. Set the pool's `capacity.hold` (minutes) if the job
starts later than that after the proof.

Like all pods of Airflow's pod operators, the pod has no controller: while it runs, a teardown of the cluster is refused
and names this DAG, task and run. Let the task end first, or start the teardown with the Param `evictBarePods`: then the
pod is evicted, and `retries` decides whether the work is repeated.

Runs of `gpu_lifecycle` for one cluster take turns, so two simultaneous requests are served one after the other.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.amazon.aws.operators.eks import EksPodOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param
from kubernetes.client import models as k8s

CLUSTER, POOL = "demo", "whole-a100"

with DAG(
    "train_on_request",
    schedule=None,
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["example", "training"],
    params={
        "gpus": Param(1, type="integer", minimum=1, maximum=8, title="GPUs", description="Whole GPUs for the job."),
    },
):
    ask = TriggerDagRunOperator(
        task_id="ask_for_capacity",
        trigger_dag_id=f"gpu_lifecycle.{CLUSTER}",
        conf={"pools": [POOL]},
        wait_for_completion=True,
        # The report of a failed lifecycle names the cause; waiting longer does not help.
        allowed_states=["success"],
        failed_states=["failed"],
        # Otherwise the task would wait without end for a run that the scheduler never starts.
        fail_when_dag_is_paused=True,
        deferrable=True,
        poke_interval=15,
        # A retry would start another lifecycle, whose tasks have retries of their own.
        retries=0,
        execution_timeout=timedelta(hours=2),
    )
    train = EksPodOperator(
        task_id="train",
        aws_conn_id="aws_demo",
        region="us-west-2",
        cluster_name="demo-gpu",
        namespace="default",
        image="nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubuntu22.04",
        node_selector={"gpu-fleet.io/pool": POOL},
        tolerations=[k8s.V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
        runtime_class_name="nvidia",
        container_resources=k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": "{{ params.gpus }}"}),
        # Karpenter must not remove the node of a long job. The annotation protects it as long as the pool has no
        # terminationGracePeriod, which is the default; with one, drift or expiry would end the job. A teardown asks a
        # person for approval instead.
        annotations={"karpenter.sh/do-not-disrupt": "true"},
        startup_timeout_seconds=900,
        on_finish_action="delete_pod",
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=1),
    )
    ask >> train
