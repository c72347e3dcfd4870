"""Machines behind lines of JSON, so that tests can have them as another user.

server.py KIND IMAGE [TAR]: opens them (from TAR, builds the image first) and serves requests.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from cqd_hub.errors import CqdHubError
from cqd_hub.evaluation.machines import (
    Machine,
    MachineLimits,
    MachineLost,
    Machines,
    build_image,
    open_machines,
)


async def act(machines: Machines, open_ones: list[Machine], request: dict[str, Any]) -> Any:
    verb, number = request.pop("verb"), request.pop("machine", -1)
    if verb == "start":
        open_ones.append(await machines.start(MachineLimits(**request)))
        return len(open_ones) - 1
    if verb == "close":
        return await open_ones[number].close()
    try:
        return await getattr(open_ones[number], verb)(**request)
    except MachineLost as lost:
        return {"lost": str(lost)}


async def main(kind: str, image: str, tar: str = "") -> None:
    def say(content: Any) -> None:
        print(json.dumps(content), flush=True)

    notes: list[str] = []
    try:
        if tar:
            build_image(image, tar=Path(tar))
        machines = await open_machines(kind, image=image, note=notes.append)  # type: ignore[arg-type]
    except CqdHubError as error:
        say({"why": str(error)})
        return
    say({"guarantees": machines.guarantees, "notes": notes})
    open_ones: list[Machine] = []
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        say(await act(machines, open_ones, json.loads(line)))
    await machines.close()


asyncio.run(main(*sys.argv[1:]))
