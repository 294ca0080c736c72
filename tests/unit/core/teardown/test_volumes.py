from __future__ import annotations

from typing import Any

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.teardown.volumes import volumes_of

PRICES = PriceList("us-west-2", "2025-06-05", "a page", {"g5.xlarge": 1.0}, {"gp3": 0.073})


def volume(name: str, instance: str | None, *, kind: str = "gp3", size: int = 100) -> dict[str, Any]:
    attached = [{"InstanceId": instance}] if instance else []
    return {"VolumeId": name, "VolumeType": kind, "Size": size, "Attachments": attached}


def instance(name: str, **volumes: bool) -> dict[str, Any]:
    """An instance with its volumes, and whether each goes with it."""
    devices = [
        {"Ebs": {"VolumeId": volume.replace("_", "-"), "DeleteOnTermination": goes}} for volume, goes in volumes.items()
    ]
    return {"InstanceId": name, "BlockDeviceMappings": [*devices, {"DeviceName": "/dev/ephemeral"}]}


def persistent(name: str, handle: str, policy: str, driver: str = "ebs.csi.aws.com") -> dict[str, Any]:
    spec = {
        "csi": {"driver": driver, "volumeHandle": handle},
        "persistentVolumeReclaimPolicy": policy,
        "claimRef": {"namespace": "team", "name": "data"},
    }
    return {"metadata": {"name": name}, "spec": spec}


def test_root_volumes_go_and_persistent_ones_stay_with_their_names_and_prices() -> None:
    found = volumes_of(
        [instance("i-1", vol_root=True, vol_pv=False), instance("i-2", vol_kept=False, vol_odd=True)],
        [
            volume("vol-root", "i-1"),
            volume("vol-kept", "i-2"),
            volume("vol-pv", "i-1", size=1000),
            volume("vol-of-others", "i-9"),
            volume("vol-loose", None),
            volume("vol-odd", "i-2", kind="io2"),
        ],
        [persistent("pvc-1", "vol-pv", "Retain"), persistent("pvc-2", "vol-of-others", "Delete")],
        PRICES,
    )
    assert {each.id: each.goes for each in found} == {
        "vol-root": True, "vol-kept": False, "vol-pv": False, "vol-odd": True,
    }  # fmt: skip
    by_id = {each.id: each for each in found}
    assert by_id["vol-root"].price.usd == 0.01
    assert by_id["vol-pv"].per_month == "73.00 USD a month"
    assert by_id["vol-pv"].volume_of == "PersistentVolume pvc-1 of team/data, Retain"
    assert by_id["vol-odd"].price.usd is None
    assert by_id["vol-odd"].per_month == "unknown price"


def test_ec2_has_the_word_on_what_goes_with_the_instance() -> None:
    """A PersistentVolume that somebody attached by hand to be deleted is lost, and must not be promised to stay."""
    this = instance("i-1", vol_pv=True)
    (found,) = volumes_of([this], [volume("vol-pv", "i-1")], [persistent("pvc-1", "vol-pv", "Delete")], PRICES)
    assert (found.goes, found.volume_of) == (True, "PersistentVolume pvc-1 of team/data, Delete")
