"""Write text token by token: greedy or sampled, one prompt or a batch, as a list or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from llama_min.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Token", "distribution", "generate", "generate_batch", "penalize_repetition", "stream"]


class Token(int):
    """A token id. Where log-probabilities were asked for it carries its own, in nats."""

    logprob: float | None = None


def stream(
    model: nn.Module,
    ids: Sequence[int],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    logprobs: bool = False,
) -> Iterator[Token]:
    """Yield new tokens one by one, until an end token, a stop string or `max_new_tokens`.

    The iterator may be abandoned at any point: it works only when the next token is asked for.

    Args:
        model: a `Llama`, with adapters or quantized layers or without. Any module with its call shape does:
            `new_cache(batch, max_length, padding)` and `model(tokens, cache, last_only=True)`. One that has no
            `new_cache` is called as `model(tokens)` on the whole text for every token.
        ids: the prompt, at least one token.
        max_new_tokens: how many at the most.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        top_k: sample among the k likeliest only.
        top_p: sample among the fewest tokens whose probabilities sum to p (Holtzman et al. 2019, section 3.1).
        min_p: sample among tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024, section 3).
        repetition_penalty: above 1 makes the prompt's and the text's tokens less likely to come again (Keskar et al.
            2019, section 4.1).
        seed: of the sampling; the same seed gives the same text.
        eos_ids: where to stop; an end token is left out. `None` takes `model.config.eos_token_ids`, if it has them.
        stop: strings where to stop. Tokens are held back while they may belong to one, and left out where they begin
            in one; a token that begins before it stays as it is, with what it holds of the stop string. For text that
            ends just before it, leave this out and give the strings to the `StreamDecoder` that the tokens go through.
        tokenizer: what the stop strings are looked for with.
        logprobs: whether each `Token` carries its log-probability under the model (that of softmax(logits), before
            penalty, temperature and filters).

    Raises:
        ValueError: an argument is out of range, or prompt and new tokens do not fit the context; raised at once,
            before the first token is asked for.
    """
    sampling = _Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, logprobs)
    tokens = _write(model, [ids], max_new_tokens, sampling, eos_ids, stop, tokenizer)
    return (token for _, token in tokens)


def generate(
    model: nn.Module,
    ids: Sequence[int],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    logprobs: bool = False,
) -> list[Token]:
    """The tokens that `stream` yields, as a list: what follows `ids`, without the end token, up to a stop string."""
    sampling = _Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, logprobs)
    return [token for _, token in _write(model, [ids], max_new_tokens, sampling, eos_ids, stop, tokenizer)]


def generate_batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    logprobs: bool = False,
) -> list[list[Token]]:
    """What `generate` gives for each prompt, all computed together; the prompts may differ in length.

    Row i samples with `seed + i`, so that one prompt given several times is continued in several ways. Rows are
    independent, but products over many rows are summed in another order than over one: logits equal those of a single
    run to rounding.
    """
    texts: list[list[Token]] = [[] for _ in prompts]
    sampling = _Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, logprobs)
    for row, token in _write(model, prompts, max_new_tokens, sampling, eos_ids, stop, tokenizer):
        texts[row].append(token)
    return texts


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the logits (V,) of the token ids in `seen` by `penalty` where above 0, multiply them where below."""
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))


