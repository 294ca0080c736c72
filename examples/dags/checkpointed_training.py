"""
# Train through interruptions

A training that may run on spot instances: a Kubernetes Job whose program saves its state when its pod has to go, and
goes on from there in the next pod. Starts when pool `shared-a10g` of cluster `demo` becomes ready.

**Who starts the next pod.** The Job controller does, not Airflow: an eviction needs no worker, no scheduler and no
retry. The two tasks create the Job and watch it from time to time.

**One training, one Job.** The Param `job` names the Job and the folder of its checkpoints. A pool becomes ready again
after each interruption, and each time starts a run of this DAG. Such a run follows the Job that is there, and is
skipped if it has completed. For another training give another name. A Job that has failed is replaced, and goes on from
its checkpoints.

**What has to be there**: the PersistentVolumeClaim `training` with the access mode `ReadWriteMany` (EFS or FSx for
Lustre, for example), because the next node may be in another zone:

```yaml
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: training, namespace: default}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: efs
  resources: {requests: {storage: 10Gi}}
```

The Job goes on if the run is marked as failed; `kubectl delete job` ends it. Copy this file and `../training/train.py`,
side by side in the same way, and replace the image and the program with yours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, BaseSensorOperator, Param, PokeReturnValue, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

CLUSTER, POOL = "demo", "shared-a10g"
CONNECTION, REGION, EKS_CLUSTER, NAMESPACE = "aws_demo", "us-west-2", "demo-gpu", "default"
IMAGE = "public.ecr.aws/docker/library/python:3.12-slim-bookworm"
PROGRAM = Path(__file__).resolve().parent.parent / "training" / "train.py"

#: Between SIGTERM and SIGKILL: time for one step and one checkpoint, and less than the 120 seconds of a spot notice
#: minus `interruptions.margin`, or the instance ends before the grace period does.
GRACE_S = 60


def job_object(name: str, program: str, steps: int) -> dict[str, Any]:
    """The Job as the API server gets it.

    :param program: source text of the training; it is an argument of the container, so that nothing but the Job has to
        be created. Yours is probably in the image.
    """
    container = {
        "name": "train",
        "image": IMAGE,
        "command": ["python3", "-u", "-c", program],
        "env": [
            {"name": "CHECKPOINTS", "value": f"/checkpoints/{name}"},
            {"name": "STEPS", "value": str(steps)},
            {"name": "NOTICE", "value": "/etc/interruption/notice"},
        ],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "volumeMounts": [
            {"name": "checkpoints", "mountPath": "/checkpoints"},
            {"name": "interruption", "mountPath": "/etc/interruption"},
        ],
    }
    pod = {
        # A pod that ends with its node is replaced by another one; the kubelet restarts nothing.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        # Only the pool's nodes: their label, their taint, their runtime.
        "nodeSelector": {"gpu-fleet.io/pool": POOL},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
        "containers": [container],
        "volumes": [
            {"name": "checkpoints", "persistentVolumeClaim": {"claimName": "training"}},
            # A file that follows the annotation within about a minute.
            {
                "name": "interruption",
                "downwardAPI": {
                    "items": [
                        {
                            "path": "notice",
                            "fieldRef": {"fieldPath": "metadata.annotations['gpu-fleet.io/interruption']"},
                        }
                    ]
                },
            },
        ],
    }
    ignored = [
        # The Eviction API, taints and preemption leave this condition; a forced deletion does not, and 143 is what the
        # program ends with when it was told to.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": {"containerName": "train", "operator": "In", "values": [143]}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            # Failures of the program itself; interruptions do not count.
            "backoffLimit": 3,
            "podFailurePolicy": {"rules": ignored},
            # The next pod comes when the last one has ended, so that two never write checkpoints at the same time.
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"annotations": {"gpu-fleet.io/on-rebalance": "signal"}},
                "spec": pod,
            },
        },
    }


@contextmanager
def jobs() -> Iterator[Any]:
    """The Jobs of the cluster, by the identity of the connection."""
    from airflow.providers.amazon.aws.hooks.eks import EksHook
    from kubernetes import client, config

    hook = EksHook(aws_conn_id=CONNECTION, region_name=REGION)
    with (
        hook.generate_config_file_with_credentials(eks_cluster_name=EKS_CLUSTER, pod_namespace=NAMESPACE) as (path, _),
        config.new_client_from_config(path) as api,
    ):
        yield client.BatchV1Api(api)


def ended(job: Any) -> tuple[str, str] | None:
    """``Complete`` or ``Failed``, and why; ``None`` while it runs."""
    for condition in job.status.conditions or []:
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            return condition.type, f"{condition.reason}: {condition.message}"
    return None


def create_or_find(api: Any, wanted: dict[str, Any]) -> str:
    """Create the Job unless it is there already, which makes the task safe to retry.

    :returns: its UID.
    :raises AirflowSkipException: it has completed before.
    """
    from kubernetes.client.exceptions import ApiException

    name = wanted["metadata"]["name"]
    try:
        return str(api.create_namespaced_job(NAMESPACE, wanted).metadata.uid)
    except ApiException as error:
        if error.status != 409:
            raise
    found = api.read_namespaced_job(name, NAMESPACE)
    end = ended(found)
    if end is None and found.metadata.deletion_timestamp is None:
        return str(found.metadata.uid)
    if end is not None and end[0] == "Complete":
        raise AirflowSkipException(f"Job {name} has completed already; give another name (Param job) to train anew")
    if found.metadata.deletion_timestamp is None:
        # In the background: in the foreground the Job would stay until its pods are gone.
        uid = {"preconditions": {"uid": found.metadata.uid}, "propagationPolicy": "Background"}
        api.delete_namespaced_job(name, NAMESPACE, body=uid)
    raise RuntimeError(f"the last Job {name} has failed ({end[1] if end else 'deleted'}); the retry creates it anew")


def judge(api: Any, name: str, uid: str) -> PokeReturnValue:
    """Whether the Job has completed.

    :raises AirflowFailException: it never will.
    """
    from kubernetes.client.exceptions import ApiException

    try:
        found = api.read_namespaced_job(name, NAMESPACE)
    except ApiException as error:
        if error.status != 404:
            raise
        raise AirflowFailException(f"Job {name} was deleted; clear start_job to go on from its checkpoints") from error
    if found.metadata.uid != uid:
        raise AirflowFailException(f"Job {name} was deleted and created anew; clear start_job to follow the new one")
    end = ended(found)
    if end is not None and end[0] == "Failed":
        raise AirflowFailException(f"Job {name} failed: {end[1]}; see kubectl -n {NAMESPACE} logs job/{name}")
    return PokeReturnValue(is_done=end is not None, xcom_value=end and end[1])


@task(retries=3, retry_delay=timedelta(seconds=30))
def start_job(params: dict[str, Any]) -> str:
    """The Job's UID."""
    with jobs() as api:
        return create_or_find(api, job_object(params["job"], PROGRAM.read_text(encoding="utf-8"), params["steps"]))


class JobSensor(BaseSensorOperator):
    """Waits for the Job's end, and holds no worker between two looks.

    :param uid: of the Job.
    """

    template_fields = ("uid",)

    def __init__(self, *, uid: Any, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", **kwargs)
        self.uid = uid

    def poke(self, context: Any) -> PokeReturnValue:
        with jobs() as api:
            return judge(api, context["params"]["job"], self.uid)


with DAG(
    "checkpointed_training",
    schedule=[Asset(f"gpu-fleet://{CLUSTER}/{POOL}/ready")],
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["example", "training"],
    params={
        "job": Param(
            "checkpointed-training",
            type="string",
            pattern="^[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?$",
            title="Job",
            description="Name of the Job and of the folder of its checkpoints: one for each training.",
        ),
        "steps": Param(6000, type="integer", minimum=1, title="Steps", description="How many steps to train."),
    },
):
    JobSensor(
        task_id="await_job",
        uid=start_job(),
        # Each look costs a token, which takes some seconds.
        poke_interval=60,
        timeout=timedelta(days=7).total_seconds(),
        # A look that fails, because the API server is away for example, is made again.
        silent_fail=True,
    )
