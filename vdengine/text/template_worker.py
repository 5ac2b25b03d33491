"""Rendering of templates in a process of its own: of chats, and of the rows of a task.

The template of a checkpoint or of a task is a Jinja program that is not trusted. Jinja's sandbox bounds neither time
nor memory: an expression such as `'x' * 10**10` is a single call that no counter or signal handler of the process can
interrupt. So it runs in `python -m vdengine.text.template_worker`, which limits itself before each rendering: by a
CPU-time alarm, whose default action ends the process at any point, and by a limit on its address space. The process is
kept between calls; a call with three renderings takes 0.12 ms, the pipe included.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, NoReturn

from vdengine.errors import InputError

CPU_SECONDS = 2.0  # of one rendering; a conversation of 1000 turns takes 20 ms
WORKER_BYTES = 1 << 30
MAX_TEXT = 1 << 24  # characters of one rendering
# And of what the template adds: so many by itself, and each character of the messages, as JSON, so many times. To
# tokenise text takes a hundred times its size in memory, in the process that asked.
MAX_ADDED, MAX_REPEATS = 1 << 20, 8
MAX_JOBS = 32  # renderings per request; bounds the memory of both processes for a very long conversation
# Around the body of a {% generation %} block. Noncharacters: valid in a Python string, never in text.
OPEN_MARK, CLOSE_MARK = "\ufdd0", "\ufdd1"
# The present date of templates that print it. With the real date they would give other ids tomorrow, and so other data
# and another drift curve after a resume. This is the default date in Llama-3's templates.
DATE = (2024, 7, 26)


# ------------------------------------------------------------------------------------------------ in the parent process


class _Worker:
    """A process that renders templates, which is started when it is needed, and again if it has ended.

    Args:
        name: of the templates, in errors.
        hello: what the process must know of them.
        cpu_seconds: limit of one rendering.
    """

    def __init__(self, name: str, hello: dict[str, Any], cpu_seconds: float) -> None:
        self._name, self._seconds = name, cpu_seconds
        self._hello = hello | {"cpu_seconds": cpu_seconds}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._stop: Callable[[], object] = lambda: None

    def _render(self, requests: Iterable[Any]) -> list[str]:
        """The texts of all requests, one after another.

        Raises:
            InputError: a template raised an error, or took more than its limits of time or memory.
        """
        with self._lock:
            if self._process is None or self._owner != os.getpid():  # a forked process needs a pipe of its own
                self._start()
                self._ask(self._hello)
            return [text for request in requests for text in self._ask(request)]

    def _start(self) -> None:
        """Start the process. It imports from this process's path and not from the working folder (-P), and sees only
        the variables of the environment that Python needs to start: no tokens, no keys."""
        needed = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
        environment = {name: os.environ[name] for name in needed if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUTF8": "1"}
        environment["PYTHONHASHSEED"] = "0"  # a set that a template prints has one order
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vdengine.text.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self._owner = os.getpid()
        self._stop = weakref.finalize(self, _end_process, self._process, self._owner)

    def _ask(self, request: Any) -> Any:
        """Send a request and return its answer."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("_ask comes after _start")
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # the request cannot be encoded as JSON, or Ctrl-C came before the answer
            self._close()
            raise
        if not line:
            code = self._close()
            if code == -signal.SIGPROF:
                raise InputError(f"{self._name}: it took more than {self._seconds:g} s of CPU time and was ended")
            raise InputError(f"{self._name}: the rendering process ended (exit status {code})")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(f"{self._name}: {answer['error']}")
        return answer["ok"]

    def _close(self) -> int | None:
        """End the process and return its exit status."""
        process, self._process = self._process, None
        self._stop()
        return None if process is None else process.returncode


class TemplateWorker(_Worker):
    """Renders one chat template.

    Args:
        context: variables of every rendering.
    """

    def __init__(self, name: str, template: str, context: dict[str, Any], cpu_seconds: float) -> None:
        super().__init__(name, {"template": template, "context": context}, cpu_seconds)

    def render(self, messages: list[dict[str, Any]], jobs: list[tuple[list[int], bool]]) -> list[str]:
        """The text of each job: (indexes of its messages, add_generation_prompt).

        Raises:
            InputError: the template raised an error, or took more than its limits of time or memory.
        """
        return self._render([messages, jobs[start : start + MAX_JOBS]] for start in range(0, len(jobs), MAX_JOBS))


class RowTemplates(_Worker):
    """Renders templates whose variables are the columns of a row, as lm-evaluation-harness does: an undefined variable
    is an error, a newline at the end stays, and there is a filter `regex_replace(pattern, replacement)`. Unlike there,
    what Jinja draws at random (the filter `random`, the function `lipsum`) is missing: a prompt is the same each time.

    Args:
        templates: by name.
    """

    def __init__(self, name: str, templates: dict[str, str], cpu_seconds: float = CPU_SECONDS) -> None:
        super().__init__(name, {"templates": templates}, cpu_seconds)

    def render(self, jobs: Sequence[tuple[str, str, dict[str, Any]]]) -> list[str]:
        """The text of each job: (name of the template, place of the row for messages, the row as JSON values).

        Raises:
            InputError: a template raised an error, which names the place, or took more than its limits.
        """
        return self._render(jobs[start : start + MAX_JOBS] for start in range(0, len(jobs), MAX_JOBS))


