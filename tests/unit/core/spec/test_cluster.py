from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec, SpecErrors, parse_cluster
from tests.unit.core.specs import demo_mapping, demo_spec

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "aws": {"region": "eu-west-1"},
    "cluster": {"name": "tiny"},
    "karpenter": {"interruptionQueue": "tiny"},
    "nodeClass": {"role": "KarpenterNodeRole-tiny", "discoveryTag": "tiny"},
    "nodePools": [{"name": "gpu", "instanceTypes": ["g5.2xlarge"]}],
}


def test_a_minimal_file_gets_the_pinned_defaults() -> None:
    spec = parse_cluster(MINIMAL)
    pool = spec.node_pools[0]
    assert (spec.cluster.version, spec.karpenter.chart.version, spec.device_plugin.chart.version) == (
        "1.35",
        "1.14.1",
        "0.20.0",
    )
    assert spec.node_class.ami_alias == "al2023@v20260714"
    assert [(t.key, t.value, t.effect) for t in pool.taints] == [("nvidia.com/gpu", "true", "NoSchedule")]
    assert (pool.config_entry, pool.replicas, pool.wanted_nodes, pool.node_limit) == ("exclusive", 1, 0, 0)
    assert spec.state == "present"
    assert spec.teardown.when_karpenter_is_dead == "fail"


def test_a_pool_needs_no_more_than_a_name() -> None:
    (pool,) = parse_cluster({**MINIMAL, "nodePools": [{"name": "gpu"}]}).node_pools
    assert (pool.instance_types, pool.gpus_per_node) == (("g5.xlarge", "g5.2xlarge"), 1)


def test_the_demo_cluster_has_a_shared_and_a_whole_gpu_pool() -> None:
    spec = demo_spec()
    shared, whole = spec.node_pools
    assert (shared.config_entry, shared.replicas, shared.wanted_nodes, shared.node_limit) == ("time-slicing-4", 4, 2, 4)
    assert (whole.config_entry, whole.replicas, whole.gpus_per_node) == ("exclusive", 1, 8)


