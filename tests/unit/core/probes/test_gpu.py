"""Termination messages that cannot be believed: each is named, none is a crash or a pass."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core.probes.gpu import MESSAGE_LIMIT, ProbeOutputError, parse_output
from tests.unit.core.cluster_objects import NOW
from tests.unit.core.probe_objects import UUID, message


def gpu(**changes: Any) -> list[dict[str, Any]]:
    return [{"uuid": UUID, "name": "NVIDIA A10G", "memoryTotalMiB": 23028, "memoryFreeMiB": 22000} | changes]


def test_a_full_report() -> None:
    output = parse_output(message())
    assert output.started_at == NOW - 30
    assert output.gpus[0].uuid == UUID
    assert output.vector_add is not None


def test_a_mig_slice_is_a_gpu() -> None:
    assert parse_output(message(uuids=(UUID.replace("GPU", "MIG"),))).gpus[0].uuid.startswith("MIG-")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "NoOutput"),
        ("  \n", "NoOutput"),
        ("Test PASSED", "OutputNotJson"),
        ('{"schema": "gpu-fleet.io/probe/v1",', "OutputNotJson"),
        ("[" * 4000, "OutputNotJson"),
        ("x" * (MESSAGE_LIMIT + 1), "OutputTooLarge"),
        ("null", "OutputOfOtherSchema"),
        ("[]", "OutputOfOtherSchema"),
        ("42", "OutputOfOtherSchema"),
        ("{}", "OutputOfOtherSchema"),
        (json.dumps({"schema": "gpu-fleet.io/probe/v2"}), "OutputOfOtherSchema"),
        (json.dumps({"schema": "gpu-fleet.io/probe/v1"}), "OutputOfOtherSchema"),
        (message(gpus="many"), "OutputOfOtherSchema"),
        (message(gpus=[7]), "OutputOfOtherSchema"),
        (message(gpus=[{}]), "OutputOfOtherSchema"),
        (message(driver=570), "OutputOfOtherSchema"),
        (message(startedAt="yesterday"), "OutputOfOtherSchema"),
        (message(startedAt=True), "OutputOfOtherSchema"),
        (message(startedAt=1.5), "OutputOfOtherSchema"),
        (message(vectorAdd="passed"), "OutputOfOtherSchema"),
        (message(vectorAdd={"passed": "yes", "milliseconds": 1, "exitCode": 0, "output": ""}), "OutputOfOtherSchema"),
        (message().replace('"error": null', '"error": "bad"'), "OutputOfOtherSchema"),
        (message(startedAt=0), "AbsurdFigures"),
        (message(startedAt=-5), "AbsurdFigures"),
        (message(finishedAt=9_999_999_999_999_999), "AbsurdFigures"),
        (message(finished=NOW - 60), "AbsurdFigures"),
        (message(gpus=gpu(memoryTotalMiB=-1)), "AbsurdFigures"),
        (message(gpus=gpu(memoryTotalMiB=10**9)), "AbsurdFigures"),
        (message(gpus=gpu(memoryFreeMiB=23029)), "AbsurdFigures"),
        (message(gpus=gpu(uuid="")), "AbsurdFigures"),
        (message(gpus=gpu(uuid="GPU-1234")), "AbsurdFigures"),
        (message(gpus=gpu() + gpu()), "AbsurdFigures"),
        (message(vectorAdd={"passed": True, "milliseconds": -1, "exitCode": 0, "output": ""}), "AbsurdFigures"),
        (message(vectorAdd={"passed": True, "milliseconds": 10**9, "exitCode": 0, "output": ""}), "AbsurdFigures"),
    ],
)
def test_what_is_not_believed(text: str, reason: str) -> None:
    with pytest.raises(ProbeOutputError) as caught:
        parse_output(text)
    assert caught.value.reason == reason


def test_more_gpus_than_any_machine_has() -> None:
    text = json.dumps(
        json.loads(message()) | {"gpus": [{"uuid": "u", "name": "", "memoryTotalMiB": 1, "memoryFreeMiB": 1}] * 65}
    )
    with pytest.raises(ProbeOutputError) as caught:
        parse_output(text)
    assert caught.value.reason in ("AbsurdFigures", "OutputTooLarge")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400"])
def test_numbers_that_json_does_not_have(value: str) -> None:
    with pytest.raises(ProbeOutputError):
        parse_output(message(startedAt=0).replace('"startedAt": 0', f'"startedAt": {value}'))
