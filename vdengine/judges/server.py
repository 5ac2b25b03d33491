"""A judge behind an OpenAI-compatible server: the log-probs of the first token of its reply, summed by label.

The key is read from OPENAI_API_KEY and goes nowhere but into requests; a server without keys needs none. Verdicts are
kept in the user's cache folder, one file a judge, so no question is paid for twice, whichever run or audit asks it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from vdengine.drift.judgements import NO_VERDICT, Stance, slug_of
from vdengine.errors import InputError
from vdengine.judges.base import MEANING, TASK, Item, JudgeOptions, task
from vdengine.panels.panel import STANCES

LABELS = ("logprobs", "text")
TOP_LOGPROBS = 20  # the most that the API gives
LEAST_MASS = 0.5  # of the labels, in the first token: below it the reply is about something else
_FAILURES = 3  # requests in a row that came to nothing after all retries: the server is gone
_NONSENSE = 20  # replies from the start, none of them a label: this is no judge
_REPLY_TOKENS = 2048  # with labels = "text", at most: some models think first


class ServerJudge:
    """name: MODEL, at OPENAI_BASE_URL (default: OpenAI's own), or MODEL@URL.

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
        self.model, at, url = name.rpartition("@") if "@http" in name else (name, "", "")
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
            "kind": "server", "model": self.model, "url": url, "labels": options.labels, "task": TASK,
            "meaning": MEANING,
        }  # fmt: skip
        self.cache = _Cache(options.cache or _cache_folder(), self.name, self.identity)

    def estimate(self, items: Sequence[Item]) -> str:
        new = [i for i in items if self.cache.get(self._text(i)) is None]
        num_tokens = sum(len(self._text(i).encode()) for i in new) / 4 + 8 * len(new)
        reply = 1 if self.options.labels == "logprobs" else 4
        known = f" ({len(items) - len(new):,} more are in the cache)" if len(new) < len(items) else ""
        return (
            f"{len(new):,} requests to {self.model} at {self.url}{known}: about {num_tokens:,.0f} tokens in, "
            f"{reply * len(new):,} out"
        )

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        texts = [self._text(item) for item in items]
        new = []
        for i, text in enumerate(texts):
            if (known := self.cache.get(text)) is not None:
                yield i, known
            else:
                new.append(i)
        verdicts = failures = 0
        held: list[int] = []  # replies that name no label, until one does: a server that is no judge leaves no trace
        pool = ThreadPoolExecutor(self.options.concurrency)
        try:
            waiting = {pool.submit(self._ask, texts[i]): i for i in new}
            for number, future in enumerate(as_completed(waiting), start=1):
                i = waiting[future]
                try:
                    stance, reply = future.result()
                except _Lost as lost:  # this one is asked again in the next sitting
                    failures += 1
                    if failures >= _FAILURES:
                        raise self._stopped(str(lost)) from lost
                    continue
                failures = 0
                verdicts += not math.isnan(stance[0])
                held.append(i)
                if number >= _NONSENSE and not verdicts:
                    raise self._stopped(f"none of its first {number} replies is a label; the last one: {reply!r}")
                if verdicts or number == len(new):
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
        """(stance, what it said). _Lost: no reply, InputError: there is no use in asking on."""
        import openai

        o = self.options
        extra: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if o.labels == "text":
            extra = {"max_completion_tokens": _REPLY_TOKENS}
        try:
            reply = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": text}], temperature=0.0, **extra
            )
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            what = "no reply within" if isinstance(error, openai.APITimeoutError) else "cannot be reached;"
            raise _Lost(f"{what} {o.timeout_seconds:g} s, {o.retries + 1} times") from error
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise self._stopped("its quota is used up") from error
            raise _Lost(f"too many requests, {o.retries + 1} times; lower --concurrency") from error
        except openai.InternalServerError as error:
            raise _Lost(f"status {error.status_code}, {o.retries + 1} times") from error
        except openai.AuthenticationError as error:
            raise self._stopped("it does not accept the key in OPENAI_API_KEY") from error
        except openai.APIStatusError as error:
            raise self._stopped(f"status {error.status_code}: {_message(error)}") from error
        except (openai.APIError, ValueError) as error:  # a reply that is no JSON, or not of this API
            raise _Lost(f"its reply cannot be read ({type(error).__name__})") from error
        if not getattr(reply, "choices", None):
            raise _Lost("its reply has no choices")
        choice = reply.choices[0]
        said = choice.message.content or ""
        if o.labels == "text":
            return read_word(said), said[:80]
        tops = choice.logprobs.content if choice.logprobs else None
        if not tops or not tops[0].top_logprobs:
            raise self._stopped("it gives no log-probs; use --labels text, which takes its word as certain")
        return read_logprobs({t.token: t.logprob for t in tops[0].top_logprobs}), said[:80]


class _Lost(Exception):
    """A request came to nothing; another one may not."""


def _message(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or error.message)
    return " ".join(text.split())[:200]


def read_logprobs(top: dict[str, float]) -> Stance:
    """The stance in a first token's likeliest candidates, log-prob by token. A token counts for the one label that it
    begins; of what counts for none, more than `1 - LEAST_MASS` is no verdict."""
    mass = dict.fromkeys(STANCES, 0.0)
    for token, logprob in top.items():
        word = token.strip(" \t\n\u2581\u0120*\"'`.-").lower()
        hit = [s for s in STANCES if word and (s.startswith(word) or word.startswith(s))]
        if len(hit) == 1:
            mass[hit[0]] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if not total >= LEAST_MASS:
        return NO_VERDICT
    support, neutral, oppose = (mass[s] / total for s in STANCES)
    return support, neutral, oppose


def read_word(reply: str) -> Stance:
    """The stance that a reply names, as certain; none where it names none or several. What a model thinks first, up to
    "</think>", is left out."""
    words = reply.rpartition("</think>")[2].lower()
    named = [s for s in STANCES if s in words]
    if len(named) != 1:
        return NO_VERDICT
    support, neutral, oppose = (float(s == named[0]) for s in STANCES)
    return support, neutral, oppose


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdengine" / "judgements"


class _Cache:
    """Verdicts by a digest of the question, in `<folder>/<judge>-<digest of its identity>.jsonl`, a line each. A line
    that cannot be read is left out: it is asked again."""

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        self.path = folder / f"{slug_of(name)}-{_digest(json.dumps(identity, sort_keys=True))}.jsonl"
        self._known: dict[str, Stance] = {}
        self._file: Any = None
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                support, neutral, oppose = row["stance"] or NO_VERDICT
                self._known[row["asked"]] = (float(support), float(neutral), float(oppose))
            except (ValueError, TypeError, KeyError):
                continue

    def get(self, text: str) -> Stance | None:
        return self._known.get(_digest(text))

    def add(self, text: str, stance: Stance) -> None:
        key = _digest(text)
        self._known[key] = stance
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            self._file.write("\n")  # ends a line that was cut short; an empty one is none
        given = None if math.isnan(stance[0]) else stance
        self._file.write(json.dumps({"asked": key, "stance": given}) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
