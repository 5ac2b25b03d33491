"""A judge behind an OpenAI-compatible server: the log-probs of the first token of its reply, summed by word.

A question is two requests, one for each order of the words (`judges/base.py`).

The key is read from OPENAI_API_KEY and is sent with requests only; a server without keys needs none. A URL with a
password or a query is refused, for URLs are shown and kept. Verdicts are kept in a cache (`judges/cache.py`), so no
question is paid for twice, whichever run or audit asks it.

A server is not trusted: its replies are bounded in bytes and in time, their fields are checked, and a redirect is not
followed, for it would take the question and the key elsewhere.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from vdengine.drift.judgements import NO_VERDICT, Stance, Verdict
from vdengine.errors import InputError
from vdengine.judges.base import EXAMPLES, ORDERS, TASK, WORDS, Item, JudgeOptions, task, verdict_of
from vdengine.judges.cache import VerdictCache, cache_folder
from vdengine.outside import MIB, parse_json, printable
from vdengine.panels.panel import STANCES

LABELS = ("logprobs", "text")
TOP_LOGPROBS = 20  # the most that the API gives
LEAST_MASS = 0.5  # probability of the labels in the first token; below it the reply is about something else
_MAX_FAILURES = 3  # requests in a row that failed after all retries: the server is gone
_MAX_UNREADABLE = 20  # replies from the start without a label among them: the server is no judge
_MOST_BYTES = 4 * MIB  # of a reply; 20 log-probs have about 2 KiB, 2048 tokens of thoughts about 20 KiB
_REPLY_TOKENS = 2048  # with labels = "text", at most: some models think first


class ServerJudge:
    """A model behind a server.

    Args:
        name: MODEL, at OPENAI_BASE_URL (default: OpenAI's own), or MODEL@URL.

    Raises:
        InputError: the openai library is missing, an option is out of range, a URL that is none or holds a secret, or
            OpenAI's own server without a key.
    """

    def __init__(self, name: str, options: JudgeOptions) -> None:
        try:
            import openai
        except ImportError:
            raise InputError("a server judge needs the openai library: pip install 'vdengine[judge]'") from None
        _check(options)
        self.model, url = split_name(name)
        url = url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        check_url(url)
        key = os.environ.get("OPENAI_API_KEY")
        if not key and url.startswith("https://api.openai.com"):
            raise InputError(f"judge server:{self.model}: set OPENAI_API_KEY in the environment")
        if key and not re.fullmatch(r"[!-~]+", key):  # it would be shown by the http library's error
            raise InputError("OPENAI_API_KEY holds a space, a line end or another character that no key has")
        self.options, self.url, self._key = options, url, key or "none"
        self.client = openai.OpenAI(
            api_key=self._key,
            base_url=url,
            timeout=options.timeout_seconds,
            max_retries=options.retries,
            http_client=_http_client(options.timeout_seconds),
            default_headers={"Accept-Encoding": "identity"},  # a compressed reply may be a bomb
        )
        self.name = f"server:{self.model}"
        self.identity: dict[str, Any] = {
            "kind": "server",
            "model": self.model,
            "url": url,
            "labels": options.labels,
            "task": TASK,
            "examples": [list(example) for example in EXAMPLES],
        }
        self.cache = VerdictCache(options.cache or cache_folder(), self.name, self.identity)

    def estimate(self, items: Sequence[Item]) -> str:
        """Requests and tokens that judging these takes, in words: 4 bytes a token and 8 tokens more a request."""
        requests = [text for item in items for text in self._texts(item)]
        new = [text for text in requests if self.cache.get(text) is None]
        num_tokens = sum(len(text.encode("utf-8", "surrogatepass")) for text in new) / 4 + 8 * len(new)
        reply = 1 if self.options.labels == "logprobs" else 4  # tokens
        known = f" ({len(requests) - len(new):,} more are in the cache)" if len(new) < len(requests) else ""
        return (
            f"{len(items):,} questions in both orders of the words: {len(new):,} requests to {self.model} at "
            f"{self.url}{known}: about {num_tokens:,.0f} tokens in, {reply * len(new):,} out"
        )

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each item, in order; items of which a request failed are left out.

        Raises:
            InputError: the server is gone, refuses, or gives no labels. Replies until then are in the cache.
        """
        stances: list[dict[int, Stance | None]] = [{} for _ in items]  # by order; None: the request failed
        texts = [self._texts(item) for item in items]
        new = []
        for i, of_item in enumerate(texts):
            for order, text in enumerate(of_item):
                if (known := self.cache.get(text)) is not None:
                    stances[i][order] = known
                else:
                    new.append((i, order))
        number = 0  # of the first item that has not its replies yet

        def in_order(settled: bool) -> Iterator[tuple[int, Verdict]]:
            """Up to that item; to the end, when all is settled."""
            nonlocal number
            while number < len(items) and (settled or len(stances[number]) == len(ORDERS)):
                both = [stances[number].get(order) for order in range(len(ORDERS))]
                number += 1
                if (known := [stance for stance in both if stance is not None]) == both:
                    yield number - 1, verdict_of(known)

        yield from in_order(settled=False)
        for (i, order), stance in self._replies([(place, texts[place[0]][place[1]]) for place in new]):
            stances[i][order] = stance
            yield from in_order(settled=False)
        yield from in_order(settled=True)

    def _replies(self, requests: Sequence[tuple[Any, str]]) -> Iterator[tuple[Any, Stance | None]]:
        """(key, stance) of each request (key, text), as replies come; None of one that failed.

        Raises:
            InputError: as `judge`.
        """
        num_verdicts = failures = 0
        # Replies without a label are held back until one has a label: a server that is no judge leaves nothing behind.
        held: list[int] = []
        pool = ThreadPoolExecutor(self.options.concurrency)
        try:
            waiting = {pool.submit(self._ask, text): i for i, (_, text) in enumerate(requests)}
            for number, future in enumerate(as_completed(waiting), start=1):
                i = waiting[future]
                try:
                    stance, reply = future.result()
                except _RequestFailed as error:  # the next call asks this one again
                    failures += 1
                    if failures >= _MAX_FAILURES:
                        raise self._stopped(str(error)) from error
                    yield requests[i][0], None
                    continue
                failures = 0
                num_verdicts += not math.isnan(stance[0])
                held.append(i)
                if number >= _MAX_UNREADABLE and not num_verdicts:
                    raise self._stopped(f"none of its first {number} replies is a label; the last one: {reply!r}")
                if num_verdicts or number == len(requests):
                    for k in held:
                        verdict = stance if k == i else NO_VERDICT
                        self.cache.add(requests[k][1], verdict)
                        yield requests[k][0], verdict
                    held = []
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.cache.close()

    def _stopped(self, why: str) -> InputError:
        return InputError(f"judge {self.model} at {self.url}: {why}")

    def _texts(self, item: Item) -> list[str]:
        """The task in each of `ORDERS`."""
        return [task(item.probe.prompt, item.answer, order) for order in ORDERS]

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
            reply = self.client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": text}], temperature=0.0, **extra
            )
            data = reply.content
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            if isinstance(error.__cause__, _RequestFailed):
                raise error.__cause__ from None
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
            if 300 <= error.status_code < 400:
                raise self._stopped(f"status {error.status_code}: it points to another address; give that") from error
            raise self._stopped(f"status {error.status_code}: {self._message(error)}") from error
        except (openai.APIError, ValueError, UnicodeError) as error:
            raise _RequestFailed(f"its reply cannot be read ({type(error).__name__})") from error
        try:
            value = parse_json(data, "reply")
        except InputError as error:
            raise _RequestFailed(f"its reply cannot be read ({error})") from None
        content, top = _first_choice(value)
        if options.labels == "text":
            return read_word(content), content[:80]
        if top is None:
            raise self._stopped("it gives no log-probs; use --labels text, which takes its word as certain")
        return read_logprobs(top), content[:80]

    def _message(self, error: Any) -> str:
        """An API error's message on one line, at most 200 characters, without the key, which some servers repeat."""
        body = error.body if isinstance(error.body, dict) else {}
        text = str(body.get("message") or error.message).replace(self._key, "***")
        return printable(" ".join(text.split()))[:200]