def distribution(
    logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """The probabilities (V,) from which a token is drawn; each filter sees what the one before it left."""
    scores = (logits - logits.max()) / temperature  # the same softmax, and finite for the smallest temperature
    if top_k is not None:
        kth = scores.topk(min(top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    if top_p is not None:
        likelihood, order = scores.softmax(-1).sort(descending=True)
        before = likelihood.cumsum(-1) - likelihood  # mass of the likelier tokens: 0 for the likeliest, which stays
        scores = scores.index_fill(0, order[before >= top_p], float("-inf"))
    if min_p is not None:
        likelihood = scores.softmax(-1)
        scores = scores.masked_fill(likelihood < min_p * likelihood.max(), float("-inf"))
    return scores.softmax(-1)


_SMALLEST = 2.0**-149  # the smallest float32 above 0; a temperature below is 0 there


@dataclass(frozen=True)
class _Sampling:
    """How the next token is chosen."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int
    logprobs: bool

    def __post_init__(self) -> None:
        for name, valid, needed in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or above"),
            (
                "top_k",
                self.top_k is None or (isinstance(self.top_k, int) and self.top_k >= 1),
                "a whole number, 1 or above",
            ),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
        ):
            if not valid:
                raise ValueError(f"{name}={getattr(self, name)} must be {needed}")

    def choose(self, logits: Tensor, history: Sequence[int], generator: torch.Generator) -> Token:
        """The token after `history`, by its logits (V,) in float32."""
        scores = logits
        if self.repetition_penalty != 1:
            seen = torch.tensor(history, device=logits.device)
            scores = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.temperature < _SMALLEST:
            token = Token(scores.argmax())
        else:
            probabilities = distribution(scores, self.temperature, self.top_k, self.top_p, self.min_p)
            token = Token(torch.multinomial(probabilities, 1, generator=generator))
        if self.logprobs:
            token.logprob = float(logits[token] - logits.logsumexp(-1))
        return token


class _Row:
    """One text of a batch while it is written: what it holds, its random numbers, and whether it has ended."""

    def __init__(self, prompt: Sequence[int], generator: torch.Generator, decoder: StreamDecoder | None) -> None:
        self.history = list(prompt)
        self.generator = generator
        self.decoder = decoder
        self.ended = False
        self.held: list[tuple[int, Token]] = []  # each with the number of characters before it
        self.released = 0  # characters that no stop string can take back

    def push(self, token: Token) -> list[Token]:
        """Take a token, and give those that are now known to stay."""
        if self.decoder is None:
            return [token]
        self.held.append((self.released + self.decoder.held, token))
        self.released += len(self.decoder.push(token))
        self.ended = self.decoder.stopped
        stay = [token for start, token in self.held if start < self.released]
        self.held = [] if self.ended else self.held[len(stay) :]
        return stay

    def flush(self) -> list[Token]:
        """The tokens still held back when the text ends without a stop string."""
        self.ended = True
        return [token for _, token in self.held]


def _write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: _Sampling,
    eos_ids: Sequence[int] | None,
    stop: Sequence[str],
    tokenizer: Tokenizer | None,
) -> Iterator[tuple[int, Token]]:
    """Check everything, then yield (row, token) as tokens are chosen."""
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty: give at least one token, such as BOS")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be 0 or above")
    if isinstance(stop, str) or not all(stop) or (stop and tokenizer is None):
        raise ValueError(f"stop={stop!r} must be a list of strings, none empty, and needs tokenizer=")
    if eos_ids is None:
        eos_ids = getattr(getattr(model, "config", None), "eos_token_ids", ())
    ends = frozenset(eos_ids)
    if not prompts:
        return iter(())

    device = next(chain(model.parameters(), model.buffers())).device
    next_logits = _next_logits(model, prompts, max_new_tokens, device)
    rows = []
    for number, prompt in enumerate(prompts):
        decoder = StreamDecoder(tokenizer, stop, continues=True) if stop and tokenizer is not None else None
        rows.append(_Row(prompt, torch.Generator(device).manual_seed(sampling.seed + number), decoder))

    def write() -> Iterator[tuple[int, Token]]:
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                logits = next_logits([row.history for row in rows])  # (B, V)
                chosen = [sampling.choose(logits[i], row.history, row.generator) for i, row in enumerate(rows)]
            for number, (row, token) in enumerate(zip(rows, chosen)):
                row.history.append(token)
                if not row.ended:  # an ended row only fills its column while others go on
                    stay = row.flush() if token in ends else row.push(token)
                    yield from ((number, token) for token in stay)
            if all(row.ended for row in rows):
                return
        for number, row in enumerate(rows):
            if not row.ended:
                yield from ((number, token) for token in row.flush())

    return write()


def _next_logits(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int, device: torch.device
) -> Callable[[list[list[int]]], Tensor]:
    """A function from the texts so far to the logits (B, V) of what follows each, in float32."""
    longest = max(map(len, prompts))
    new_cache = getattr(model, "new_cache", None)
    if new_cache is None:
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if limit is not None and longest + max_new_tokens > limit:
            raise ValueError(
                f"{longest} + {max_new_tokens} tokens are past the model's context of {limit}: ask for fewer new "
                "tokens or shorten the prompt"
            )

        def from_the_start(texts: list[list[int]]) -> Tensor:
            """Padded on the right, which a causal model never sees; the logits at each row's own last token."""
            ends = torch.tensor([len(text) for text in texts], device=device)
            width = int(ends.max())
            tokens = torch.tensor([text + text[-1:] * (width - len(text)) for text in texts], device=device)  # (B, T)
            output = model(tokens)
            logits: Tensor = getattr(output, "logits", output)  # (B, T, V); transformers wraps them
            return logits[torch.arange(len(texts), device=device), ends - 1].float()

        return from_the_start

    padding = [longest - len(prompt) for prompt in prompts]
    cache = new_cache(len(prompts), longest + max_new_tokens, padding)
    read = 0  # columns that the cache holds

    def from_the_cache(texts: list[list[int]]) -> Tensor:
        """What the cache does not hold yet: the prompts, padded on the left, and later one new token of each."""
        nonlocal read
        padded = [text[:1] * pad + text for text, pad in zip(texts, padding)]
        tokens = torch.tensor([row[read:] for row in padded], device=device)  # (B, T)
        read += tokens.shape[1]
        return model(tokens, cache, last_only=True)[:, -1].float()

    return from_the_cache
