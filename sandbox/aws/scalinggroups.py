"""EC2 Auto Scaling in moto's process: lost instances are replaced after a while, and refusals are the real ones.

After docs.aws.amazon.com/autoscaling/ec2/userguide: 'Health checks for instances in an Auto Scaling group' (an instance
in any state but ``running`` is unhealthy; it is terminated and replaced) and the API reference,
TerminateInstanceInAutoScalingGroup. Moto replaces at once, and only what TerminateInstances ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any


def lost(account: str, region: str, instances: Iterable[str]) -> None:
    """The groups' health check will find these instances gone or stopped."""
    from moto.autoscaling.models import autoscaling_backends

    autoscaling_backends[account][region].notify_terminate_instances(list(instances))


def read_later_versions() -> None:
    """Moto decodes the user data of a launch template's first version only, and fails on those of the others."""
    from moto.ec2.models.launch_templates import LaunchTemplateVersion
    from moto.ec2.utils import parse_user_data

    create = LaunchTemplateVersion.__init__

    def create_decoded(self: Any, template: Any, number: int, data: dict[str, Any], description: str) -> None:
        if isinstance(data.get("UserData"), str):
            data = {**data, "UserData": parse_user_data(data["UserData"])}
        create(self, template, number, data, description)

    LaunchTemplateVersion.__init__ = create_decoded


def replace_in_time(after: Callable[[], float]) -> None:
    """
    :param after: real seconds from the loss of an instance to the launch of its replacement.
    """
    from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup

    replace = AutoScalingBackend.notify_terminate_instances

    def replace_later(self: Any, instance_ids: list[str]) -> None:
        mine = {state.instance.id for group in self.autoscaling_groups.values() for state in group.instance_states}
        gone = [each for each in instance_ids if each in mine]
        if not gone:
            return

        def check() -> None:
            self.ec2_backend.terminate_instances(gone)  # one that was only stopped; no-op for the others
            replace(self, gone)

        timer = threading.Timer(after(), check)
        timer.daemon = True
        timer.start()

    AutoScalingBackend.notify_terminate_instances = replace_later

    terminate = AutoScalingBackend.terminate_instance

    def terminate_or_refuse(self: Any, instance_id: str, should_decrement: bool) -> Any:
        from moto.autoscaling.exceptions import ValidationError

        group = _group_of(self, instance_id)
        if group is None:
            raise ValidationError(f"Instance Id not found - No managed instance found for instance ID: {instance_id}")
        if should_decrement and group.desired_capacity <= group.min_size:
            raise ValidationError(
                f"Currently, desiredSize equals minSize ({group.min_size}). Terminating instance without replacement "
                "will violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or "
                "lower group's min size."
            )
        return terminate(self, instance_id, should_decrement)

    AutoScalingBackend.terminate_instance = terminate_or_refuse

    launch = FakeAutoScalingGroup.replace_autoscaling_group_instances

    def launch_with_market(self: Any, count_needed: int, propagated_tags: dict[str, str]) -> None:
        """Moto does not hand the template's market options to RunInstances."""
        known = {state.instance.id for state in self.instance_states}
        launch(self, count_needed, propagated_tags)
        template = self.ec2_launch_template
        data = template.get_version(self.launch_template_version).data if template is not None else {}
        if (data.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
            for state in self.instance_states:
                if state.instance.id not in known:
                    state.instance.lifecycle = "spot"

    FakeAutoScalingGroup.replace_autoscaling_group_instances = launch_with_market


def _group_of(backend: Any, instance_id: str) -> Any:
    for group in backend.autoscaling_groups.values():
        if any(state.instance.id == instance_id for state in group.instance_states):
            return group
    return None
