"""Jobs and results as bytes: JSON, whatever carries them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.genome import Genome
from cqd_hub.run.executors._interface import Done, Job
from cqd_hub.run.racing import Standing

_ERRORS: dict[str, type[CqdHubError]] = {"user": UserError, "run": RunError}


class Order(NamedTuple):
    """A job as a worker gets it, with its parents' measurements."""

    job: Job
    answers: Mapping[int, list[Measurement]]


def encode_order(job: Job, answers: Mapping[int, Sequence[Measurement]]) -> bytes:
    """A job, with what its parents answered."""
    return json.dumps(
        {
            "id": job.candidate.id,
            "genome": base64.b64encode(job.candidate.genome.to_bytes()).decode(),
            "split": job.split,
            "skills": job.skills,
            "parents": job.parents,
            "standing": job.standing.record() if job.standing else None,
            "answers": {number: [asdict(one) for one in many] for number, many in answers.items()},
        }
    ).encode()


def decode_order(data: bytes) -> Order:
    """What `encode_order` wrote."""
    told = json.loads(data)
    genome = Genome.from_bytes(base64.b64decode(told["genome"]))
    job = Job(
        Candidate(told["id"], genome),
        told["split"],
        tuple(told["skills"]),
        tuple(told["parents"]),
        Standing.of_record(told["standing"]) if told["standing"] else None,
    )
    return Order(
        job, {int(n): [_measurement(one) for one in many] for n, many in told["answers"].items()}
    )


def encode_done(done: Done) -> bytes:
    """A result."""
    measurements = [asdict(one) for one in done.measurements]
    return json.dumps({**done._asdict(), "measurements": measurements}).encode()


def encode_error(error: CqdHubError) -> bytes:
    """A failure that the person at the driver is told as if it had happened there."""
    kind = "user" if isinstance(error, UserError) else "run"
    return json.dumps({"error": [kind, error.what, error.where, error.remedy]}).encode()


def decode_done(data: bytes) -> Done:
    """What `encode_done` wrote.

    Raises:
        UserError, RunError: What `encode_error` wrote.
    """
    told = json.loads(data)
    refuse_error(told)
    measurements = [_measurement(one) for one in told.pop("measurements")]
    return Done(measurements, **told)


def refuse_error(told: Mapping[str, Any]) -> None:
    """Raise the error that a worker's message holds, if it holds one."""
    if "error" in told:
        kind, what, where, remedy = told["error"]
        raise _ERRORS[kind](what, where=where, remedy=remedy)


def _measurement(told: Mapping[str, Any]) -> Measurement:
    return Measurement(**{**told, "tokens": tuple(told["tokens"])})