def _end_process(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:
        return
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:  # the worker has ended before it read the whole request
            pass
    try:
        process.wait(timeout=0.2)  # the worker ends when its input does
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------------------------ in the worker process


def _work(requests: IO[str], answers: IO[str]) -> None:
    """Read the template and then jobs, one JSON line each, and answer each with a JSON line."""
    # Ctrl-C is sent to the whole process group; this process ends with its input instead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, even during a C call
    hello = json.loads(requests.readline() or "null")
    if hello is None:
        return
    _limit_memory()
    seconds, compiled = hello["cpu_seconds"], dict[str, Any]()

    def render(template: Any, context: dict[str, Any], given: Any) -> str:
        """A rendering within all limits; given: what of the context the text may repeat."""
        text: str = _limited(seconds, template.render, context)
        most = min(MAX_TEXT, MAX_ADDED + MAX_REPEATS * len(json.dumps(given)))
        if len(text) > most:
            raise ValueError(f"it renders to more than {most} characters")
        return text

    def chats(request: Any) -> list[str]:
        messages, jobs = request
        texts = []
        for numbers, add_generation_prompt in jobs:
            chosen = [messages[i] for i in numbers]
            context = hello["context"] | {"messages": chosen, "add_generation_prompt": add_generation_prompt}
            texts.append(render(compiled["chat"], context, chosen))
        return texts

    def rows(request: Any) -> list[str]:
        texts = []
        for name, where, row in request:
            with _named(f"{name}, {where}"):
                texts.append(render(compiled[name], row, row))
        return texts

    def compile_all() -> None:
        if "templates" not in hello:
            compiled["chat"] = _limited(seconds, _compile_chat, hello["template"])
        for name, source in hello.get("templates", {}).items():
            with _named(name):
                compiled[name] = _limited(seconds, _compile_row, source)

    def answer(request: Any) -> list[str]:
        if request is hello or not compiled:  # what could not be compiled is said again
            compile_all()
        if request is hello:
            return []
        return rows(request) if "templates" in hello else chats(request)

    request = hello
    while True:
        reply: dict[str, Any]
        try:
            reply = {"ok": answer(request)}
        except MemoryError:
            reply = {"error": f"it took more than {WORKER_BYTES >> 20} MiB of memory"}
        except Exception as error:  # any error of the template is reported to its user
            number = getattr(error, "lineno", None)
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            reply = {"error": (f"line {number}: " if number else "") + reason}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        if not (line := requests.readline()):
            return
        request = json.loads(line)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors inside name a template."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{what}: {str(error) or type(error).__name__}") from None


def _limited(seconds: float, function: Callable[[Any], Any], argument: Any) -> Any:
    """Call the function under the CPU-time alarm. CPU time and not wall time, because a busy machine must not end a
    good template; and a template cannot wait for anything."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return function(argument)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    except (ValueError, OSError):  # macOS has no such limit; there only CPU time bounds the memory
        pass
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _sandbox(**options: Any) -> Any:
    """An environment for templates that are not trusted.

    Raises:
        ValueError: a version of jinja2 with a sandbox that can be escaped.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if tuple(int(n) for n in re.findall(r"\d+", jinja2.__version__)[:3]) < (3, 1, 6):
        raise ValueError(f"jinja2 {jinja2.__version__} has known ways out of its sandbox; 3.1.6 or later is needed")
    return ImmutableSandboxedEnvironment(**options)


def _compile_row(source: str) -> Any:
    """A template of a row, compiled as lm-evaluation-harness does. Its text is a function of the row: what draws at
    random is not there, and what prints as an address of memory is an error."""
    import jinja2

    def printed(value: Any) -> Any:
        if not isinstance(value, str) and re.search(r" at 0x[0-9a-f]+>", text := str(value)):
            raise ValueError(f"{text[:60]} is no text: it is another one each time; call it, or add a filter (| list)")
        return value

    environment = _sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=printed)
    del environment.filters["random"], environment.globals["lipsum"]
    environment.filters["regex_replace"] = lambda text, pattern, repl, count=0: re.sub(pattern, repl, text, count=count)
    return environment.from_string(source)


def _compile_chat(source: str) -> Any:
    """A chat template, compiled as transformers does: with the same whitespace rules, functions and extensions."""
    import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        """{% generation %}...{% endgeneration %}: the body between two marks, as text that is scored."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            marks = [nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (OPEN_MARK, CLOSE_MARK)]
            return [marks[0], *body, marks[1]]

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = _sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.date(*DATE).strftime(form)
    return environment.from_string(source)


if __name__ == "__main__":
    _work(sys.stdin, sys.stdout)
