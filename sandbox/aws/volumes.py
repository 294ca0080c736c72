"""What moto forgets of the volumes of a launch: IOPS and throughput of ``RunInstances``' block device mappings."""

from __future__ import annotations

from typing import Any


def keep_performance() -> None:
    """Gives volumes that are made with an instance the IOPS and throughput that were asked for."""
    from moto.ec2.models.instances import InstanceBackend
    from moto.ec2.responses.instances import InstanceResponse

    parse, run = InstanceResponse._parse_block_device_mapping, InstanceBackend.run_instances

    def with_throughput(self: Any) -> list[dict[str, Any]]:
        mappings: list[dict[str, Any]] = parse(self)
        given = self._get_param("BlockDeviceMappings", [])
        for mapping, device in zip(mappings, given, strict=True):
            mapping["Ebs"]["Throughput"] = device.get("Ebs", {}).get("Throughput")
        return mappings

    def with_performance(self: Any, *args: Any, **kwargs: Any) -> Any:
        reservation = run(self, *args, **kwargs)
        for instance in reservation.instances:
            for mapping in kwargs.get("block_device_mappings") or []:
                device = instance.block_device_mapping.get(mapping["DeviceName"])
                if device is not None:
                    volume = self.volumes[device.volume_id]
                    volume.iops = number(mapping["Ebs"].get("Iops")) or volume.iops
                    volume.throughput = number(mapping["Ebs"].get("Throughput")) or volume.throughput
        return reservation

    InstanceResponse._parse_block_device_mapping = with_throughput
    InstanceBackend.run_instances = with_performance


def number(value: Any) -> int | None:
    return None if value in (None, "") else int(value)
