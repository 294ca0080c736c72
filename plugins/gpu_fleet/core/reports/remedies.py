"""What to do about a reason: one or two sentences for the person who was paged, from the catalogue of reasons."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_fleet.core.reasons.catalogue import BY_NAME

REMEDIES: Mapping[str, str] = {name: reason.remedy for name, reason in BY_NAME.items() if reason.remedy}

#: For a reason that the catalogue does not have, for example one of a later version.
UNKNOWN = "The message says what was found; the run's logs have the rest."


def remedy(reason: str) -> str:
    """What to do about a reason; never empty."""
    if reason.startswith("DevicePlugin") and reason not in REMEDIES:
        return REMEDIES["DevicePluginNotRegistered"]
    return REMEDIES.get(reason, UNKNOWN)
