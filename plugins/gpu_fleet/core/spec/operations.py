"""How the package works: deadlines, validation, drain, teardown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from gpu_fleet.core.kubernetes.names import VALIDATION_NAMESPACE
from gpu_fleet.core.spec.base import NotEmpty, Pattern, SpecModel
from gpu_fleet.core.spec.capacity.admission import Admission, Unproven, positive
from gpu_fleet.core.spec.types.durations import Seconds
from gpu_fleet.core.spec.types.names import DnsLabel, QuotedVersion


class Deadlines(SpecModel):
    """Upper bounds of the waits, one per kind of gate, counted from the gate's first look.

    A bound is not an expectation: after it, waiting longer is pointless. Each has room for slow days.
    """

    turn: Seconds = Field(default=Seconds.parse("30m"), description="For the cluster lock while another run holds it.")
    cluster_active: Seconds = Field(
        default=Seconds.parse("20m"),
        description="For the EKS cluster to be ACTIVE, and for nodes of its node groups that are still joining; "
        "creating or updating a control plane takes 9 to 17 minutes.",
    )
    crds: Seconds = Field(default=Seconds.parse("2m"), description="For Karpenter's CRDs to be Established.")
    release: Seconds = Field(
        default=Seconds.parse("10m"), description="For a Helm release's own resources to be ready."
    )
    node_class_ready: Seconds = Field(
        default=Seconds.parse("2m"),
        description="For EC2NodeClass Ready: AMIs, subnets, security groups, instance profile.",
    )
    node_pool_ready: Seconds = Field(default=Seconds.parse("2m"), description="For NodePool Ready; takes milliseconds.")
    capacity: Seconds = Field(
        default=Seconds.parse("20m"),
        description="From the first pending placeholder to GPUs registered on every wanted node; Karpenter itself "
        "gives up on a launch after 5 minutes and on a registration after 15.",
    )
    prove: Seconds = Field(default=Seconds.parse("5m"), description="For the plugin's pods and GPUs to be proven.")
    validation: Seconds = Field(
        default=Seconds.parse("15m"), description="For one probe, image pull included (up to 6 minutes for 20 GB)."
    )
    drain: Seconds = Field(
        default=Seconds.parse("15m"), description="For the drain of one pool's nodes; not shorter than drain.timeout."
    )
    teardown: Seconds = Field(
        default=Seconds.parse("30m"), description="For NodeClaims, nodes and EC2 instances to be gone, each."
    )
    cleanup: Seconds = Field(default=Seconds.parse("5m"), description="For probe pods and placeholders to be gone.")
    approval: Seconds = Field(
        default=Seconds.parse("24h"), description="For a person to answer the teardown's approval."
    )


class ProbeImages(SpecModel):
    """Images of the probe pods; mirror them for clusters without access to the public registries."""

    vector_add: str = Field(
        default="nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubuntu22.04",
        min_length=1,
        description="NVIDIA's CUDA vectorAdd sample; the probes of sharing and exclusiveness run in it.",
    )
    cuda: str = Field(
        default="nvidia/cuda:12.8.0-base-ubuntu22.04",
        min_length=1,
        description="For the probes of sharing and exclusiveness where probes.vectorAdd is false.",
    )
    throughput: str = Field(
        default="public.ecr.aws/docker/library/python:3.12-slim-bookworm",
        min_length=1,
        description="Image with python3 (3.8 or later) and glibc; the NVIDIA runtime adds the driver's libraries.",
    )
    dcgm: str = Field(
        default="nvcr.io/nvidia/cloud-native/dcgm:4.2.3-1-ubuntu22.04",
        min_length=1,
        description="NVIDIA's DCGM: nv-hostengine and dcgmi.",
    )
    placeholder: str = Field(
        default="registry.k8s.io/pause:3.10", min_length=1, description="Image of the pods that ask for capacity."
    )


_Command = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NotEmpty]


class ProbeCommands(SpecModel):
    """How the probes are started in their images: argument lists, without a shell."""

    vector_add: _Command = Field(
        default=("/cuda-samples/vectorAdd",),
        description="The vectorAdd sample in images.vectorAdd, by its absolute path, and its arguments.",
    )
    shell: _Command = Field(
        default=("/bin/sh",), description="POSIX shell of the probe scripts in images.vectorAdd, cuda and dcgm."
    )
    python: _Command = Field(
        default=("python3",), description="Python (3.8 or later) of the throughput probe in images.throughput."
    )

    @field_validator("vector_add")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].startswith("/"):
            raise ValueError(f"{value[0]!r} is not an absolute path; write for example [/cuda-samples/vectorAdd]")
        return value


def _whole(value: object) -> object:
    """A Literal compares with ``==``, and in Python ``True`` and ``1.0`` are equal to 1."""
    if isinstance(value, bool | float):
        raise ValueError(f"{value!r} is not a level; write 1, 2 or 3")
    return value


class Probes(SpecModel):
    """Which probes run on every pool; sharing and oversubscription apply to shared pools, exclusive to the others."""

    vector_add: bool = Field(
        default=True, description="CUDA's vectorAdd sample in every probe of sharing and exclusiveness."
    )
    sharing: bool = Field(default=True, description="All replicas of a GPU in use at the same time, same GPU UUID.")
    oversubscription: bool = Field(default=True, description="One pod too many stays Pending.")
    exclusive: bool = Field(default=True, description="Every container sees GPUs that no other container sees.")
    throughput: bool = Field(
        default=True, description="Revalidation: arithmetic throughput, together against alone, and its fairness."
    )
    dcgm: Annotated[Literal[1, 2, 3], BeforeValidator(_whole)] | None = Field(
        default=None,
        description="Revalidation: level of `dcgmi diag` on nodes whose GPUs are all free (1: seconds, 2: about 2 "
        "minutes, 3: about 15 minutes); null: none.",
    )


class ValidatedNodes(SpecModel):
    """Which nodes a validation tests, and how many at a time."""

    sample: int | None = Field(
        default=None, ge=1, description="Number of nodes of each pool to test per run, chosen anew each run; null: all."
    )
    at_once: int = Field(
        default=50,
        ge=1,
        le=500,
        description="Nodes to test at the same time; more are tested in waves. With 50, the scheduler places the pods "
        "of one wave (a few hundred) within seconds.",
    )


class Throughput(SpecModel):
    """What the sharers of a GPU must reach. The figures compare GPUs only with themselves and with each other."""

    duration: Seconds = Field(
        default=Seconds.parse("10s"),
        description="Minimum time for which all sharers compute together, and then one of them alone.",
    )
    minimum_total: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Minimum throughput of all sharers together, relative to one alone; switching costs some of it.",
    )
    tolerance: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="How far a sharer may be below the mean of the sharers, and a whole GPU below the median.",
    )


class OnFailure(SpecModel):
    """What happens to nodes that fail a revalidation for a cause of their own."""

    policy: Literal["alert", "quarantine", "replace"] = Field(
        default="alert",
        description="alert: report only. quarantine: cordon and taint the node, release it when it passes again. "
        "replace: delete its NodeClaim.",
    )
    budget: int = Field(
        default=1, ge=1, le=100, description="Maximum number of nodes of a pool that one run takes out of service."
    )


def _notifier(value: str) -> str:
    return (
        f"{value!r} is not the import path of a class; write module and class, for example my_company.notifiers.Pager"
    )


def _driver(value: str) -> str:
    return f'{value!r} is not a driver version; write one to three numbers in quotes, for example "570" or "570.133.20"'


class Notification(SpecModel):
    """A notifier that is called when a pool's verdict changes."""

    notifier: Annotated[str, Pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", _notifier)] = Field(
        description="Import path of a class derived from Airflow's BaseNotifier."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Its keyword arguments, templated as the notifier allows. Write no secrets here.",
    )


