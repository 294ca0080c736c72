from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tools.catalogue import __main__ as tool
from tools.catalogue import ec2, karpenter, prices_file, types_file
from tools.catalogue.checkout import Checkout

PAGE = """---
title: "Instance Types"
---
## g5 Family
### `g5.xlarge`
#### Labels
 | Label | Value |
 |--|--|
 |karpenter.k8s.aws/instance-cpu|4|
 |karpenter.k8s.aws/instance-ebs-bandwidth|3500|
 |karpenter.k8s.aws/instance-gpu-count|1|
 |karpenter.k8s.aws/instance-gpu-manufacturer|nvidia|
 |karpenter.k8s.aws/instance-gpu-memory|22888|
 |karpenter.k8s.aws/instance-gpu-name|a10g|
 |karpenter.k8s.aws/instance-local-nvme|250|
 |karpenter.k8s.aws/instance-memory|16384|
 |karpenter.k8s.aws/instance-network-bandwidth|2500|
 |kubernetes.io/arch|amd64|
#### Resources
 | Resource | Quantity |
 |--|--|
 |pods|58|
### `g4ad.xlarge`
#### Labels
 | Label | Value |
 |--|--|
 |karpenter.k8s.aws/instance-gpu-manufacturer|amd|
"""
OLD_PAGE = PAGE.replace("g5.xlarge", "p3.2xlarge").replace("|22888|", "|16384|")
LIMITS = """
var Limits = map[string]*VPCLimits{
\t"g5.xlarge": {
\t\tInterface:               9,
\t\tIPv4PerInterface:        15,
\t\tDefaultNetworkCardIndex: 1,
\t\tNetworkCards: []NetworkCard{
\t\t\t{
\t\t\t\tMaximumNetworkInterfaces: 5,
\t\t\t\tNetworkCardIndex:         0,
\t\t\t},
\t\t\t{
\t\t\t\tMaximumNetworkInterfaces: 4,
\t\t\t\tNetworkCardIndex:         1,
\t\t\t},
\t\t},
\t\tHypervisor:  "nitro",
\t},
}
"""
PRICES = """
// generated at 2026-07-20T13:44:30Z for us-east-1
var InitialOnDemandPricesAWS = map[string]map[ec2types.InstanceType]float64{
\t// us-east-1
\t"us-east-1": {
\t\t"g5.xlarge": 1.006000, "m5.large": 0.096000,
\t},
}
"""
GOV = PRICES.replace("us-east-1", "us-gov-west-1").replace("1.006000", "1.267600")
TABLE = """// Last updated: 2026-01-21

const all = [
  {"name": "g5.xlarge", "pricing": {"us-east-1": {"onDemand": PRICE}, "eu-west-1": {"onDemand": 1.123},
   "us-west-2-lax-1": {"onDemand": 1.2}, "eu-north-1": {"onDemand": 0}}},
  {"name": "dl1.24xlarge", "pricing": {"us-west-2": {"onDemand": 13.1}}}
];
module.exports = all;
"""


def repository(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": "2026-08-21T12:00:00Z", "GIT_COMMITTER_DATE": "2026-08-21T12:00:00Z",
    }  # fmt: skip
    for arguments in (
        ("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")
    ):  # fmt: skip
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, env=environment)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    files = dict.fromkeys(karpenter.PAGES, "")
    files |= {karpenter.PAGES[0]: PAGE, karpenter.PAGES[-1]: OLD_PAGE, karpenter.LIMITS: LIMITS}
    return repository(tmp_path / "karpenter", {**files, karpenter.PRICES[0]: PRICES, karpenter.PRICES[1]: GOV})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return repository(tmp_path / "table", {prices_file.TABLE: TABLE.replace("PRICE", "1.006")})


def test_types_come_from_the_newest_page_that_has_them_and_amd_is_left_out(clone: Path) -> None:
    found = karpenter.types(Checkout(clone, karpenter.NAME))
    assert set(found) == {"g5.xlarge", "p3.2xlarge"}
    assert found["g5.xlarge"]["from"] == karpenter.PAGES[0]
    assert found["p3.2xlarge"]["from"] == karpenter.PAGES[-1]
    assert (found["g5.xlarge"]["gpus"], found["g5.xlarge"]["nvmeGB"], found["g5.xlarge"]["efa"]) == (1, 250, 0)
    assert found["g5.xlarge"]["ebsMaximumMBps"] == 437.5


def test_places_follow_the_default_card(clone: Path) -> None:
    found = karpenter.types(Checkout(clone, karpenter.NAME))
    assert found["g5.xlarge"]["podPlaces"] == 4 * 14 + 2
    assert found["p3.2xlarge"]["podPlaces"] is None


