"""Reasons of the wait for a Capacity Block."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason

_GUIDE = "reservations.md#capacity-blocks"
_NEXT = "Buy the next Capacity Block, and name it in the pool's capacityReservations."

BLOCKS = (
    Reason("CapacityBlockBegun", Effect.GOES_ON, "the Capacity Blocks of the run's pools have begun"),
    Reason(
        "CapacityBlockNotStarted",
        Effect.WAITS,
        "a Capacity Block has yet to begin, or EC2 has yet to deliver it; the message says when it begins",
        "Nothing; the run waits for capacityBlock.wait, without the cluster lock.",
        guide=_GUIDE,
    ),
    Reason(
        "CapacityBlockTooFar",
        Effect.PERSON,
        "the Capacity Block begins later than a run waits",
        "Start the run nearer to that time, or raise capacityBlock.wait; run other pools with the Param `pools`.",
        guide=_GUIDE,
    ),
    Reason(
        "CapacityBlockEnding",
        Effect.PERSON,
        "the Capacity Block ends so soon that nothing begins there any more (capacityBlock.margin)",
        f"Extend the block, or shorten the margin. {_NEXT}",
        guide=_GUIDE,
    ),
    Reason(
        "CapacityBlockOver",
        Effect.PERSON,
        "all Capacity Blocks of the pool have expired, failed or been cancelled",
        _NEXT,
        guide=_GUIDE,
    ),
    Reason(
        "CapacityBlockNotFound",
        Effect.PERSON,
        "no Capacity Block has the id or the tags of the cluster file, in this account or shared with it",
        "Correct capacityReservations, aws.region, or the account of the connection.",
        guide=_GUIDE,
    ),
    Reason(
        "NoCapacityBlock",
        Effect.PERSON,
        "no pool with a Capacity Block was named",
        "Report it as a defect of this package.",
    ),
)
