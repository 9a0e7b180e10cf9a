"""The end of a source's request becomes what stands at its topics. Pure.

Owns which text of an answer is its label. Doesn't know clients or the broker.
"""

from __future__ import annotations

import json
import math

from broker.protocol.codec import encode
from broker.protocol.errors import RequestFailed
from broker.protocol.messages import ErrorBody, Result
from broker.protocol.sources import SourceAnswer, SourceError, SourceName
from s2m3.sources.lanes import Ended

BAD_SOURCE = "bad_source"
MAX_ANSWER_BYTES = 16 * 1024  # of a whole answer beside its label: Home Assistant keeps attributes up to this
MAX_LABEL = 4_000  # characters; the rest is left out


def label_of(result: Result) -> str | None:
    """The text that a person wants of an answer; of one without such a text all of it as JSON."""
    return (result.text or json.dumps(result.answer))[:MAX_LABEL] if result.answer else None


def answer_of(ended: Ended, end: Result | RequestFailed, *, at: float, latency_s: float) -> SourceAnswer:
    """The message about a request that ended, or about a message that could not become one."""
    ask = ended.ask
    error: ErrorBody | RequestFailed | None = end if isinstance(end, RequestFailed) else end.error
    answer = None if isinstance(end, RequestFailed) else end.answer
    score = (answer or {}).get("score")
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
    made = SourceAnswer(
        source=ask.spec.source,
        task=ask.spec.task,
        at=at,
        label=None if isinstance(end, RequestFailed) else label_of(end),
        score=float(score) if is_number and isinstance(score, (int, float)) else None,
        error=None if error is None else _error_of(error),
        topic=ask.message.topic,
        captures=ask.captures,
        skipped=ended.skipped,
        latency_s=round(latency_s, 6),
        answer=answer,
    )
    return made if len(encode(made)) <= MAX_ANSWER_BYTES else made.model_copy(update={"answer": None})


def refusal_of(source: SourceName, reason: str, at: float) -> SourceAnswer:
    """The message about a source that doesn't run."""
    return SourceAnswer(source=source, at=at, error=SourceError(code=BAD_SOURCE, message=reason))


def _error_of(error: ErrorBody | RequestFailed) -> SourceError:
    if isinstance(error, RequestFailed):
        return SourceError(code=str(error.code), message=error.message)
    return SourceError(code=str(error.code), message=error.message, retry_after_s=error.retry_after_s)
