from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import moto
import pytest

from gpu_fleet.core.catalogue import CatalogueType, catalogue_date, find, whole_gpu_types
from gpu_fleet.core.catalogue.types import FILE

#: Amazon EC2 instance types, 'Specifications for accelerated computing instances', read 2026-08: whole GPUs.
GPUS = {
    **{f"{family}.{size}": 1 for family in ("g4dn", "g5", "g6", "g6e") for size in (
        "xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"
    )},
    **{f"{family}.{size}": count for family in ("g5", "g6", "g6e") for size, count in (
        ("12xlarge", 4), ("24xlarge", 4), ("48xlarge", 8)
    )},
    "g4dn.12xlarge": 4, "g4dn.metal": 8, "gr6.4xlarge": 1, "gr6.8xlarge": 1, "p3.2xlarge": 1, "p3.8xlarge": 4,
    "p3.16xlarge": 8, "p3dn.24xlarge": 8, "p4d.24xlarge": 8, "p4de.24xlarge": 8, "p5.4xlarge": 1, "p5.48xlarge": 8,
    "p5e.48xlarge": 8, "p5en.48xlarge": 8, "p6-b200.48xlarge": 8,
}  # fmt: skip
#: The same page, 'Network specifications', read 2026-08: interfaces of the default card × (addresses − 1) + 2.
PLACES = {
    **{f"{family}.{size}": 58 for family in ("g5", "g6", "g6e") for size in ("xlarge", "2xlarge")},
    **{f"{family}.{size}": 234 for family in ("g5", "g6", "g6e") for size in ("4xlarge", "8xlarge")},
    **{f"g4dn.{size}": 29 for size in ("xlarge", "2xlarge", "4xlarge")},
    **{f"g4dn.{size}": 58 for size in ("8xlarge", "16xlarge")},
    "g4dn.12xlarge": 234, "g4dn.metal": 737, "g5.12xlarge": 737, "g5.16xlarge": 234, "g5.24xlarge": 737,
    "g5.48xlarge": 345, "g6.12xlarge": 234, "g6.16xlarge": 737, "g6.24xlarge": 737, "g6.48xlarge": 737,
    "g6e.12xlarge": 292, "g6e.16xlarge": 737, "g6e.24xlarge": 492, "g6e.48xlarge": 492, "gr6.4xlarge": 234,
    "gr6.8xlarge": 234, "p3dn.24xlarge": 737, "p4d.24xlarge": 737, "p4de.24xlarge": 737, "p5.4xlarge": 118,
    "p5.48xlarge": 100, "p5e.48xlarge": 100, "p5en.48xlarge": 198, "p6-b200.48xlarge": 198,
}  # fmt: skip
#: Every size of every family, as the AWS documentation lists them.
FAMILIES = {
    "g4dn": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge metal",
    "g5": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge",
    "g5g": "xlarge 2xlarge 4xlarge 8xlarge 16xlarge metal",
    "g6": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge",
    "g6e": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge",
    "g6f": "large xlarge 2xlarge 4xlarge",
    "g7": "2xlarge 4xlarge 8xlarge 12xlarge 24xlarge 48xlarge",
    "g7e": "2xlarge 4xlarge 8xlarge 12xlarge 24xlarge 48xlarge",
    "gr6": "4xlarge 8xlarge",
    "gr6f": "4xlarge",
    "p3": "2xlarge 8xlarge 16xlarge",
    "p3dn": "24xlarge",
    "p4d": "24xlarge",
    "p4de": "24xlarge",
    "p5": "4xlarge 48xlarge",
    "p5e": "48xlarge",
    "p5en": "48xlarge",
    "p6-b200": "48xlarge",
    "p6-b300": "48xlarge",
    "p6e-gb200": "36xlarge",
}
NAMES = sorted(f"{family}.{size}" for family, sizes in FAMILIES.items() for size in sizes.split())


def recorded() -> dict[str, Any]:
    """EC2's own answers, as moto's maintainers recorded them: another way to the same figures than the catalogue's."""
    path = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))  # type: ignore[no-any-return]


def known(name: str) -> CatalogueType:
    found = find(name)
    assert found is not None, name
    return found


def test_no_type_is_missing_and_none_is_there_twice() -> None:
    assert sorted(json.loads(FILE.read_text())["types"]) == NAMES


def test_the_file_says_when_and_from_what_it_was_made() -> None:
    found = json.loads(FILE.read_text())
    assert catalogue_date() == "2026-08-21"
    assert found["sources"]["karpenter"]["commit"] == "1d927085dd81a9df9301e613f371dac5b4d16bfe"
    assert set(found["sources"]) == {"karpenter", "aws", "ebsBaselineMBps"}


