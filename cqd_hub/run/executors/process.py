"""``python -m cqd_hub.run.executors.process``: a worker on standard input and output.

Frames: four bytes of length, eight bytes of the job's number, big-endian, then the message. The
first one in is the `Opening`, the first one out the worker's hello; it ends when its input does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import BinaryIO

from cqd_hub.errors import CqdHubError
from cqd_hub.run.executors._messages import encode_error
from cqd_hub.run.executors._processes import HEAD, HELLO, NOTE
from cqd_hub.run.executors._worker import Opening, Worker, open_worker


async def serve(out: BinaryIO) -> None:
    """Open what the first frame says, and evaluate until the input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    def write(number: int, data: bytes) -> None:
        out.write(HEAD.pack(len(data), number) + data)
        out.flush()

    async def answer(worker: Worker, number: int, order: bytes) -> None:
        write(number, await worker.evaluate(order))

    def note(line: str) -> None:
        write(NOTE, line.encode())

    _, opening = await _frame(reader)
    try:
        async with open_worker(Opening.from_json(opening.decode()), note) as worker:
            write(HELLO, worker.hello.encode())
            async with asyncio.TaskGroup() as tasks:
                under_way = set()
                try:
                    while True:
                        number, order = await _frame(reader)
                        task = tasks.create_task(answer(worker, number, order))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
                except asyncio.IncompleteReadError:  # the driver has gone, or wants no more
                    for task in list(under_way):
                        task.cancel()
    except CqdHubError as error:
        write(HELLO, encode_error(error))


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, number = HEAD.unpack(await reader.readexactly(HEAD.size))
    return number, await reader.readexactly(length)


def main() -> None:
    """Keep standard output for frames: whatever libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asyncio.run(serve(out))


if __name__ == "__main__":
    main()
