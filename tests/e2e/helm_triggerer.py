"""One trigger in a process of its own: ``python helm_triggerer.py JSON``; prints its event."""

from __future__ import annotations

import asyncio
import json
import sys

from gpu_fleet.triggers.gate import GateTrigger


async def main() -> None:
    trigger = GateTrigger(**json.loads(sys.argv[1]))
    async for event in trigger.run():
        print(json.dumps(event.payload))
        return


asyncio.run(main())
