"""Engines: requests in, results out as they finish.

Every engine answers `Request`s of any individual through one awaitable call, `Engine.submit`, so
that lm-eval tasks and multi-turn episodes alike keep its batches full.
"""

from cqd_hub.evaluation.engine._interface import (
    Candidate,
    Engine,
    Generate,
    LogLikelihood,
    Reply,
    Request,
)

__all__ = ["Candidate", "Engine", "Generate", "LogLikelihood", "Reply", "Request"]