@pytest.mark.parametrize("name", GPUS)
def test_the_gpus_are_those_that_amazon_documents(name: str) -> None:
    assert known(name).gpus == GPUS[name]


@pytest.mark.parametrize("name", PLACES)
def test_the_places_for_pods_are_those_that_amazon_documents(name: str) -> None:
    assert known(name).pod_places == PLACES[name]


def test_every_figure_agrees_with_ec2s_own_answer() -> None:
    """All that EC2 answers for, but ``ebsBaselineMBps``, which the file has from such an answer, and the sum of the
    network cards' bandwidth, which EC2 gives per card."""
    answers, compared = recorded(), 0
    for name in NAMES:
        answer, entry = answers.get(name), known(name)
        if answer is None:
            continue
        compared += 1
        gpu, network = answer["GpuInfo"]["Gpus"][0], answer["NetworkInfo"]
        card = network["NetworkCards"][network["DefaultNetworkCardIndex"]]
        assert (entry.gpus, entry.gpu) == (gpu["Count"], gpu["Name"].lower().replace(" ", "-")), name
        assert entry.gpu_memory_mib == gpu["MemoryInfo"]["SizeInMiB"], name
        assert entry.vcpus == answer["VCpuInfo"]["DefaultVCpus"], name
        assert entry.memory_mib == answer["MemoryInfo"]["SizeInMiB"], name
        assert entry.arm == (answer["ProcessorInfo"]["SupportedArchitectures"] == ["arm64"]), name
        assert entry.nvme_gb == (answer.get("InstanceStorageInfo") or {}).get("TotalSizeInGB", 0), name
        assert entry.efa == (network.get("EfaInfo") or {}).get("MaximumEfaInterfaces", 0), name
        assert entry.ebs_maximum_mbps == answer["EbsInfo"]["EbsOptimizedInfo"]["MaximumThroughputInMBps"], name
        places = card["MaximumNetworkInterfaces"] * (network["Ipv4AddressesPerInterface"] - 1) + 2
        assert entry.pod_places == places, name
    assert compared == len(NAMES) - 4  # EC2 no longer names p3.*, and p6e-gb200 only in a Capacity Block's zones


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unknown_is_none_and_never_zero(name: str) -> None:
    entry = known(name)
    assert entry.gpu_memory_mib > 0
    assert entry.vcpus > 0
    assert entry.memory_mib > 0
    assert entry.pod_places is None or entry.pod_places > 3
    assert entry.network_mbps is None or entry.network_mbps > 0
    maximum, baseline = entry.ebs_maximum_mbps, entry.ebs_baseline_mbps
    assert maximum is not None
    assert maximum > 0
    assert baseline is None or 0 < baseline <= maximum


def test_the_gaps_are_known() -> None:
    """A gap may close; a new one must not come unseen."""
    assert [name for name in NAMES if known(name).ebs_baseline_mbps is None] == [
        "p3.16xlarge", "p3.2xlarge", "p3.8xlarge", "p6e-gb200.36xlarge"
    ]  # fmt: skip
    assert [name for name in NAMES if known(name).pod_places is None] == ["p6e-gb200.36xlarge"]
    assert [name for name in NAMES if known(name).efa is None] == ["p6e-gb200.36xlarge"]


def test_fractional_and_arm_types_are_said_what_they_are() -> None:
    assert {name for name in NAMES if known(name).fractional} == {
        "g6f.large", "g6f.xlarge", "g6f.2xlarge", "g6f.4xlarge", "gr6f.4xlarge"
    }  # fmt: skip
    assert {name.split(".")[0] for name in NAMES if known(name).arm} == {"g5g", "p6e-gb200"}
    assert "g6f.large" not in whole_gpu_types()
    assert "a part of a L4" in str(known("g6f.large"))
    assert "8 x H100" in str(known("p5.48xlarge"))


def test_the_baseline_to_ebs_is_what_a_fast_image_pull_has_to_look_at() -> None:
    """A small type may burst to far more than it sustains."""
    small, large = known("g5.xlarge"), known("p5.48xlarge")
    assert (small.ebs_baseline_mbps, small.ebs_maximum_mbps) == (87.5, 437.5)
    assert (large.ebs_baseline_mbps, large.ebs_maximum_mbps) == (10_000.0, 10_000.0)


def test_an_unknown_type_is_none() -> None:
    assert find("g99.xlarge") is None
    assert find("") is None
