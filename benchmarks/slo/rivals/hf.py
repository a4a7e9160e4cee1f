"""How the rivals run the model: ``transformers``, at full size, float32, greedy, token by token.

Needs torch and transformers alone, as it is imported within other servers. ``Static`` is ``generate`` on padded
batches; ``Continuous`` is transformers' own continuous batching with paged attention. Who has gone away is not served.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

OnToken = Callable[[int, bool], None]
"""Called with each new token, and whether it is the last."""


@dataclass
class Job:
    """A prompt, and what to do with what comes after it."""

    input_ids: Sequence[int]
    max_tokens: int
    on_token: OnToken
    gone: Callable[[], bool] = lambda: False
    """Whether nobody waits for it any more."""


def load(source: str, threads: int, attention: str = "sdpa") -> torch.nn.Module:
    """The checkpoint of a folder in Hugging Face's layout."""
    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=attention).eval()


class Static:
    """``generate``, one padded batch after the other: what waits when a batch ends is the next one."""

    def __init__(self, source: str, threads: int = 1, max_batch: int = 32) -> None:
        """``max_batch``: requests of one batch."""
        self._model, self._max_batch = load(source, threads), max_batch
        self._jobs: queue.Queue[Job] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, job: Job) -> None:
        """Returns at once; ``job.on_token`` is called on another thread."""
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while len(jobs) < self._max_batch and not self._jobs.empty():
                jobs.append(self._jobs.get())
            self.run(jobs)

    def run(self, jobs: Sequence[Job]) -> None:
        """Generate for all of them, in one batch padded to the longest prompt and answer."""
        jobs = [job for job in jobs if not job.gone()]
        if not jobs:
            return
        longest = max(len(job.input_ids) for job in jobs)
        ids = torch.zeros(len(jobs), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):
            ids[row, longest - len(job.input_ids) :] = torch.tensor(list(job.input_ids))
            mask[row, longest - len(job.input_ids) :] = 1
        config = GenerationConfig(
            max_new_tokens=max(job.max_tokens for job in jobs), do_sample=False, eos_token_id=None, pad_token_id=0
        )
        with torch.inference_mode():
            self._model.generate(ids, attention_mask=mask, generation_config=config, streamer=_Rows(jobs))


class _Rows(BaseStreamer):
    """Hands each row's tokens to its job, as many as that asked for."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs, self._count = jobs, -1

    def put(self, value: torch.Tensor) -> None:
        self._count += 1
        if self._count == 0:  # the prompts
            return
        for job, token in zip(self._jobs, value.tolist(), strict=True):
            if self._count <= job.max_tokens:
                job.on_token(token, self._count == job.max_tokens)

    def end(self) -> None: ...


class Continuous:
    """Continuous batching: requests join and leave between two tokens."""

    def __init__(self, source: str, threads: int = 1, cache_tokens: int = 32_768, page_tokens: int = 32) -> None:
        """``cache_tokens``: of keys and values, over all requests."""
        self._jobs: dict[str, tuple[Job, int]] = {}
        self._number = 0
        config = ContinuousBatchingConfig(
            page_size=page_tokens, num_blocks=cache_tokens // page_tokens, max_batch_tokens=1024
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1024, pad_token_id=0)
        self._manager = load(source, threads).init_continuous_batching(generation, config)
        self._manager.start()
        threading.Thread(target=self._deliver, daemon=True).start()

    def submit(self, job: Job) -> None:
        """Returns at once; ``job.on_token`` is called on another thread."""
        self._number += 1
        name = str(self._number)
        self._jobs[name] = (job, 0)
        self._manager.add_request(list(job.input_ids), name, max_new_tokens=job.max_tokens, streaming=True)

    def _deliver(self) -> None:
        for output in self._manager:
            job, count = self._jobs.get(output.request_id, (None, 0))
            if job is None:  # cancelled below
                continue
            if job.gone():
                del self._jobs[output.request_id]
                self._manager.cancel_request(output.request_id)
                continue
            tokens = list(output.generated_tokens)
            for i in range(count, min(len(tokens), job.max_tokens)):
                job.on_token(tokens[i], i + 1 == job.max_tokens)
            self._jobs[output.request_id] = (job, len(tokens))
            if len(tokens) >= job.max_tokens:
                del self._jobs[output.request_id]