def test_a_spec_survives_json_with_equal_digest() -> None:
    spec = demo_spec()
    again = ClusterSpec.model_validate(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest
    assert len(spec.digest) == 64


def test_the_digest_ignores_order_and_written_defaults_but_no_change() -> None:
    spec = demo_spec()
    reordered = parse_cluster(dict(reversed(list(demo_mapping().items()))))
    assert reordered.digest == spec.digest
    assert demo_spec(drain__gracePeriod=-1).digest == spec.digest
    assert demo_spec(deadlines__capacity="1200s").digest == spec.digest
    assert demo_spec(nodePools__0__wantedNodes=3).digest != spec.digest


@pytest.mark.parametrize(
    "path",
    ["surprise", "aws__surprise", "cluster__surprise", "cluster__access__surprise", "karpenter__surprise",
     "karpenter__chart__surprise", "nodeClass__surprise", "nodePools__0__surprise", "nodePools__0__sharing__surprise",
     "validation__nodes__surprise", "validation__throughput__surprise", "validation__onFailure__surprise",
     "validation__probes__surprise", "nodePools__0__limits__surprise",
     "nodePools__0__disruption__surprise", "nodePools__0__capacity__surprise",
     "devicePlugin__surprise", "devicePlugin__chart__surprise", "validation__surprise", "validation__images__surprise",
     "validation__commands__surprise",
     "drain__surprise", "teardown__surprise", "deadlines__surprise", "runtimeClass__surprise"],
)  # fmt: skip
def test_an_unknown_key_is_refused_everywhere(path: str) -> None:
    with pytest.raises(SpecErrors, match="is not a key of the cluster spec") as caught:
        demo_spec(**{path: 1})
    assert [problem.field for problem in caught.value.problems] == [path.replace("__0__", "[0].").replace("__", ".")]


@pytest.mark.parametrize("path", ["name", "aws", "aws__region", "cluster", "cluster__name", "nodeClass", "nodePools"])
def test_a_missing_key_is_named(path: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**{path: ...})
    assert [problem.field for problem in caught.value.problems] == [path.replace("__", ".")]
    assert "is missing" in str(caught.value)


def test_every_problem_of_a_file_is_reported_at_once() -> None:
    with pytest.raises(SpecErrors) as caught:
        parse_cluster(
            demo_mapping(cluster__version=1.35, nodePools__0__sharing__replicas=1, nodePools__1__expireAfter="30d"),
            where="demo.yaml",
        )
    assert [problem.field for problem in caught.value.problems] == [
        "cluster.version", "nodePools[0].sharing.replicas", "nodePools[1].expireAfter",
    ]  # fmt: skip
    assert str(caught.value).startswith("demo.yaml: 3 problems in the cluster spec\n")


def test_a_spec_is_frozen() -> None:
    spec = demo_spec()
    with pytest.raises(ValidationError):
        spec.name = "other"
    with pytest.raises(ValidationError):
        spec.node_pools[0].wanted_nodes = 9


def test_an_unknown_pool_is_answered_with_the_known_ones() -> None:
    spec = demo_spec()
    assert spec.pool("whole-a100").instance_types == ("p4d.24xlarge",)
    with pytest.raises(SpecError, match="one of: shared-a10g, whole-a100"):
        spec.pool("nope")


def test_config_entries_differ_whenever_the_configs_differ() -> None:
    strict = demo_spec().node_pools[0].config_entry
    lax = demo_spec(nodePools__0__sharing__failRequestsGreaterThanOne=False).node_pools[0].config_entry
    more = demo_spec(nodePools__0__sharing__replicas=8).node_pools[0].config_entry
    mps = demo_spec(nodePools__0__sharing={"mode": "mps", "replicas": 4}).node_pools[0].config_entry
    assert len({strict, lax, more, mps, "exclusive"}) == 5


def test_an_mps_pool_is_shared_and_refuses_requests_for_two() -> None:
    pool = demo_spec(nodePools__0__sharing={"mode": "mps", "replicas": 4}).node_pools[0]
    assert (pool.shared, pool.mps, pool.replicas, pool.refuses_two) == (True, True, 4, True)
    assert (pool.config_entry, pool.sharing_words) == ("mps-4", "MPS, 4 per GPU")


def test_validation_asks_for_all_nodes_and_throughput_and_only_reports_unless_told() -> None:
    validation = demo_spec().validation
    assert (validation.nodes.sample, validation.nodes.at_once) == (None, 50)
    assert (validation.probes.throughput, validation.probes.dcgm) == (True, None)
    assert (validation.throughput.duration, validation.throughput.minimum_total, validation.throughput.tolerance) == (
        10,
        0.7,
        0.25,
    )
    assert (validation.on_failure.policy, validation.on_failure.budget) == ("alert", 1)
    assert (validation.minimum_driver, validation.overdue_after, validation.notify) == (None, None, ())


def test_kubeconfig_access_needs_a_path() -> None:
    assert (
        demo_spec(cluster__access={"mode": "kubeconfig", "path": "/k", "context": "c"}).cluster.access.mode
        == "kubeconfig"
    )
    with pytest.raises(SpecErrors, match=r"cluster\.access\.path: is missing"):
        demo_spec(cluster__access={"mode": "kubeconfig"})
    with pytest.raises(SpecErrors, match=r"cluster\.access: 'ssh' is not allowed"):
        demo_spec(cluster__access={"mode": "ssh"})


@pytest.mark.parametrize(
    "cron", ["0 6 * * 1", "*/15 * * * *", "@daily", "@monthly", "0 6 L * *", "0 6 * * MON#1", "30 5 29 2 *", None]
)
def test_a_schedule_is_a_cron_or_nothing(cron: str | None) -> None:
    assert demo_spec(schedule=cron).schedule == cron


@pytest.mark.parametrize("cron", ["hourly", "* * * *", "", "@sometimes", "0 6 * * 1 2026"])
def test_a_schedule_that_is_no_cron_is_refused(cron: str) -> None:
    with pytest.raises(SpecErrors, match=r"schedule: .* is not a cron expression"):
        demo_spec(schedule=cron)


@pytest.mark.parametrize(
    ("cron", "part", "remedy"),
    [
        ("0 24 * * *", "'24' is not a cron hour", "0 to 23"),
        ("60 6 * * *", "'60' is not a cron minute", "0 to 59"),
        ("*/0 6 * * *", "'*/0' is not a cron minute", "0 to 59"),
        ("0 6 0 * *", "'0' is not a cron day of month", "1 to 31"),
        ("0 6 * 13 *", "'13' is not a cron month", "1 to 12"),
        ("0 6 * * MON#9", "'MON#9' is not a cron day of week", "0 to 7"),
        ("H 6 * * *", "'H' is not a cron minute", "0 to 59"),
        ("0 6 30 2 *", "no date that ever comes", "days and months"),
    ],
)
def test_a_schedule_that_airflow_would_refuse_names_the_part(cron: str, part: str, remedy: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(schedule=cron)
    (problem,) = caught.value.problems
    assert problem.field == "schedule"
    assert cron in problem.message
    assert part in problem.message
    assert remedy in problem.remedy


@pytest.mark.parametrize("mapping", [{}, {"name": []}, {"nodePools": "x"}, {"nodePools": [1]}])
def test_nonsense_is_reported_never_raised_raw(mapping: dict[str, Any]) -> None:
    with pytest.raises(SpecErrors) as caught:
        parse_cluster(mapping)
    assert caught.value.problems


@pytest.mark.parametrize("name", ["vectorAdd", "shell", "python"])
@pytest.mark.parametrize("value", ["/bin/sh -c x", [], [""], ["/x", ""], [1], None])
def test_a_probe_command_is_an_argument_list(name: str, value: Any) -> None:
    with pytest.raises(SpecErrors, match=rf"validation\.commands\.{name}"):
        demo_spec(**{f"validation__commands__{name}": value})


@pytest.mark.parametrize("value", ["-", "vectorAdd", "./vectorAdd"])
def test_vector_add_is_named_by_an_absolute_path(value: str) -> None:
    with pytest.raises(SpecErrors, match="not an absolute path"):
        demo_spec(validation__commands__vectorAdd=[value])
