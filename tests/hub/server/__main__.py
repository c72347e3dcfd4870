"""`python -m tests.hub.server --port 0 --state FOLDER`: serve until interrupted.

Prints the address of the Hub on the first line and that of /__admin__/… on the second.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from .hub import HubServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub.server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--state", type=Path, help="keep everything in this folder")
    options = parser.parse_args()
    if options.state:
        options.state.mkdir(parents=True, exist_ok=True)
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # also in the threads to come
    with HubServer(folder=options.state, port=options.port) as hub:
        print(hub.url, flush=True)
        print(f"{hub.admin_url}/__admin__/", flush=True)
        signal.sigwait(stops)


main()
