"""What waits for the encoder, and what it gets next: lanes by size of the request that share the encoder fairly.

A short request must not wait until all long ones before it are done, nor must a long one wait for ever because short
ones keep coming. So requests queue in lanes by their size, and the lanes share the encoder by tokens: start-time fair
queueing (Goyal, Vin and Cheng, 1996). A lane that was idle gets no credit for it, and none has to wait while another
one gets more than its share. Within a lane the first come is the first served.

Not thread-safe: the caller holds a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LANES = (512, 4096)
"""Largest request of each lane in tokens; larger ones have one more lane."""


class Job:
    """The texts of one request.

    Attributes:
        waiting: number and token ids of the texts that the encoder has not taken yet.
        tokens: of all its texts.
        call: what the owner of the queue wants to know about the request.
    """

    def __init__(self, sequences: Sequence[np.ndarray], call: Any = None) -> None:
        self.waiting = deque(enumerate(sequences))
        self.tokens = sum(len(sequence) for sequence in sequences)
        self.call = call


@dataclass
class Batch:
    """What the encoder computes at once: texts of several jobs.

    Attributes:
        items: job, number of the text in the job, token ids; shortest first.
        lane, finish: the lane of the last text taken, and the virtual time at which it has had this service.
    """

    items: list[tuple[Job, int, np.ndarray]]
    tokens: int
    lane: int
    finish: int


@dataclass
class _Lane:
    jobs: deque[Job] = field(default_factory=deque)
    tokens: int = 0
    start: int = 0
    """Virtual time at which its next text starts; while jobs wait."""
    finish: int = 0


class Lanes:
    """Jobs that wait, and the order in which their texts are taken."""

    def __init__(self) -> None:
        self._lanes = [_Lane() for _ in range(len(LANES) + 1)]
        self._now = 0

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return sum(lane.tokens for lane in self._lanes)

    @property
    def num_texts(self) -> int:
        """Texts that wait."""
        return sum(len(job.waiting) for lane in self._lanes for job in lane.jobs)

    def tokens_until_done(self, job_tokens: int) -> int:
        """Tokens that the encoder will have computed when a job of this size, put now, is done, at the latest."""
        lane = self._lane(job_tokens)
        num_busy = sum(bool(other.jobs) or other is lane for other in self._lanes)
        return num_busy * (lane.tokens + job_tokens)

    def put(self, job: Job) -> None:
        """Let a job wait."""
        lane = self._lane(job.tokens)
        if not lane.jobs:
            lane.start = max(lane.finish, self._now)
        lane.jobs.append(job)
        lane.tokens += job.tokens

    def take(self, budget: int, interrupting: Batch | None = None) -> Batch | None:
        """The next batch: texts of up to `budget` tokens together, or one text that is longer; None: nothing waits.

        Args:
            interrupting: a batch that is being computed. Only what may be computed before its end is taken: shorter
                requests whose share it would otherwise use up.
        """
        items: list[tuple[Job, int, np.ndarray]] = []
        tokens, last = 0, 0
        while (number := self._next_lane(interrupting)) is not None:
            lane = self._lanes[number]
            _, sequence = lane.jobs[0].waiting[0]
            if items and tokens + len(sequence) > budget:
                break
            items.append(self._pop(lane))
            tokens += len(sequence)
            last = number
        if not items:
            if interrupting is None:
                self._now = max(lane.finish for lane in self._lanes)
            return None
        items.sort(key=lambda item: len(item[2]))
        return Batch(items, tokens, last, self._lanes[last].finish)

    def discard(self, job: Job) -> None:
        """Forget what of a job still waits."""
        if not job.waiting:
            return
        lane = self._lane(job.tokens)
        lane.tokens -= sum(len(sequence) for _, sequence in job.waiting)
        lane.jobs.remove(job)
        job.waiting.clear()

    def _next_lane(self, interrupting: Batch | None) -> int | None:
        """The lane whose turn it is: the one that starts first, of equals that of the shorter requests."""
        busy = [number for number, lane in enumerate(self._lanes) if lane.jobs]
        if interrupting is not None:
            busy = [n for n in busy if n < interrupting.lane and self._lanes[n].start < interrupting.finish]
        return min(busy, key=lambda number: self._lanes[number].start, default=None)

    def _pop(self, lane: _Lane) -> tuple[Job, int, np.ndarray]:
        job = lane.jobs[0]
        number, sequence = job.waiting.popleft()
        if not job.waiting:
            lane.jobs.popleft()
        lane.tokens -= len(sequence)
        self._now = lane.start
        lane.start = lane.finish = lane.start + len(sequence)
        return job, number, sequence

    def _lane(self, tokens: int) -> _Lane:
        return self._lanes[sum(tokens > largest for largest in LANES)]
