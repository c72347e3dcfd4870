"""A task server of the tests' own: AgentBench's two protocols over real HTTP, real small tasks.

`pets` asks for and changes rows of an SQLite table of the session's own; `sums` wants a number.
What goes wrong on request is listed in `Official.faults`.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

COUNT = 12
STATEMENTS = 4  # statements that a sample allows
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of the pets",
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}},
        },
    }
    for name, argument in (("run_sql", "query"), ("answer", "value"))
]


def pets(index: int) -> tuple[str, str, str, str]:
    """Of a sample: its type, question, the statement to run, and the answer or wanted table."""
    name, kind = f"Pet{index}", ("other", "INSERT", "UPDATE", "DELETE")[index % 4]
    question, sql = {
        "other": (f"How old is {name}?", f"SELECT age FROM pets WHERE name = '{name}'"),
        "INSERT": (f"Add {name}x, {index}.", f"INSERT INTO pets VALUES ('{name}x', {index})"),
        "UPDATE": (f"{name} is 99 now.", f"UPDATE pets SET age = 99 WHERE name = '{name}'"),
        "DELETE": (f"{name} is gone.", f"DELETE FROM pets WHERE name = '{name}'"),
    }[kind]
    if kind == "other":
        return kind, question, sql, str(index + 1)
    database = filled()
    database.execute(sql)
    return kind, question, sql, table(database)


def filled() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE pets (name, age)")
    rows = [(f"Pet{n}", n + 1) for n in range(COUNT)]
    database.executemany("INSERT INTO pets VALUES (?, ?)", rows)
    return database


def table(database: sqlite3.Connection) -> str:
    return str(sorted(map(str, database.execute("SELECT * FROM pets"))))


class Pets:
    """A session of `pets`; each reply gives what is said next, or None when it is over."""

    def __init__(self, index: int) -> None:
        self.kind, self.question, _, self.wanted = pets(index)
        self.database, self.answer, self.status, self.spent = filled(), "", "running", 0

    def run(self, sql: str) -> str:
        self.spent += 1
        try:
            return str(self.database.execute(sql).fetchall())
        except sqlite3.Error as error:
            return str(error)

    def reply(self, text: str) -> str | None:
        if text == "crash":
            raise ZeroDivisionError("the task's own mistake")
        statement = re.search(r"```sql\n(.*?)\n```", text, re.DOTALL)
        if "Action: Operation" in text and statement and self.spent < STATEMENTS:
            return self.run(statement[1])
        said = re.search(r"\nFinal Answer:(.*)", text)
        self.status = "completed" if said else "agent validation failed"
        if self.spent >= STATEMENTS:
            self.status = "task limit reached"
        self.answer = said[1] if said else ""
        return None

    def outcome(self) -> dict[str, Any]:
        answer = self.answer if self.kind == "other" else table(self.database)
        return {"answer": answer, "type": self.kind, "error": ""}


class Sums:
    """A session of `sums`, which says itself what is right."""

    def __init__(self, index: str) -> None:
        self.number = int(index.rpartition("-")[2])
        self.question = f"What is {self.number} and 2?"
        self.status, self.right = "running", False
        if self.number == COUNT - 1:  # its machine never starts
            self.status = "unknown"

    def reply(self, text: str) -> str | None:
        said = re.search(r"Act: answer\((.*)\)", text)
        if said is None and "think" in text:
            return "go on"
        self.status = "completed" if said else "agent invalid action"
        self.right = bool(said) and said[1] == str(self.number + 2)
        return None

    def outcome(self) -> dict[str, Any]:
        return {"result": self.right, "file": "sums.json"}


class Official:
    """The state behind the server.

    Attributes:
        faults: Path → what goes wrong at its next calls, a word or a text; "" for nothing.
        calls: Paths and bodies, in order.
        capacity: Sessions at once.
        open: Sessions by number.
        judged: Outputs that came to be judged.
    """

    def __init__(self, protocol: str, name: str) -> None:
        self.protocol, self.name = protocol, name
        self.faults: dict[str, list[str]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.times: list[tuple[str, float]] = []
        self.headers: list[dict[str, str]] = []
        self.judged: list[dict[str, Any]] = []
        self.capacity, self.most = 32, 0
        self.open: dict[int, Any] = {}
        self.histories: dict[int, list[dict[str, str]]] = {}
        self.cancelled: list[int] = []
        self.released, self.hanging = threading.Event(), threading.Event()
        self.lock, self.number = threading.Lock(), 0
        self.url = ""

    @property
    def indices(self) -> list[int | str]:
        if self.name == "sums":
            return [f"dev-001-sums-{n:05d}" for n in range(COUNT)]
        return [*range(COUNT), *([-1] if self.protocol == "fc" else [])]

    def count(self, path: str) -> int:
        return sum(1 for called, _ in self.calls if called == path)

    def answer(self, path: str, body: Any, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path == "/get_indices":
            if self.protocol == "v0.2" and query.get("name") != [self.name]:
                return 400, {"detail": "Error: Task does not exist"}
            return 200, self.indices
        with self.lock:
            if path == "/start_sample":
                return self.start(body)
            if path == "/interact":
                return self.interact(body)
            if path == "/calculate_overall":
                return 200, self.overall(body["results"])
            if path == "/cancel":
                if body["session_id"] not in self.open:
                    return 400, {"detail": "No such session"}
                del self.open[body["session_id"]]
                self.cancelled.append(body["session_id"])
                return 200, {"session_id": body["session_id"]}
        return 404, {"detail": "Not Found"}

    def start(self, body: Any) -> tuple[int, Any]:
        if body["index"] not in self.indices:
            return 400, {"detail": "Error: Index out of bounds"}
        if len(self.open) >= self.capacity:
            return 406, {"detail": "Error: No workers available"}
        self.number += 1
        number = self.number if self.protocol == "v0.2" else body["session_id"]
        session = Sums(body["index"]) if self.name == "sums" else Pets(body["index"])
        self.open[number] = session
        self.most = max(self.most, len(self.open))
        self.histories[number] = [
            {"role": "user", "content": "These are the rules."},
            {"role": "agent", "content": "Ok."},
            {"role": "user", "content": session.question},
        ]
        if self.protocol == "fc":
            system = {"role": "system", "content": "These are the rules."}
            user = {"role": "user", "content": session.question}
            return 200, self.facts(number, session, [system, user], 0)
        return 200, self.told(number, session)

    def told(self, number: int, session: Any) -> dict[str, Any]:
        running = session.status == "running"
        if not running:
            self.open.pop(number, None)
        output = {
            "index": None,
            "status": session.status,
            "result": None if running else session.outcome(),
            "history": self.histories[number] if running else None,
        }
        return {"session_id": number, "output": output}

    def interact(self, body: Any) -> tuple[int, Any]:
        number = body["session_id"]
        if number not in self.open:
            return 400, {"detail": "Error: Session does not exist"}
        session = self.open[number]
        if self.protocol == "fc":
            return self.called(number, session, body["messages"])
        said = body["agent_response"]
        history = self.histories[number]
        try:
            if said["status"] == "agent context limit":
                session.status = said["status"]
            else:
                history.append({"role": "agent", "content": said["content"]})
                following = session.reply(said["content"])
                if following is not None:
                    history.append({"role": "user", "content": following})
        except ZeroDivisionError as error:
            del self.open[number]
            return 501, {"detail": {"session_id": number, "output": {"result": repr(error)}}}
        if len(history) > 6:  # only the latest is shown of long ones
            history[1:3] = []
        return 200, self.told(number, session)

    def called(self, number: int, session: Pets, messages: Any) -> tuple[int, Any]:
        (message,) = messages
        assert message["role"] == "assistant"
        new: list[dict[str, Any]] = []
        reward = 0
        for call in message.get("tool_calls", []):
            (value,) = json.loads(call["function"]["arguments"]).values()
            if call["function"]["name"] == "answer":
                session.answer, session.status = value, "completed"
                right = session.outcome()["answer"] == session.wanted
                reward = int(right)
                break
            content: Any = session.run(value)
            content = [{"type": "text", "text": content}] if session.spent % 2 else content
            new.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        if not message.get("tool_calls"):
            new.append({"role": "user", "content": "Call something."})
            if message["content"] == "crash":
                session.status = "task error"
        return 200, {"session_id": number, "env_out": self.facts(number, session, new, reward)}

    def facts(
        self, number: int, session: Any, new: list[dict[str, Any]], reward: float
    ) -> dict[str, Any]:
        running = session.status == "running"
        if not running:
            self.open.pop(number, None)
        return {
            "messages": new,
            "tools": TOOLS,
            "status": session.status,
            "finish": not running,
            "reward": reward,
            "metric": {} if running else {"score": reward},
        }

    def overall(self, results: list[dict[str, Any]]) -> dict[str, float]:
        self.judged += results
        found = {}
        for category in ("SELECT", "INSERT", "UPDATE"):
            right = []
            for output in results:
                kind, answer = output["result"]["type"], output["result"]["answer"]
                wanted = pets(output["index"])[3]
                if kind not in ("INSERT", "UPDATE", "DELETE"):
                    answer, wanted = ast.literal_eval(answer), [wanted]
                if category == (kind if kind in ("INSERT", "UPDATE") else "SELECT"):
                    right.append(answer == wanted)
            found[f"{category}_accuracy"] = sum(right) / len(right) if right else 0
        return found


@contextmanager
def serve(protocol: str, name: str) -> Iterator[Official]:
    """The server, on a port of its own."""
    official = Official(protocol, name)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.handle_call(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.handle_call(json.loads(body))

        def handle_call(self, body: Any) -> None:
            parts = urlsplit(self.path)
            assert parts.path.startswith("/api/")
            path = parts.path.removeprefix("/api")
            official.times.append((path, time.monotonic()))
            official.calls.append((path, body))
            official.headers.append({key.lower(): value for key, value in self.headers.items()})
            waiting = official.faults.get(path, [])
            fault = waiting.pop(0) if waiting else ""
            if fault == "forget":
                official.open.clear()
            if fault in ("", "forget", "late"):
                status, value = official.answer(path, body, parse_qs(parts.query))
                if fault == "late":
                    official.hanging.set()
                    official.released.wait()
                self.send(status, json.dumps(value).encode(), self.extra(path, body))
            else:
                self.fail(fault, path, body)

        def extra(self, path: str, body: Any) -> dict[str, str]:
            if official.protocol == "fc" and path == "/start_sample":
                return {"session_id": str(body["session_id"])}
            return {}

        def fail(self, fault: str, path: str, body: Any) -> None:
            if fault == "hang":
                official.hanging.set()
                official.released.wait()
                self.close_connection = True
            elif fault == "drop":
                self.close_connection = True
            elif fault == "redirect":
                self.send(307, b"", {"location": "http://192.0.2.1/"})
            elif fault == "gzip":
                self.send(200, gzip.compress(b"{}"), {"content-encoding": "gzip"})
            elif fault == "huge":
                self.send(200, b'"' + b"x" * (9 << 20) + b'"')
            elif fault.isdigit():
                self.send(int(fault), b'{"detail": "so \x1b[31mit is"}')
            else:  # the text itself
                session = str((body or {}).get("session_id", 99))
                self.send(200, fault.replace("SESSION", session).encode())

        def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:  # the client has seen enough
                self.close_connection = True

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        official.url = f"http://127.0.0.1:{server.server_port}/api"
        try:
            yield official
        finally:
            official.released.set()
            server.shutdown()