class _RequestFailed(Exception):
    """A request failed after all retries; another one may succeed."""


def split_name(name: str) -> tuple[str, str]:
    """MODEL and URL of MODEL@URL; "" for no URL. A model's name may hold an @ itself.

    Raises:
        InputError: no model, or something after the @ that is no URL. The message does not repeat it: it may hold a
            password.
    """
    found = re.search(r"@(?=https?://)", name, re.I)
    model, url = (name[: found.start()], name[found.end() :]) if found else (name, "")
    if not found and re.search(r"@.*[:@]|://", model[1:]):
        raise InputError("judge server:MODEL@URL: the URL must begin with http:// or https://")
    if not model or not model.isprintable():
        raise InputError("judge server:MODEL@URL: the model has no name, or one that cannot be printed")
    return model, url


def check_url(url: str) -> None:
    """Check a server's address.

    Raises:
        InputError: it is none, or has a part that may be secret. The message does not repeat it.
    """
    where = "judge server:MODEL@URL (or OPENAI_BASE_URL)"
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not match, a port that is no number
        parts, known = None, False
    if "@" in url or parts is not None and (parts.query or parts.fragment):
        raise InputError(
            f"{where}: the URL holds a user, a password or a query, which would be shown and kept; the key is read "
            "from OPENAI_API_KEY"
        )
    if not known or not re.fullmatch(r"[!-~]+", url):
        raise InputError(f"{where}: not an address; one is http://HOST:PORT/v1")


