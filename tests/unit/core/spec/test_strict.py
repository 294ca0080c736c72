"""No value of the cluster file silently becomes another one, in whatever field."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest

from gpu_fleet.core.spec import ClusterSpec, Duration, SpecErrors, parse_cluster
from gpu_fleet.core.spec.base import SpecModel
from gpu_fleet.core.spec.node_class import PoolNodeClass
from gpu_fleet.core.spec.types.cron import check_budget_schedule, check_schedule
from gpu_fleet.core.spec.types.durations import Seconds
from tests.unit.core.specs import demo_mapping, demo_spec

DIGEST = f"sha256:{'0' * 64}"


def capacity_of(instance_type: str, capacity_type: str) -> dict[str, Any]:
    rung = {"instanceTypes": [instance_type], "capacityTypes": [capacity_type], "zones": ["us-west-2a"], "for": "5m"}
    return {"hold": 5, "ladder": [rung], "minimum": 1, "prePull": ["public.ecr.aws/a/b:1"]}


WINDOW = {"schedule": "0 8 * * 1-5", "duration": "10h", "timeZone": "Europe/Berlin", "nodes": 1}
OF_BOTTLEROCKET = {
    "osVolumeSize": 4,
    "volume": {"snapshot": "snap-0123456789abcdef0", "initializationRate": 200},
    "instanceStorePolicy": "none",
    "userData": '[settings.ntp]\ntime-servers = ["169.254.169.123"]\n',
}
OF_AL2023 = {
    "ami": {"family": "AL2023", "name": "ours-*", "owner": "self", "tags": {"team": "a"}, "ids": []},
    "volumeSize": 200,
    "volume": {"type": "gp3", "throughput": 700, "iops": 4000, "encrypted": True, "kmsKey": "alias/ebs"},
    "tags": {"team": "b"},
    "kubelet": {
        "maxPods": 50,
        "podsPerCore": 10,
        "systemReserved": {"cpu": "100m"},
        "kubeReserved": {"memory": "1Gi"},
        "evictionHard": {"memory.available": "5%"},
        "evictionSoft": {"memory.available": "10%"},
        "evictionSoftGracePeriod": {"memory.available": "30s"},
        "evictionMaxPodGracePeriod": 60,
        "clusterDNS": ["10.100.0.10"],
        "imageGCHighThresholdPercent": 90,
        "imageGCLowThresholdPercent": 80,
        "cpuCFSQuota": True,
    },
    "userData": "#!/bin/bash\necho hello\n",
    "networkInterfaces": [{"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"}],
    "placementGroup": {"name": "ours"},
    "subnets": [{"id": "subnet-0123"}, {"tags": {"team": "a"}}],
    "securityGroups": [{"id": "sg-0123"}, {"name": "gpu"}, {"tags": {"team": "a"}}],
    "associatePublicIPAddress": True,
    "detailedMonitoring": True,
    "metadataOptions": {"httpPutResponseHopLimit": 2},
    "fastStart": True,
    "extra": {"connectionTracking": {"udpTimeout": 30}, "context": "reserved", "ipPrefixCount": 1},
}


def full_mapping() -> dict[str, Any]:
    """A cluster file in which every field is written."""
    value = demo_mapping(
        schedule="0 6 * * 1",
        cluster__access={"mode": "kubeconfig", "path": "/etc/kubeconfig", "context": "demo"},
        karpenter__settings={"batchIdleDuration": "1s"},
        karpenter__values={"podLabels": {"a": "b"}},
        devicePlugin__values={"podAnnotations": {"a": "b"}},
        karpenter__chart__digest=DIGEST,
        karpenter__chart__crdDigest=DIGEST,
        devicePlugin__chart__digest=DIGEST,
        devicePlugin__coexistsWith=["kube-system/efa"],
        nodeClass__tags={"team": "a"},
        nodeClass__ami={"family": "AL2023", "ids": ["ami-0123456789abcdef0"]},
        nodePools__0__amiAlias="bottlerocket@1.60.0",
        nodePools__0__nodeClass=OF_BOTTLEROCKET,
        nodePools__1__nodeClass=OF_AL2023,
        nodePools__0__labels={"team": "a"},
        nodePools__0__weight=10,
        nodePools__0__admission="gated",
        nodePools__1__admission="open",
        nodePools__0__terminationGracePeriod="10m",
        nodePools__0__capacity=capacity_of("g5.xlarge", "spot"),
        nodePools__1__capacity=capacity_of("p4d.24xlarge", "reserved") | {"hold": 0, "headroom": [WINDOW]},
        nodePools__1__capacityTypes=["reserved"],
        nodePools__1__capacityReservations=[{"id": "cr-0123456789abcdef0"}],
        nodePools__1__capacityBlock={"margin": "90m", "notice": "10m", "emptyBefore": "50m", "wait": "12h"},
        nodeClass__capacityReservations=[{"tags": {"team": "a"}, "owner": "123456789012"}],
        nodePools__1__weight=5,
        nodePools__1__terminationGracePeriod="10m",
        nodePools__0__disruption={
            "budgets": [{"nodes": "1", "schedule": "0 22 * * 1-5", "duration": "8h", "reasons": ["Empty"]}]
        },
        nodePools__1__sharing={"mode": "mps", "replicas": 4},
        validation={
            "nodes": {"sample": 1},
            "probes": {"dcgm": 1},
            "minimumDriver": "570",
            "imagePullSecrets": ["pull"],
            "overdueAfter": "2h",
            "notify": [{"notifier": "a.B", "arguments": {"c": "d"}}],
        },
        interruptions={
            "queue": "demo-gpu-fleet",
            "handler": "karpenter",
            "maintenance": {"schedule": "0 2 * * 6"},
            "nodeGroups": ["gpu"],
        },
    )
    return parse_cluster(value).to_json()


FULL = full_mapping()
Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def changed(path: Path, new: Any) -> dict[str, Any]:
    value = copy.deepcopy(FULL)
    target: Any = value
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = new
    return value


LEAVES = dict(leaves(FULL))
#: Text of others, in which a line break may be meant: Helm values, a notifier's arguments.
FREE = ("settings", "values", "arguments", "userData")
#: Fields of a node class that are taken over from the cluster's, or exclude each other.
TAKEN_OVER = {str(field.alias) for field in PoolNodeClass.model_fields.values()}
EXCLUSIVE = {"id", "name", "owner", "snapshot", "initializationRate", "kmsKey", "throughput", "iops"}
NULLABLE = TAKEN_OVER | {"cpuCFSQuota"}
TEXTS = [path for path, value in LEAVES.items() if isinstance(value, str) and not set(FREE) & set(path)]


def models(annotation: Any) -> Iterator[type[SpecModel]]:
    """The models in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    elif get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for part in get_args(annotation):
            yield from models(part)


