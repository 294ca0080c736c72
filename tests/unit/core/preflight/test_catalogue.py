from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import moto
import pytest

from gpu_fleet.core.preflight.catalogue import differences


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    """EC2's own answers, as moto's maintainers recorded them."""
    path = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    found: dict[str, dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def test_ec2_and_the_catalogue_agree_on_everything_that_ec2_answers(answers: dict[str, dict[str, Any]]) -> None:
    assert differences(answers.values()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"VCpuInfo": {"DefaultVCpus": 6}}, "g5.xlarge has 6 vCPUs by EC2, and 4 by the catalogue of 2026-08-21"),
        ({"MemoryInfo": {"SizeInMiB": 1}}, "1 MiB of memory by EC2"),
        ({"ProcessorInfo": {"SupportedArchitectures": ["arm64"]}}, "arm64 as its architecture by EC2"),
        ({"GpuInfo": {"Gpus": [{"Manufacturer": "NVIDIA", "Count": 2}]}}, "2 GPUs by EC2"),
    ],
)
def test_a_difference_names_both_figures(answers: dict[str, dict[str, Any]], change: dict[str, Any], said: str) -> None:
    [sentence] = differences([{**answers["g5.xlarge"], **change}])
    assert said in sentence


def test_what_either_does_not_say_is_no_difference() -> None:
    assert differences([{"InstanceType": "g5.xlarge"}, {"InstanceType": "g99.xlarge", "VCpuInfo": {}}]) == []