class Validation(SpecModel):
    """Proof that GPUs work and are shared as promised."""

    namespace: DnsLabel = Field(default=VALIDATION_NAMESPACE)
    nodes: ValidatedNodes = Field(default_factory=ValidatedNodes)
    images: ProbeImages = Field(default_factory=ProbeImages)
    commands: ProbeCommands = Field(default_factory=ProbeCommands)
    probes: Probes = Field(default_factory=Probes)
    throughput: Throughput = Field(default_factory=Throughput)
    overlap: Seconds = Field(
        default=Seconds.parse("20s"),
        description="How long all sharers must run at the same time; covers differences in their start.",
    )
    minimum_driver: Annotated[QuotedVersion, Pattern(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}", _driver)] | None = Field(
        default=None, description='Nodes with an older NVIDIA driver fail, for example "570"; null: any driver.'
    )
    image_pull_secrets: tuple[DnsLabel, ...] = Field(
        default=(), description="Names of existing pull secrets in the validation namespace."
    )
    on_failure: OnFailure = Field(default_factory=OnFailure)
    admission: Admission = Field(
        default="open",
        description="gated: new nodes carry the startup taint gpu-fleet.io/unproven:NoSchedule until their GPUs are "
        "proven, so that no user's pod runs there before; also nodes that Karpenter adds later. While Airflow is down, "
        "such nodes stay closed. open: nodes take pods as soon as they are Ready.",
    )
    admit_within: Annotated[Seconds, AfterValidator(positive)] = Field(
        default=Seconds.parse("20m"),
        description="For gated pools: how long after a node was created its proof may take, waits for the cluster lock "
        "included; then admitUnproven decides.",
    )
    admit_unproven: Unproven = Field(
        default="keepAway",
        description="For gated pools: what happens to a node that could be neither proven nor disproven within "
        "admitWithin. keepAway: it stays closed until a validation passes. withWarning: it is admitted, and its "
        "condition gpu-fleet.io/Proven says that it is not proven. A node that failed its proof always stays closed.",
    )
    overdue_after: Seconds | None = Field(
        default=None,
        description="Alert if a scheduled revalidation has not ended this long after it was due; null: never.",
    )
    notify: tuple[Notification, ...] = Field(default=(), description="Notifiers to call when a pool's verdict changes.")

    @field_validator("overdue_after")
    @classmethod
    def _some_time(cls, value: Seconds | None) -> Seconds | None:
        if value is not None and value <= 0:
            raise ValueError("must be longer than 0s; write for example 2h")
        return value


