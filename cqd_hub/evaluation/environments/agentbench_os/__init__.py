"""AgentBench's OS interaction: problems on a Linux machine, solved in its shell."""

from cqd_hub.evaluation.environments.agentbench_os.environment import OperatingSystem

__all__ = ["OperatingSystem"]