def _check(options: JudgeOptions) -> None:
    """Raises InputError for an option that is out of range."""
    if options.labels not in LABELS:
        raise InputError(f"labels: {options.labels!r} is not one of {', '.join(LABELS)}")
    if not 1 <= options.concurrency <= 1024:
        raise InputError(f"--concurrency {options.concurrency}: allowed are 1 to 1024")
    if not 0 < options.timeout_seconds <= 86_400:
        raise InputError(f"--timeout {options.timeout_seconds:g}: allowed are seconds above 0, up to 86400")
    if not 0 <= options.retries <= 100:
        raise InputError(f"--retries {options.retries}: allowed are 0 to 100")


def _http_client(timeout_seconds: float) -> Any:
    """The openai library's own HTTP client, whose replies end: within a time, and after a number of bytes."""
    import openai

    # The library that openai stands on has had two names.
    httpx: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]

    class Bounded(httpx.SyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self.stream, self.end = stream, time.monotonic() + timeout_seconds

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self.stream:
                size += len(chunk)
                if size > _MOST_BYTES:
                    raise _RequestFailed(f"its reply is longer than {_MOST_BYTES // MIB} MiB")
                if time.monotonic() > self.end:
                    raise httpx.ReadTimeout("the reply does not end")
                yield chunk

        def close(self) -> None:
            self.stream.close()

    def bound(response: Any) -> None:
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _RequestFailed("its reply is compressed, which was not asked for")
        response.stream = Bounded(response.stream)

    return openai.DefaultHttpxClient(timeout=timeout_seconds, follow_redirects=False, event_hooks={"response": [bound]})


def _first_choice(value: Any) -> tuple[str, dict[str, float] | None]:
    """The text of a reply's first choice, and the candidates of its first token with their log-probs; None: it has no
    log-probs.

    Raises:
        _RequestFailed: no choices, or fields of another type.
    """
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _RequestFailed("its reply has no choices")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, str | None):
        raise _RequestFailed("its reply has no message")
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return content or "", None
    candidates = tokens[0].get("top_logprobs") if isinstance(tokens[0], dict) else None
    if not isinstance(candidates, list) or not candidates:
        return content or "", None
    top: dict[str, float] = {}
    for candidate in candidates:
        token, number = (candidate.get(name) if isinstance(candidate, dict) else None for name in ("token", "logprob"))
        if not isinstance(token, str) or isinstance(number, bool) or not isinstance(number, int | float):
            raise _RequestFailed("its log-probs are no numbers")
        if not number <= 1.0:  # also NaN; some servers give -inf, or -9999 for what is less likely than they count
            raise _RequestFailed("its log-probs are above 0")
        top[token] = max(float(max(number, -1e9)), top.get(token, -math.inf))
    return content or "", top


def read_logprobs(top: dict[str, float]) -> Stance:
    """The stance in the likeliest candidates of a reply's first token.

    A token counts for the one word that it is or begins. No verdict where the words together have less than
    `LEAST_MASS`.

    Args:
        top: log-prob by token, nats.
    """
    mass = dict.fromkeys(STANCES, 0.0)
    for token, logprob in top.items():
        word = token.strip(" \t\n\u2581\u0120*\"'`.-").lower()
        labels = [s for s in STANCES if word and WORDS[s].lower().startswith(word)]
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
    words = set(re.findall(r"[^\W\d_]+", reply.rpartition("</think>")[2].lower()))
    named = [s for s in STANCES if WORDS[s].lower() in words]
    if len(named) != 1:
        return NO_VERDICT
    support, neutral, oppose = (float(s == named[0]) for s in STANCES)
    return support, neutral, oppose
