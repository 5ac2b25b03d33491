"""A judge behind an OpenAI-compatible server: the log-probs of the first token of its reply, summed by label.

The key is read from OPENAI_API_KEY and is sent with requests only; a server without keys needs none. Verdicts are kept
in a cache (`judges/cache.py`), so no question is paid for twice, whichever run or audit asks it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from vdengine.drift.judgements import NO_VERDICT, Stance
from vdengine.errors import InputError
from vdengine.judges.base import MEANING, TASK, Item, JudgeOptions, task
from vdengine.judges.cache import VerdictCache, cache_folder
from vdengine.panels.panel import STANCES

LABELS = ("logprobs", "text")
TOP_LOGPROBS = 20  # the most that the API gives
LEAST_MASS = 0.5  # probability of the labels in the first token; below it the reply is about something else
_MAX_FAILURES = 3  # requests in a row that failed after all retries: the server is gone
_MAX_UNREADABLE = 20  # replies from the start without a label among them: the server is no judge
_REPLY_TOKENS = 2048  # with labels = "text", at most: some models think first


class ServerJudge:
    """A model behind a server.

    Args:
        name: MODEL, at OPENAI_BASE_URL (default: OpenAI's own), or MODEL@URL.

    Raises:
        InputError: the openai library is missing, an option is unknown, or OpenAI's own server without a key.
    """

    def __init__(self, name: str, options: JudgeOptions) -> None:
        try:
            import openai
        except ImportError:
            raise InputError("a server judge needs the openai library: pip install 'vdengine[judge]'") from None
        if options.labels not in LABELS:
            raise InputError(f"labels: {options.labels!r} is not one of {', '.join(LABELS)}")
        self.model, _, url = name.rpartition("@") if "@http" in name else (name, "", "")
        url = url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        key = os.environ.get("OPENAI_API_KEY")
        if not key and url.startswith("https://api.openai.com"):
            raise InputError(f"judge server:{name}: set OPENAI_API_KEY in the environment")
        self.options, self.url = options, url
        self.client = openai.OpenAI(
            api_key=key or "none", base_url=url, timeout=options.timeout_seconds, max_retries=options.retries
        )
        self.name = f"server:{self.model}"
        self.identity: dict[str, Any] = {
            "kind": "server",
            "model": self.model,
            "url": url,
            "labels": options.labels,
            "task": TASK,
            "meaning": MEANING,
        }
        self.cache = VerdictCache(options.cache or cache_folder(), self.name, self.identity)

    def estimate(self, items: Sequence[Item]) -> str:
        """Requests and tokens that judging these takes, in words: 4 bytes a token and 8 tokens more a request."""
        new = [item for item in items if self.cache.get(self._text(item)) is None]
        num_tokens = sum(len(self._text(item).encode()) for item in new) / 4 + 8 * len(new)
        reply = 1 if self.options.labels == "logprobs" else 4  # tokens
        known = f" ({len(items) - len(new):,} more are in the cache)" if len(new) < len(items) else ""
        return (
            f"{len(new):,} requests to {self.model} at {self.url}{known}: about {num_tokens:,.0f} tokens in, "
            f"{reply * len(new):,} out"
        )

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        """(index, stance) of each item, as replies come; items whose request failed are left out.

        Raises:
            InputError: the server is gone, refuses, or gives no labels. Verdicts until then are in the cache.
        """
        texts = [self._text(item) for item in items]
        new = []
        for i, text in enumerate(texts):
            if (known := self.cache.get(text)) is not None:
                yield i, known
            else:
                new.append(i)
        num_verdicts = failures = 0
        # Replies without a label are held back until one has a label: a server that is no judge leaves nothing behind.
        held: list[int] = []
        pool = ThreadPoolExecutor(self.options.concurrency)
        try:
            waiting = {pool.submit(self._ask, texts[i]): i for i in new}
            for number, future in enumerate(as_completed(waiting), start=1):
                i = waiting[future]
                try:
                    stance, reply = future.result()
                except _RequestFailed as error:  # the next call asks this one again
                    failures += 1
                    if failures >= _MAX_FAILURES:
                        raise self._stopped(str(error)) from error
                    continue
                failures = 0
                num_verdicts += not math.isnan(stance[0])
                held.append(i)
                if number >= _MAX_UNREADABLE and not num_verdicts:
                    raise self._stopped(f"none of its first {number} replies is a label; the last one: {reply!r}")
                if num_verdicts or number == len(new):
                    for k in held:
                        verdict = stance if k == i else NO_VERDICT
                        self.cache.add(texts[k], verdict)
                        yield k, verdict
                    held = []
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.cache.close()

    def _stopped(self, why: str) -> InputError:
        return InputError(f"judge {self.model} at {self.url}: {why}")

    def _text(self, item: Item) -> str:
        return task(item.probe.prompt, item.answer)

    def _ask(self, text: str) -> tuple[Stance, str]:
        """(stance, start of the reply) to one question.

        Raises:
            _RequestFailed: no usable reply; another request may get one.
            InputError: no further request would succeed.
        """
        import openai

        options = self.options
        extra: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if options.labels == "text":
            extra = {"max_completion_tokens": _REPLY_TOKENS}
        try:
            reply = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": text}], temperature=0.0, **extra
            )
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            what = "no reply within" if isinstance(error, openai.APITimeoutError) else "cannot be reached;"
            raise _RequestFailed(f"{what} {options.timeout_seconds:g} s, {options.retries + 1} times") from error
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise self._stopped("its quota is used up") from error
            raise _RequestFailed(f"too many requests, {options.retries + 1} times; lower --concurrency") from error
        except openai.InternalServerError as error:
            raise _RequestFailed(f"status {error.status_code}, {options.retries + 1} times") from error
        except openai.AuthenticationError as error:
            raise self._stopped("it does not accept the key in OPENAI_API_KEY") from error
        except openai.APIStatusError as error:
            raise self._stopped(f"status {error.status_code}: {_message(error)}") from error
        except (openai.APIError, ValueError) as error:  # a reply that is no JSON, or not of this API
            raise _RequestFailed(f"its reply cannot be read ({type(error).__name__})") from error
        if not getattr(reply, "choices", None):
            raise _RequestFailed("its reply has no choices")
        choice = reply.choices[0]
        content = choice.message.content or ""
        if options.labels == "text":
            return read_word(content), content[:80]
        tops = choice.logprobs.content if choice.logprobs else None
        if not tops or not tops[0].top_logprobs:
            raise self._stopped("it gives no log-probs; use --labels text, which takes its word as certain")
        return read_logprobs({t.token: t.logprob for t in tops[0].top_logprobs}), content[:80]


class _RequestFailed(Exception):
    """A request failed after all retries; another one may succeed."""


def _message(error: Any) -> str:
    """An API error's message on one line, at most 200 characters."""
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or error.message)
    return " ".join(text.split())[:200]


def read_logprobs(top: dict[str, float]) -> Stance:
    """The stance in the likeliest candidates of a reply's first token.

    A token counts for the one label that it begins, or that begins it. No verdict where the labels together have less
    than `LEAST_MASS`.

    Args:
        top: log-prob by token, nats.
    """
    mass = dict.fromkeys(STANCES, 0.0)
    for token, logprob in top.items():
        word = token.strip(" \t\n\u2581\u0120*\"'`.-").lower()
        labels = [s for s in STANCES if word and (s.startswith(word) or word.startswith(s))]
        if len(labels) == 1:
            mass[labels[0]] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if not total >= LEAST_MASS:
        return NO_VERDICT
    support, neutral, oppose = (mass[s] / total for s in STANCES)
    return support, neutral, oppose


def read_word(reply: str) -> Stance:
    """The stance that a reply names, as certain; no verdict where it names none or several.

    A model's thoughts before the reply, up to "</think>", are left out.
    """
    text = reply.rpartition("</think>")[2].lower()
    named = [s for s in STANCES if s in text]
    if len(named) != 1:
        return NO_VERDICT
    support, neutral, oppose = (float(s == named[0]) for s in STANCES)
    return support, neutral, oppose
