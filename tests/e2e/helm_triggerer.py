"""One trigger in a process of its own: ``python helm_triggerer.py JSON``; prints its event, and for how many
seconds the trigger ran."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from gpu_fleet.triggers.gate import GateTrigger


async def main() -> None:
    trigger = GateTrigger(**json.loads(sys.argv[1]))
    began = time.time()
    async for event in trigger.run():
        print(json.dumps(event.payload))
        print(json.dumps({"ran": time.time() - began}))
        return


asyncio.run(main())
