"""What changing level in mid-generation costs, in quality and in time: ``python benchmarks/switching.py``.

Quality: the shipped nested-lm decodes held-out text token by token (the text decides what comes next), the level of
every token drawn at random; beside it the mean of what the fixed levels give for the very same tokens. The difference
is what mixing costs: nothing on a ladder of depths (every token finds the keys and values that its own level would have
written), something on the default ladder, where tokens also read what other FFN widths wrote.

Time: tokens run at a shallow level and then, in one step, through the layers above (backfill), against having run them
at the deep level at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from common import arguments, interleaved, report
from torch import Tensor

from stepwell.models.cache import CacheSequence, PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.exits import ExitStates
from stepwell.models.ladder import Ladder, SubNetwork
from stepwell.models.loader import LoadedModel, open_model
from stepwell.models.packed import PackedBatch
from stepwell.models.tokenizer import Tokenizer
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.corpus import load_corpus

CONTEXT = 512
PAGE_TOKENS = 32
Schedule = Callable[[random.Random, int], Iterator[int]]
"""``(draw, number of levels)`` -> the level of each token."""


@dataclass
class Stream:
    """A generation that changes level."""

    pages: CacheSequence
    max_depth: int
    num_tokens: int = 0
    exits: ExitStates[SubNetwork] = field(default_factory=ExitStates)


class Server:
    """A decoder over a cache, and the engine's part of switching."""

    def __init__(self, decoder: Decoder, num_streams: int, max_depth: int) -> None:
        config = decoder.config
        num_pages = num_streams * config.num_layers * (CONTEXT // PAGE_TOKENS + 1)
        self.decoder = decoder
        self.cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, num_pages, PAGE_TOKENS)
        nothing = SubNetwork((0,) * config.num_layers, (0,) * config.num_layers)
        self.streams = [Stream(self.cache.open(nothing, CONTEXT), max_depth) for _ in range(num_streams)]

    def step(self, token_ids: Sequence[Sequence[int]], subnets: Sequence[SubNetwork]) -> Tensor:
        """Logits after the last of the tokens that each stream runs at its sub-network."""
        rows, kept = [], []
        for stream, ids, subnet in zip(self.streams, token_ids, subnets, strict=True):
            self.cache.widen(stream.pages, subnet)
            self.cache.reserve(stream.pages, stream.num_tokens + len(ids))
            exits = stream.exits.begin(stream.num_tokens, len(ids), subnet, subnet, stream.max_depth)
            rows += exits.packed(ids, stream.num_tokens, subnet, stream.pages, wants_logits=True)
            kept += exits.kept
        logits, states = self.decoder.forward_keeping(PackedBatch.pack(rows, self.cache))
        for segment, hidden in zip(kept, states, strict=True):
            segment.hidden = [hidden]
        for stream, ids in zip(self.streams, token_ids, strict=True):
            stream.exits.commit()
            stream.num_tokens += len(ids)
        return logits


def anywhere(period: int) -> Schedule:
    """Any level, drawn anew every ``period`` tokens."""

    def levels(draw: random.Random, num_levels: int) -> Iterator[int]:
        while True:
            yield from [draw.randrange(num_levels)] * period

    return levels


def neighbouring(period: int) -> Schedule:
    """One level up or down every ``period`` tokens."""

    def levels(draw: random.Random, num_levels: int) -> Iterator[int]:
        level = draw.randrange(num_levels)
        while True:
            yield from [level] * period
            level = min(max(level + draw.choice((-1, 1)), 0), num_levels - 1)

    return levels


SCHEDULES = {
    "any level, every token": anywhere(1),
    "any level, every 16 tokens": anywhere(16),
    "next level, every token": neighbouring(1),
    "next level, every 16 tokens": neighbouring(16),
}


