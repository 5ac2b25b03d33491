"""Rows to token ids, in several processes: the trees of each row, in the order of the rows."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from vdengine.data.examples import Conversation, Preference, Prompt
from vdengine.data.formats import Row
from vdengine.errors import InputError
from vdengine.text.renderer import Rendered
from vdengine.trees import Tree

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer


class RenderedRow(NamedTuple):
    """A row's number in its source, its margin (1.0 if it is not a preference pair), whether its answer is a wanted one
    (true if nothing is said of it), and its trees."""

    number: int
    margin: float
    wanted: bool
    trees: list[Rendered]


def render(rows: Iterator[Row], renderer: Renderer, workers: int) -> Iterator[RenderedRow]:
    """The rendered rows, in order.

    Args:
        workers: processes; 1: only this one. The result does not depend on it.

    Raises:
        InputError: the template cannot render a row; it names the row.
        BrokenProcessPool: a worker was killed.
    """
    if workers <= 1:
        for row in rows:
            yield _render_row(row, renderer)
        return
    # The workers are forked, so they have a copy of the renderer. They use nothing else of the parent.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(renderer, os.getpid())) as pool:
        pending: deque[Future[list[RenderedRow]]] = deque()
        try:
            while chunk := list(islice(rows, 32)):
                pending.append(pool.submit(_render_chunk, chunk))
                if len(pending) > 4 * workers:  # bounds the memory of rows that wait
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_renderer: Renderer | None = None  # of a worker process
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _start_worker(renderer: Renderer, parent: int) -> None:
    """Begin a worker process: it keeps the renderer, and dies with its parent, also when that is killed."""
    global _renderer
    _renderer = renderer
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before the call
        os._exit(1)


def _render_chunk(chunk: list[Row]) -> list[RenderedRow]:
    if _renderer is None:
        raise RuntimeError("not a worker process")
    return [_render_row(row, _renderer) for row in chunk]


def _render_row(row: Row, renderer: Renderer) -> RenderedRow:
    margin = row.example.margin if isinstance(row.example, Preference) else 1.0
    wanted = not isinstance(row.example, Conversation) or row.example.wanted is not False
    return RenderedRow(row.number, margin, wanted, _trees(row, renderer))


def _trees(row: Row, renderer: Renderer) -> list[Rendered]:
    """The token ids of a row: one tree, or several of a conversation whose earlier turns the template rewrites.

    Raises:
        InputError: the template cannot render the row; it names the row.
    """
    example = row.example
    if isinstance(example, Tree):
        return [
            Rendered(example.prompt, example.branches, example.scored or [[True] * len(b) for b in example.branches])
        ]
    try:
        if isinstance(example, Prompt):
            return [Rendered(renderer.prompt_ids(example.messages), [], [])]
        if isinstance(example, Preference):
            return [renderer.response_tree(example.prompt, [example.chosen, example.rejected])]
        if example.last_only:
            *prompt, answer = example.messages
            return [renderer.response_tree(prompt, [answer])]
        return renderer.conversation_trees(example.messages)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from error
