"""Multi-turn tasks: what an environment implements, and how its episodes are played.

An environment is opened once per run; each sample is one episode: the model's message in, an
observation or a verdict out, until done or out of rounds.
"""

from cqd_hub.evaluation.episodes._interface import (
    COMPLETED,
    CONTEXT_FULL,
    ROUNDS_SPENT,
    Environment,
    Episode,
    Message,
    Observation,
    Resources,
    Sample,
    Tool,
    ToolCall,
    Turn,
    Verdict,
)

__all__ = [
    "COMPLETED",
    "CONTEXT_FULL",
    "ROUNDS_SPENT",
    "Environment",
    "Episode",
    "Message",
    "Observation",
    "Resources",
    "Sample",
    "Tool",
    "ToolCall",
    "Turn",
    "Verdict",
]
