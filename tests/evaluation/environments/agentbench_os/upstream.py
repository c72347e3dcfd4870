"""Files shaped like upstream's, with words of our own."""

from __future__ import annotations

import json
from pathlib import Path

_TEXT = '''
raise RuntimeError("nobody may execute this")

ONE_SHOT = [
    {"role": "user", "content": "how many colours has a flag?"},
    {"role": "agent", "content": """Think: look.

Act: bash

```bash
cat flag
```"""},
    {"role": "user", "content": "The output of the OS:\\n" "red white"},
    {"role": "agent", "content": "Act: answer(2)"},
]


class Task:
    async def judge(self, session, config):
        session.inject(
            {"role": "user", "content": """Do as told.

Act: bash

Act: finish

Act: answer(it)

"""}
        )
        if not oneshot:
            session.history[-1].content += "The problem is: " + config.description
        else:
            session.history[-1].content += "The problem is: " + ONE_SHOT[0]["content"]
            session.inject({"role": "user", "content": "Another one: " + config.description})
        result = "The output of the OS:\\n\\n" + result
'''

_TOOLS = '''
class Task:
    def start(self, session, description):
        system_message = """Call something."""
        session.inject(ChatCompletionSystemMessageParam(role="system", content=system_message))
        session.inject(
            ChatCompletionUserMessageParam(role="user", content=f"It is this: {description}")
        )

    def act(self, session, error):
        session.inject(ChatCompletionUserMessageParam(role="user", content="A call, please."))
        session.inject(ChatCompletionToolMessageParam(role="tool", content=str(error)))
        session.inject(ChatCompletionToolMessageParam(role="tool", content="No such call."))
        session.inject(ChatCompletionToolMessageParam(role="tool", content=f"Out: {error}"))
'''

_YAML = """
default:
  parameters:
    round_limit: 8
    tools:
      - type: "function"
        function:
          name: "bash_action"
          description: "Runs it."
          parameters:
            type: "object"
            properties:
              script:
                type: "string"
            required:
              - "script"
            additionalProperties: False
      - type: "function"
        function:
          name: "answer_action"
          description: "Says it."
          parameters:
            type: "object"
            properties:
              answer:
                type: "string"
"""

SAMPLE = {
    "problem": [
        {"role": "user", "content": "Do as told. The problem is: how many colours?"},
        {"role": "assistant", "content": "Act: answer(2)"},
        {"role": "user", "content": "Another one: How many files are in ~/five?"},
    ],
    "index": 41,
    "config": {
        "file": "data/5/new.json",
        "index": 3,
        "config": {
            "image": "local-os/default",
            "description": "How many files are in ~/five?",
            "init_script": [["bash", "mkdir ~/five && touch ~/five/x"]],
            "start": None,
            "check": [
                None,
                ["python", "import sys; sys.exit(int(sys.argv[1]) != int(sys.argv[2]))"],
            ],
            "match": None,
            "example_script": ["bash", "ls ~/five | wc -l"],
        },
    },
}


def write_checkout(folder: Path, *, tools: bool) -> Path:
    """The parts of a checkout that hold prompts."""
    task = folder / "src/server/tasks/os_interaction/task.py"
    task.parent.mkdir(parents=True)
    task.write_text(_TOOLS if tools else _TEXT)
    if tools:
        config = folder / "configs/tasks/os.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(_YAML)
    return folder


def write_samples(path: Path) -> Path:
    """CycleQD's samples as JSON."""
    path.write_text(json.dumps([SAMPLE]))
    return path
