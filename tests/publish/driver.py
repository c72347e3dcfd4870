"""A process that runs commands of the command line one after the other, as its caller asks.

It saves importing everything for each of hundreds of commands. Waiting for the Hub takes no time
here, but is counted. One JSON object per line: {"arguments": […], "environment": {…}}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from types import SimpleNamespace


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes where they do
    import huggingface_hub.utils._http as client_http

    import cqd_hub.hub.client as client
    from cqd_hub.cli import app

    quick = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)
    client_http.time = quick
    client.time = quick
    for line in sys.stdin:
        asked = json.loads(line)
        changed = asked["environment"]
        before = {name: os.environ.get(name) for name in changed}
        _set(changed)
        sys.argv = ["cqd-hub", *asked["arguments"]]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                app.main()
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            except Exception:  # a defect: for the test to show
                traceback.print_exc()
                code = 99
        _set(before)
        client_http.close_session()
        loaded = [name for name in ("torch", "transformers") if name in sys.modules]
        record = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded}
        print(json.dumps(record), file=answers, flush=True)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


if __name__ == "__main__":
    main()