class Drain(SpecModel):
    """How a node is emptied; names and meanings as in `kubectl drain`."""

    timeout: Seconds = Field(
        default=Seconds.parse("10m"), description="How long evictions are retried; then whenTimeExpires decides."
    )
    grace_period: int = Field(
        default=-1, ge=-1, description="Seconds each pod gets to terminate; -1 means the pod's own grace period."
    )
    ignore_daemon_sets: bool = Field(
        default=True,
        description="true: leave pods of DaemonSets: their controller ignores the cordon. false: refuse the drain.",
    )
    delete_empty_dir_data: bool = Field(
        default=True,
        description="true: evict pods with emptyDir volumes, whose data is lost. false: refuse the drain.",
    )
    force: bool = Field(
        default=False,
        description="true: evict pods without a controller, such as those of Airflow's pod operators, although nothing "
        "recreates them. false: a teardown refuses to start while there are any. For one run: its Param evictBarePods.",
    )
    disable_eviction: bool = Field(
        default=False,
        description="true: delete pods instead of evicting them, which ignores every PodDisruptionBudget. Avoid it.",
    )
    retry_every: Seconds = Field(
        default=Seconds.parse("5s"),
        description="Shortest pause before a refused eviction is retried. If only PodDisruptionBudgets refuse it, it "
        "is retried when one of them changes to allow it, and in any case after half of the time so far, at most 60s.",
    )
    when_time_expires: Literal["fail", "delete"] = Field(
        default="fail",
        description="fail: stop and report the pods and their PodDisruptionBudgets; if nothing was evicted, uncordon "
        "the nodes. delete: delete the remaining pods, whatever their PodDisruptionBudgets say.",
    )


class Teardown(SpecModel):
    """What a teardown removes, and what it does if Karpenter is dead."""

    uninstall_device_plugin: bool = Field(
        default=True,
        description="true: uninstall the device plugin and delete the RuntimeClass. Each is kept while others need it; "
        "the approval names them.",
    )
    uninstall_karpenter: bool = Field(
        default=True, description="false: keep Karpenter, for example if CPU pools of others use it."
    )
    when_karpenter_is_dead: Literal["fail", "emergency"] = Field(
        default="fail",
        description="emergency: terminate the instances of this file's pools through EC2, and once they are gone, "
        "remove the finalizers of NodeClaims and nodes. fail: stop with an error.",
    )