def test_every_field_is_written_in_the_full_file() -> None:
    """Else a new field would be tested by nobody."""
    written = {part for path in LEAVES for part in path if isinstance(part, str)}
    fields = {field.alias for model in {ClusterSpec, *models(ClusterSpec)} for field in model.model_fields.values()}
    assert fields - written == set()
    unset = {path for path, value in LEAVES.items() if value in (None, "")}
    free = {"amiAlias", "schedule", "limits", "duration", "capacityBlock"} | TAKEN_OVER | EXCLUSIVE
    assert {path[-1] for path in unset} <= free


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("added", ["\n", " ", "\u2028", "\x00"], ids=["line break", "space", "separator", "NUL"])
def test_no_text_may_end_with_what_nobody_sees(path: Path, added: str) -> None:
    """A regular expression's ``$`` matches before a line break at the end."""
    with pytest.raises(SpecErrors):
        parse_cluster(changed(path, LEAVES[path] + added))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_no_value_becomes_one_of_another_type(path: Path) -> None:
    if set(FREE) & set(path):
        return
    value = LEAVES[path]
    others: list[Any] = []
    match value:
        case bool():
            others = [int(value), str(value).lower(), "yes", *([] if path[-1] in NULLABLE else [None])]
        case int():
            others = [str(value), float(value), True]
        case float():
            others = [str(value), True, float("nan"), float("inf")]
        case str():
            others = [1, 1.5, True, ["x"]]
    for other in others:
        with pytest.raises(SpecErrors) as caught:
            parse_cluster(changed(path, other))
        assert caught.value.problems[0].field, (path, other)
        assert caught.value.problems[0].remedy, (path, other, str(caught.value))


@pytest.mark.parametrize("field", ["karpenter__settings", "karpenter__values", "devicePlugin__values"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": float("nan")}, "nan is not a number"),
        ({"a": [{"b": float("-inf")}]}, "-inf is not a number"),
        ({1: "a"}, "quote"),
        ({"a": {True: "a"}}, "quote"),
        ({"a": b"x"}, "is a bytes"),
        ({"a": {"b"}}, "is a set"),
    ],
)
def test_what_helm_cannot_hold_is_refused_in_its_values(field: str, value: Any, said: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**{field: value})
    assert said in str(caught.value)
    assert caught.value.field.startswith(field.split("__")[0].replace("__", "."))


def test_helm_values_that_contain_themselves_are_refused() -> None:
    value: dict[str, Any] = {}
    value["a"] = value
    with pytest.raises(SpecErrors, match="nested deeper than"):
        demo_spec(karpenter__values=value)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Duration.parse, "5m\n"),
        (Seconds.parse, "5m\n"),
        (check_schedule, "@daily\n"),
        (check_schedule, "0 6 * * 1\n"),
        (check_schedule, f"{'0,' * 200}0 6 * * 1"),
        (check_budget_schedule, "@daily\n"),
        (check_budget_schedule, "0 22 * * 1\n"),
        (check_budget_schedule, f"*/{'1' * 5000} * * * *"),
    ],
)
def test_a_check_reads_its_text_to_the_end(check: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"not|no |characters"):
        check(text)


def test_lists_are_the_only_thing_that_is_converted() -> None:
    assert demo_spec(owners=["a", "b"]).owners == ("a", "b")
    with pytest.raises(SpecErrors, match=r"owners: must be a list, not 'a'"):
        demo_spec(owners="a")
