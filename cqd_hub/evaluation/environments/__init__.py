"""The environments that come with cqd-hub, one folder each."""

from __future__ import annotations

# Name in a manifest → module:class, imported when a recipe asks for it.
ENVIRONMENTS = {
    "agentbench_os": "cqd_hub.evaluation.environments.agentbench_os:OperatingSystem",
    "agentbench_db": "cqd_hub.evaluation.environments.agentbench_db:DBBench",
    "agentbench_server": "cqd_hub.evaluation.environments.agentbench_server:TaskServer",
    "evalplus": "cqd_hub.evaluation.environments.evalplus:EvalPlus",
}