def held_out_windows(model: LoadedModel, num_windows: int) -> tuple[Tensor, int]:
    """Held-out tokens [windows, CONTEXT + 1], spread over the files, and the bytes of what is predicted in them."""
    tokenizer = Tokenizer.from_file(model.path / "tokenizer.json")
    documents = load_corpus(None, NestedConfig(output=Path()).held_out_share).held_out
    ids = [token for document in documents for token in tokenizer.encode(document.text)]
    windows = [ids[at : at + CONTEXT + 1] for at in range(0, len(ids) - CONTEXT, CONTEXT + 1)]
    chosen = windows[:: max(1, len(windows) // num_windows)][:num_windows]
    return torch.tensor(chosen), sum(len(tokenizer.decode(window[1:]).encode()) for window in chosen)


@torch.inference_mode()
def fixed_nats(decoder: Decoder, windows_WT: Tensor, ladder: Ladder) -> Tensor:
    """Nats of every token when all run at one level: [levels, windows, tokens]."""
    return torch.stack([_level_nats(decoder, windows_WT, level.subnet) for level in ladder.levels])


def _level_nats(decoder: Decoder, windows_WT: Tensor, subnet: SubNetwork) -> Tensor:
    logits = [decoder.logits(decoder.forward_dense(rows[:, :-1], subnet)[-1]).float() for rows in windows_WT.split(4)]
    return F.cross_entropy(torch.cat(logits).transpose(1, 2), windows_WT[:, 1:], reduction="none")


@torch.inference_mode()
def switching_nats(decoder: Decoder, windows_WT: Tensor, ladder: Ladder, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Nats of every token served as the engine would, and its level: [windows, tokens] each."""
    subnets = [level.subnet for level in ladder.levels]
    server = Server(decoder, len(windows_WT), max(subnet.depth for subnet in subnets))
    drawn = [schedule(random.Random(seed), len(subnets)) for seed in range(len(windows_WT))]
    nats, levels = [], []
    for at in range(CONTEXT):
        now = [next(each) for each in drawn]
        logits = server.step(windows_WT[:, at : at + 1].tolist(), [subnets[level] for level in now])
        nats.append(F.cross_entropy(logits.float(), windows_WT[:, at + 1], reduction="none"))
        levels.append(torch.tensor(now))
    return torch.stack(nats, 1), torch.stack(levels, 1)


def quality_rows(model: LoadedModel, num_windows: int) -> list[list[str]]:
    """Bits per byte of each ladder under each schedule."""
    windows, num_bytes = held_out_windows(model, num_windows)
    rows = []
    for name in ("default", "width", "depth"):
        ladder = model.ladders.ladders[name]
        fixed = fixed_nats(model.decoder, windows, ladder)
        for title, schedule in SCHEDULES.items():
            nats, levels = switching_nats(model.decoder, windows, ladder, schedule)
            alone = fixed.gather(0, levels[None])[0]
            bits = [float(each.sum()) / math.log(2.0) / num_bytes for each in (nats, alone)]
            worst = max(float((nats - alone).sum(1).max()), 0.0) / CONTEXT / math.log(2.0)
            change = f"{100 * (bits[0] / bits[1] - 1):+.2f} %"
            rows.append([f"{name} ({ladder.kv})", title, *(f"{b:.4f}" for b in bits), change, f"{worst:.3f}"])
    return rows


def time_rows(model: LoadedModel, repeats: int) -> list[list[str]]:
    """Milliseconds of running tokens shallow and then going up, and of having run deep at once."""
    rows = []
    for low, high in (("default:0", "default:10"), ("default:3", "default:10"), ("depth:3", "depth:7")):
        for num_tokens in (32, 128, 448):
            seconds = _switch_seconds(model, low, high, num_tokens, repeats)
            ms = [f"{1e3 * seconds[case]:.1f}" for case in ("low", "up", "high", "decode")]
            both = seconds["low"] + seconds["up"]
            ratio = both / (seconds["high"] + seconds["decode"])
            rows.append([f"{low} to {high}", str(num_tokens), *ms, f"{ratio:.2f}"])
    return rows


def _switch_seconds(model: LoadedModel, low: str, high: str, num_tokens: int, repeats: int) -> dict[str, float]:
    shallow, deep = model.ladders.subnet(low), model.ladders.subnet(high)
    prompt = list(range(num_tokens))
    server = Server(model.decoder, 1, deep.depth)
    (stream,) = server.streams

    def at(subnet: SubNetwork, before: SubNetwork | None) -> Callable[[], Tensor]:
        """The prompt at ``subnet``, or one more token after it was run at ``before``."""
        states = ExitStates[SubNetwork]()
        if before is not None:
            stream.num_tokens, stream.exits = 0, states
            server.step([prompt], [before])
        kept = list(states.segments)

        def run() -> Tensor:
            stream.num_tokens, stream.exits = (0 if before is None else num_tokens), ExitStates()
            stream.exits._segments = list(kept)
            return server.step([prompt if before is None else [7]], [subnet])

        return run

    cases = {"low": at(shallow, None), "high": at(deep, None), "decode": at(deep, deep), "up": at(deep, shallow)}
    return interleaved(cases, repeats)


def main() -> None:
    """Print both tables."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=24, help=f"pieces of {CONTEXT} held-out tokens")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = open_model("nested-lm")
    levels = [level.subnet for ladder in model.ladders.ladders.values() for level in ladder.levels]
    model.decoder.prepare_serving(1 << 30, {channels for subnet in levels for channels in subnet.ffn_channels})
    report(
        "switching_quality",
        "Bits per byte when the level of a generation changes (nested-lm, held-out text)",
        [
            "ladder",
            "level changes to",
            "switching",
            "fixed levels, same tokens",
            "change",
            "worst window, bits a token",
        ],
        quality_rows(model, options.windows),
        f"{options.windows} windows of {CONTEXT} tokens of the standard library's held-out files, decoded token by "
        "token over the cache, backfill included. *Fixed levels, same tokens*: every token's bits at the level it was "
        "served at, if all tokens before it had run at that level too. *Worst window*: the largest mean loss.",
        options.save,
    )
    report(
        "switching_time",
        "Going up in mid-generation: backfill against having run deep at once (nested-lm, one sequence)",
        ["levels", "tokens", "shallow ms", "up ms", "deep ms", "deep decode ms", "(shallow + up) / (deep + decode)"],
        time_rows(model, options.repeats),
        "*Shallow*, *deep*: the tokens as one chunk. *Up*: a step that decodes one token at the deep level and "
        "backfills all of them. *Deep decode*: that step after having run deep. Medians, interleaved. Exit states kept "
        f"meanwhile: {model.config.hidden_size * model.decoder.dtype.itemsize} bytes a token.",
        options.save,
    )


if __name__ == "__main__":
    main()
