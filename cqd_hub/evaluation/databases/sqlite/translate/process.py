"""The translator's process: a line of JSON in, a line of JSON out.

A parser can take forever over a hostile text, or all memory, or the process itself: here it takes
nothing but this process, which is bounded and replaced.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

from . import translate
from ._types import syntax

MEMORY_MB = 1024


def main(seconds: float) -> None:
    """Serve until standard input ends; a request beyond *seconds* of CPU ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = translate(request["sql"], request["database"], request["strict"])
        except (RecursionError, MemoryError):
            found = [{"fault": "1436 (HY000): Thread stack overrun"}]
        except Exception:  # a tree of a form that nobody thought of
            found = [{"fault": str(syntax(request["sql"].strip()))}]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), flush=True)
