"""One reading of ``DescribeInstanceTypes``, against answers that EC2 gave."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import moto
import pytest

from gpu_fleet.core.aws.described import described
from gpu_fleet.core.aws.hardware import hardware_of


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    """Recorded by moto's maintainers."""
    path = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    found: dict[str, dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def test_all_that_a_pool_needs_to_know_is_read(answers: dict[str, dict[str, Any]]) -> None:
    assert described(answers["p5.48xlarge"]).to_json() == {
        "gpus": 8, "fractional": False, "gpu_name": "H100", "memory_mib": 81920, "vcpus": 192, "ram_mib": 2097152,
        "architecture": "amd64", "pod_places": 100, "nvme_gb": 30400, "efa": 32, "network_mbps": 3_200_000,
        "ebs_baseline_mbps": 10_000.0, "ebs_maximum_mbps": 10_000.0,
    }  # fmt: skip


def test_a_small_type_sustains_less_than_it_reaches(answers: dict[str, dict[str, Any]]) -> None:
    found = described(answers["g5.xlarge"])
    assert (found.ebs_baseline_mbps, found.ebs_maximum_mbps, found.efa, found.nvme_gb) == (87.5, 437.5, 0, 250)


def test_arm_and_fractional_and_amd_are_told_apart(answers: dict[str, dict[str, Any]]) -> None:
    arm, part, none = (described(answers[name]) for name in ("g5g.xlarge", "g6f.large", "m5.large"))
    radeon = {"Name": "Radeon Pro V520", "Manufacturer": "AMD", "Count": 1, "MemoryInfo": {"SizeInMiB": 8192}}
    amd = described({"InstanceType": "g4ad.xlarge", "GpuInfo": {"Gpus": [radeon]}})
    assert (arm.architecture, arm.gpus, arm.fractional, arm.nvme_gb) == ("arm64", 1, False, 0)
    assert (part.gpus, part.fractional, part.gpu_name) == (0, True, "L4")
    assert (amd.gpus, amd.fractional, amd.gpu_name) == (0, False, "")
    assert (none.gpus, none.fractional, none.memory_mib) == (0, False, None)


def test_what_ec2_leaves_out_is_unknown_not_zero() -> None:
    found = described({"InstanceType": "g5.xlarge"})
    assert {key for key, value in found.to_json().items() if value is None} == {
        "memory_mib", "vcpus", "ram_mib", "architecture", "pod_places", "nvme_gb", "efa", "network_mbps",
        "ebs_baseline_mbps", "ebs_maximum_mbps",
    }  # fmt: skip


def test_a_pools_hardware_has_all_of_it(answers: dict[str, dict[str, Any]]) -> None:
    found = hardware_of(answers.values(), ["g6e.xlarge", "g6e.2xlarge"])
    assert found.count == 1
    assert {name: each.architecture for name, each in found.types.items()} == {
        "g6e.xlarge": "amd64", "g6e.2xlarge": "amd64"
    }  # fmt: skip
    assert found.vcpus == {"g6e.xlarge": 4, "g6e.2xlarge": 8}