def test_the_file_names_the_commit_and_its_day(clone: Path) -> None:
    made = types_file.from_karpenter(Checkout(clone, karpenter.NAME), None, "")
    assert made["date"] == "2026-08-21"
    assert len(made["sources"]["karpenter"]["commit"]) == 40
    assert made["types"]["g5.xlarge"]["ebsBaselineMBps"] is None
    assert json.loads(types_file.written(made)) == made


def test_recorded_answers_give_the_baseline_to_ebs_alone(clone: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    answer = described("g5.xlarge")
    answer["VCpuInfo"]["DefaultVCpus"] = 99
    path.write_text(json.dumps({"InstanceTypes": [answer]}))
    made = types_file.from_karpenter(Checkout(clone, karpenter.NAME), path, "a recording")
    assert made["types"]["g5.xlarge"]["ebsBaselineMBps"] == 87.5
    assert made["types"]["g5.xlarge"]["vcpus"] == 4
    assert made["sources"]["ebsBaselineMBps"] == {"file": "a recording"}


def test_a_recording_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="no descriptions"):
        ec2.recorded(path)


def described(name: str) -> dict[str, object]:
    return {  # type: ignore[return-value]
        "InstanceType": name,
        "GpuInfo": {"Gpus": [{"Name": "RTX PRO Server 6000", "Manufacturer": "NVIDIA", "Count": 1,
                              "MemoryInfo": {"SizeInMiB": 97887}}]},
        "VCpuInfo": {"DefaultVCpus": 8},
        "MemoryInfo": {"SizeInMiB": 65536},
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        "NetworkInfo": {"MaximumNetworkInterfaces": 4, "Ipv4AddressesPerInterface": 15, "NetworkCards": [
            {"MaximumNetworkInterfaces": 4, "BaselineBandwidthInGbps": 2.5}]},
        "EbsInfo": {"EbsOptimizedInfo": {"BaselineThroughputInMBps": 87.5, "MaximumThroughputInMBps": 437.5}},
    }  # fmt: skip


def test_ec2s_own_answer_makes_the_same_entries() -> None:
    amd = {"InstanceType": "g4ad.xlarge", "GpuInfo": {"Gpus": [{"Name": "x", "Manufacturer": "AMD", "Count": 1}]}}
    made = types_file.from_ec2([described("g7e.2xlarge"), amd], "us-east-1", "2026-11-30")
    assert set(made["types"]) == {"g7e.2xlarge", "p6e-gb200.36xlarge"}
    assert made["types"]["g7e.2xlarge"] == {
        "gpus": 1, "gpu": "rtx-pro-server-6000", "gpuMemoryMiB": 97887, "vcpus": 8, "memoryMiB": 65536,
        "architecture": "amd64", "podPlaces": 58, "nvmeGB": 0, "efa": 0, "networkMbps": 2500,
        "ebsBaselineMBps": 87.5, "ebsMaximumMBps": 437.5,
    }  # fmt: skip
    assert made["sources"] == {"ec2": {"call": "DescribeInstanceTypes", "region": "us-east-1"}}


def test_prices_of_a_region_have_its_newest_source(clone: Path, table: Path) -> None:
    made = prices_file.made(Checkout(clone, karpenter.NAME), Checkout(table, tool.TABLE_NAME), ["g5.xlarge"])
    regions = made["regions"]
    assert set(regions) == {"us-east-1", "us-gov-west-1", "eu-west-1"}
    assert (regions["us-east-1"]["date"], regions["us-east-1"]["hourly"]) == ("2026-07-20", {"g5.xlarge": 1.006})
    assert regions["us-gov-west-1"]["hourly"] == {"g5.xlarge": 1.2676}
    assert (regions["eu-west-1"]["date"], regions["eu-west-1"]["hourly"]) == ("2026-01-21", {"g5.xlarge": 1.123})
    assert json.loads(prices_file.written(made)) == made


def test_sources_that_disagree_make_no_file(clone: Path, tmp_path: Path) -> None:
    other = repository(tmp_path / "other", {prices_file.TABLE: TABLE.replace("PRICE", "1.5")})
    with pytest.raises(ValueError, match=r"us-east-1: the two sources disagree: g5.xlarge 1.006 and 1.5"):
        prices_file.made(Checkout(clone, karpenter.NAME), Checkout(other, tool.TABLE_NAME), ["g5.xlarge"])


def test_check_writes_nothing(clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "types.json"
    monkeypatch.setattr(types_file, "FILE", path)
    arguments = ["types", "--karpenter", str(clone)]
    assert tool.main([*arguments, "--check"]) == 1
    assert not path.exists()
    assert tool.main(arguments) == 0
    assert tool.main([*arguments, "--check"]) == 0


def test_a_clone_without_the_tables_is_named(tmp_path: Path) -> None:
    empty = repository(tmp_path / "empty", {"README.md": ""})
    with pytest.raises(OSError, match=r"zz_generated.vpclimits.go"):
        karpenter.types(Checkout(empty, karpenter.NAME))
