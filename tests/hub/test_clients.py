"""Other processes at the tests' Hub: transformers, PEFT, datasets, hf, and the server itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx2
import pytest
from huggingface_hub import HfApi, get_session

from tests.hub.server import HubServer

ROOT = Path(__file__).parents[2]


class Models(Protocol):
    base: Path
    lora: Path


def child(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = """
import sys
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("ann/base", use_safetensors=True)
tokens = AutoTokenizer.from_pretrained("ann/base")("two and two", return_tensors="pt")
adapted = PeftModel.from_pretrained(model, "ann/lora")
print(adapted(**tokens).logits.shape[1] == tokens.input_ids.shape[1])
"""


def test_models_and_adapters_load_by_id(hub: HubServer, models: Models, tmp_path: Path) -> None:
    hub.put_model("ann/base", models.base, private=True)
    hub.put_model("ann/lora", models.lora)
    config = json.loads((models.lora / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "ann/base"
    hub.put_model("ann/lora", {"adapter_config.json": json.dumps(config)})
    environment = hub.environment(token=hub.token("ann"), home=tmp_path)
    environment["OMP_NUM_THREADS"] = "1"
    assert child(LOAD, environment) == "True"
    wanted = len(hub.file("ann/base", "model.safetensors"))
    sent = [entry.sent for entry in hub.log.find("_storage/models/ann/base/.*model.safe", "GET")]
    assert sent == [wanted]


CARD = """---
configs:
- config_name: elites
  data_files: [{split: train, path: "elites/*.parquet"}]
- config_name: lineage
  default: true
  data_files: [{split: train, path: "lineage/*.parquet"}]
---
"""


@pytest.mark.slow
def test_datasets_load_by_their_configs(hub: HubServer, tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    def shard(first: int) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"n": [first, first + 1]}), buffer)
        return buffer.getvalue()

    hub.put_dataset(
        "ann/run",
        {
            "README.md": CARD,
            "elites/0.parquet": shard(0),
            "elites/1.parquet": shard(2),
            "lineage/0.parquet": shard(10),
            "run.json": "{}",
        },
        private=True,
    )
    code = """
from datasets import load_dataset
print(load_dataset("ann/run", "elites", split="train")["n"][:])
print(load_dataset("ann/run")["train"]["n"][:])
print([row["n"] for row in load_dataset("ann/run", "elites", split="train", streaming=True)])
"""
    out = child(code, hub.environment(token=hub.token("ann"), home=tmp_path))
    assert out == "[0, 1, 2, 3]\n[10, 11]\n[0, 1, 2, 3]"


def test_environment_holds_no_other_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_mine")
    monkeypatch.setenv("https_proxy", "http://proxy")
    environment = hub.environment(home=tmp_path, HF_HUB_OFFLINE="1")
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "https_proxy"} & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    with_token = hub.environment(token=hub.token("ann"), home=tmp_path)
    code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
    assert child(code, with_token) == "ann"


class Process(NamedTuple):
    url: str
    admin: str
    run: subprocess.Popen[str]

    def do(self, method: str, action: str, **body: object) -> dict[str, object]:
        answer = get_session().request(method, f"{self.admin}{action}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def stop(self) -> None:
        self.run.send_signal(signal.SIGTERM)
        assert self.run.wait(20) == 0


def start(state: Path) -> Process:
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.server", "--port", "0", "--state", str(state)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout
    return Process(run.stdout.readline().strip(), run.stdout.readline().strip(), run)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    started = start(tmp_path / "state")
    yield started
    if started.run.poll() is None:
        started.stop()


def test_server_as_a_process_keeps_its_state(process: Process, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "w.bin").write_bytes(b"w" * 30)
    seeded = process.do(
        "POST",
        "seed",
        tokens=[{"user": "ann", "orgs": {"lab": "admin"}}, {"user": "bob", "value": "hf_bob"}],
        repos=[
            {"repo": "lab/m", "folder": str(tmp_path / "files"), "private": True},
            {"repo": "datasets/ann/d", "files": {"a.txt": "a"}, "gated": True},
        ],
    )
    token = seeded["tokens"][0]  # type: ignore[index]
    api = HfApi(endpoint=process.url, token=token)
    commit = api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="lab/m").oid
    slug = api.create_collection("mine").slug

    added = process.do("POST", "faults", kind="status", path="/api/models/lab/m$", status=500)
    assert added["times"] == 1
    get = f"{process.url}/api/models/lab/m"
    assert get_session().get(get).status_code == 500
    assert [fault["fired"] for fault in process.do("GET", "faults")] == [1]  # type: ignore
    process.do("DELETE", "faults")
    assert process.do("GET", "faults") == []
    log = process.do("GET", "log")
    assert log["requests"][-1]["fault"] == "status"  # type: ignore[index]
    assert log["received"] > 0  # type: ignore[operator]
    process.do("DELETE", "log")
    assert process.do("GET", "log") == {"requests": [], "received": 0, "sent": 0}

    process.do("POST", "die", at=2)
    api.model_info("lab/m")
    for _ in range(2):
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ConnectError)):
            api.model_info("lab/m")
    process.do("POST", "revive")
    process.stop()

    again = start(tmp_path / "state")
    try:
        api = HfApi(endpoint=again.url, token=token)
        assert api.model_info("lab/m").sha == commit
        path = api.hf_hub_download("lab/m", "w.bin", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == b"w" * 30
        assert api.get_collection(slug).title == "mine"
        assert HfApi(endpoint=again.url, token="hf_bob").dataset_info("ann/d").gated == "auto"
    finally:
        again.stop()


def test_admin_refuses_what_it_does_not_know(process: Process) -> None:
    for action, body in (("faults", {"kind": "explode"}), ("seed", {"repos": [{}]})):
        answer = get_session().post(f"{process.admin}{action}", json=body)
        assert answer.status_code == 400
    assert get_session().get(f"{process.admin}nothing").status_code == 404
    assert get_session().get(f"{process.url}/__admin__/faults").json() == []
