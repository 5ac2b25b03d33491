"""Tokenised rows: what is in a store, what is dropped, and its content hash."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.stores import ByteRenderer, ByteTokenizer, Rendered, build, pair, write

from vdengine.data.formats import read
from vdengine.data.locate import resolve
from vdengine.data.store import DTYPES, Store
from vdengine.errors import InputError
from vdengine.files import digest, json_hash
from vdengine.trees import Tree, pack, pack_store


def text(ids: list[int]) -> str:
    return ByteTokenizer().decode(ids)


ROWS = [pair("q", "yes", "no"), pair("q", "a", "a"), pair("why?", "because", "no idea")]


def test_trees_are_the_rendered_rows(tmp_path: Path) -> None:
    """Guards against offsets that mix up trees, branches, masks or row numbers."""
    store = build(write(tmp_path / "a.jsonl", ROWS), tmp_path)
    assert len(store) == 2 and store.dropped == {"chosen equals rejected": 1}
    renderer = ByteRenderer()
    for i, row in enumerate((ROWS[0], ROWS[2])):
        messages = [{"role": "user", "content": row["prompt"]}]
        answers = [{"role": "assistant", "content": row[side]} for side in ("chosen", "rejected")]
        rendered = renderer.response_tree(messages, answers)
        assert store.tree(i) == Tree(*rendered, id=i)
        assert store.num_tokens[i] == len(rendered.prompt) + sum(map(len, rendered.branches))
        assert store.num_scored[i] == sum(map(len, rendered.branches))
    assert store.row_index.tolist() == [0, 2]
    assert store.where(1) == f"{tmp_path / 'a.jsonl'} row 3"
    assert store.max_token_id == ord("y") + 3
    assert store.summary().splitlines() == [
        f"{tmp_path / 'a.jsonl'} (preference): 3 rows, 2 examples, 40 tokens",
        "  dropped 1: chosen equals rejected",
    ]


def test_pack_of_the_store_is_the_pack_of_its_trees(tmp_path: Path) -> None:
    """Guards against a store layout that the native assembly reads otherwise."""
    store = build(write(tmp_path / "a.jsonl", ROWS), tmp_path)
    native, python = pack_store(store.arrays(), [1, 0]), pack([store.tree(1), store.tree(0)])
    for name in ("tokens", "positions", "kv_index", "rows", "targets", "branch_offsets", "tree_ids"):
        assert getattr(native, name).tolist() == getattr(python, name).tolist()


def test_several_sources_keep_their_ranges(tmp_path: Path) -> None:
    """Guards against weights and messages that are applied to another source's rows."""
    a = write(tmp_path / "a.jsonl", ROWS)
    b = write(tmp_path / "b.jsonl", ROWS[:1])
    store = build([a, b], tmp_path)
    assert store.source_start.tolist() == [0, 2, 3]
    assert [store.source_of(i) for i in range(3)] == [0, 0, 1]
    assert store.where(2) == f"{b} row 1"
    assert [info.rows for info in store.sources] == [3, 1]


def test_sft_kinds(tmp_path: Path) -> None:
    """Guards against conversations of several trees that lose their row, and preference data that trains on the
    rejected answer."""
    turns = [{"role": role, "content": c} for role, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    store = build(write(tmp_path / "a.jsonl", [{"messages": turns}] * 2), tmp_path, kind="sft")
    assert store.row_index.tolist() == [0, 0, 1, 1]
    assert [text(store.tree(i).prompt) for i in (0, 1)] == ["<s>u:a\na:", "<s>u:a\na:b\nu:c\na:"]
    store = build(write(tmp_path / "b.jsonl", ROWS), tmp_path, kind="sft")
    assert [[text(b) for b in store.tree(i).branches] for i in range(len(store))] == [["yes</s>"], ["because</s>"]]


def test_prompts_are_trees_without_branches(tmp_path: Path) -> None:
    """Guards against prompts that hold an answer, and counts that are those of a neighbour (an empty group of
    np.add.reduceat takes the next one's value)."""
    path = write(tmp_path / "a.jsonl", [{"prompt": "why?"}, {"prompt": " "}, {"prompt": "q"}, {"prompt": "why?"}])
    pairs = write(tmp_path / "b.jsonl", ROWS[:1])
    store = build([path, pairs], tmp_path, kind="prompts")
    assert [text(store.prompt(i)) for i in range(len(store))] == [
        "<s>u:why?\na:", "<s>u:q\na:", "<s>u:why?\na:", "<s>u:q\na:",
    ]  # fmt: skip
    assert store.row_index.tolist() == [0, 2, 3, 0] and store.dropped == {"empty prompt": 1}
    assert store.tree_start.tolist() == [0] * 5 and len(store.branch_len) == 0
    assert store.num_tokens.tolist() == store.prompt_len.tolist() == [10, 7, 10, 7]
    assert store.num_scored.tolist() == [0] * 4 and store.num_scored.dtype == np.int64
    assert store.margin.tolist() == [1.0] * 4
    assert store.kind == "prompts" and store.where(3) == f"{pairs} row 1"
    assert store.summary().splitlines()[0] == f"{path} (prompt): 4 rows, 3 examples, 27 tokens"
    with pytest.raises(InputError, match="^tree 1: no branch"):
        store.tree(1)
    for kind in ("sft", "preference"):
        other = build(pairs, tmp_path, kind=kind)
        assert other.hash != build(pairs, tmp_path, kind="prompts").hash
        assert other.prompt(0) == other.tree(0).prompt == store.prompt(3)
    write(tmp_path / "a.jsonl", [{"prompt": "refuse"}])
    with pytest.raises(InputError) as caught:
        build(path, tmp_path, kind="prompts")
    assert str(caught.value) == f"{path} line 1: the chat template refuses: roles must alternate"


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_overlong_prompts(tmp_path: Path, overlong: str) -> None:
    """Guards against a prompt that is cut, and so loses the header that the answer follows."""
    path = write(tmp_path / "a.jsonl", [{"prompt": "q" * n} for n in (9, 10, 11)])
    store = build(path, tmp_path, kind="prompts", max_tokens=16, overlong=overlong)
    assert store.prompt_len.tolist() == [15, 16] and store.dropped == {"prompt too long": 1}


def test_margins(tmp_path: Path) -> None:
    """Guards against margins that slip to another row when one is dropped, and a margin of its own for SFT."""
    rows = [row | {"margin": k / 4} for k, row in enumerate(ROWS)]
    path = write(tmp_path / "a.jsonl", [*rows, ROWS[0]])
    store = build(path, tmp_path)
    assert store.margin.dtype == np.float32
    assert store.margin.tolist() == [0.0, 0.5, 1.0]
    assert build(path, tmp_path, kind="sft").margin.tolist() == [1.0] * 3


def test_overlong_rows(tmp_path: Path) -> None:
    """Guards against a response cut to nothing (a NaN in DPO), and rows that exceed `max_tokens`."""
    rows = [
        pair("0123456789", "a", "b"),  # the prompt is 16 tokens
        pair("q", "a" * 40, "b"),
        pair("q", "same start" + "a" * 30, "same start" + "b" * 30),
        pair("q", "yes", "no"),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    store = build(path, tmp_path, max_tokens=16)
    assert store.row_index.tolist() == [3]
    assert store.dropped == {"prompt too long": 1, "too long": 2}
    store = build(path, tmp_path, max_tokens=17, overlong="truncate")
    assert store.row_index.tolist() == [0, 1, 3]
    # 17 - 7 tokens of prompt: the shared beginning is all that is left of the third row.
    assert store.dropped == {"chosen equals rejected": 1}
    assert store.sources[0].truncated == 2 and "  cut to max_tokens: 2" in store.summary()
    assert [text(b) for b in store.tree(0).branches] == ["a", "b"]
    assert [text(b) for b in store.tree(1).branches] == ["a" * 10, "b</s>"]
    assert all(store.prompt_len[t] + store.branch_len[2 * t : 2 * t + 2].max() <= 17 for t in range(3))


def test_no_row_left(tmp_path: Path) -> None:
    """Guards against a run over nothing, and against a half-written store behind the error."""
    path = write(tmp_path / "a.jsonl", [pair("q", "a", "a"), pair("q", "a" * 80, "b")])
    with pytest.raises(InputError) as caught:
        build(path, tmp_path / "cache")
    assert str(caught.value) == (
        f"{path}: no usable row (dropped chosen equals rejected: 1, too long: 1 for data.max_tokens = 64 (the longest "
        "has 88; 88 would keep 100% of them))"
    )
    assert list((tmp_path / "cache" / "store").iterdir()) == []


def test_broken_row_leaves_nothing_behind(tmp_path: Path) -> None:
    """Guards against a store of the rows before the broken one, which a second run would open."""
    path = tmp_path / "a.jsonl"
    write(path, ROWS)
    path.write_text(path.read_text() + "{")
    with pytest.raises(InputError, match="a.jsonl line 4: broken JSON"):
        build(str(path), tmp_path / "cache")
    write(path, [pair("refuse", "a", "b")])
    with pytest.raises(InputError) as caught:
        build(str(path), tmp_path / "cache")
    assert str(caught.value) == f"{path} line 1: the chat template refuses: roles must alternate"
    assert list((tmp_path / "cache" / "store").iterdir()) == []


def test_hash_covers_what_decides_the_content(tmp_path: Path) -> None:
    """Guards against a stale store when any input changes, and against tokenising twice when none does."""
    path = write(tmp_path / "a.jsonl", ROWS)
    first = ByteRenderer()
    store = build(path, tmp_path, first)
    again = ByteRenderer()
    assert build(path, tmp_path, again).hash == store.hash
    assert first.calls == 3 - 1 and again.calls == 0
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_bytes(Path(path).read_bytes())
    same = build(str(renamed), tmp_path, again)
    assert same.hash == store.hash and again.calls == 0
    assert same.sources[0].name == str(renamed)
    others = [
        build(path, tmp_path, kind="sft"),
        build(path, tmp_path, max_tokens=63),
        build(path, tmp_path, overlong="truncate"),
        build(path, tmp_path, ByteRenderer("other template")),
        build([path, path], tmp_path),
        build(write(tmp_path / "c.jsonl", ROWS[::-1]), tmp_path),
    ]
    assert len({store.hash, *(other.hash for other in others)}) == 7


def test_leftovers_of_killed_builds(tmp_path: Path) -> None:
    """Guards against a disk that fills with half-written stores, and against removing one being written."""
    path = write(tmp_path / "a.jsonl", ROWS)
    store = build(path, tmp_path)
    shutil.rmtree(store.folder)
    dead, alive = (store.folder.with_name(f"{store.hash}.{name}.partial") for name in ("dead", "alive"))
    dead.mkdir()
    alive.mkdir()
    fd = os.open(alive, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as a process that writes it does
    build(path, tmp_path)
    os.close(fd)
    assert {p.name for p in (tmp_path / "store").iterdir()} == {store.hash, alive.name}


@pytest.mark.parametrize("damaged", [False, True])
def test_same_store_made_by_another_run(tmp_path: Path, damaged: bool) -> None:
    """Guards against a failed run when two runs tokenise the same data at once, and against the slower one that removes
    what the faster one has made: also where both began because the store was damaged."""
    path = write(tmp_path / "a.jsonl", ROWS)
    if damaged:
        damage(build(path, tmp_path).folder / "tokens.npy", 150)
    made = []

    class Slow(ByteRenderer):
        def response_tree(self, messages: list[dict[str, str]], responses: list[Any]) -> Rendered:
            if not made:
                made.append(build(path, tmp_path).folder.stat().st_ino)  # the other run, faster
            return super().response_tree(messages, responses)

    store = build(path, tmp_path, Slow())
    assert len(store) == 2 and [p.name for p in (tmp_path / "store").iterdir()] == [store.hash]
    assert made == [store.folder.stat().st_ino]


def damage(path: Path, at: int) -> None:
    """Change a byte of a file, whose size and time stay."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("how", ["cut", "remove", "zero", "bit", "margin", "manifest", "count", "list", "unfinished"])
def test_damaged_store_is_rebuilt(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against training on a store that a full disk, a copy or a disk fault has changed, its sizes kept, and
    against building it again without a word."""
    path = write(tmp_path / "a.jsonl", ROWS)
    store = build(path, tmp_path)
    expected, tokens, manifest = store.tree(1), store.folder / "tokens.npy", store.folder / "manifest.json"
    if how == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif how == "remove":
        tokens.unlink()
    elif how == "zero":
        tokens.write_bytes(bytes(tokens.stat().st_size))
    elif how == "bit":
        damage(tokens, tokens.stat().st_size - 1)
    elif how == "margin":
        damage(store.folder / "margin.npy", 130)
    elif how == "manifest":
        manifest.write_text('{"hash": ')
    elif how == "count":
        manifest.write_text(manifest.read_text().replace('"max_token_id": 124', '"max_token_id": 125'))
    elif how == "list":
        manifest.write_text("[]")
    else:
        manifest.unlink()
    with pytest.raises(InputError, match="not a whole store"):
        Store.open(store.folder)
    renderer = ByteRenderer()
    assert build(path, tmp_path, renderer).tree(1) == expected
    assert renderer.calls == 2
    assert [p.name for p in (tmp_path / "store").iterdir()] == [store.folder.name]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (how != "unfinished") and all("it is built again" in line for line in said)


def reseal(folder: Path, **changes: Any) -> None:
    """Write a store's manifest for the arrays that are there, as whoever changed them would."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    del manifest["check"]
    manifest["bytes"] = {name: (folder / f"{name}.npy").stat().st_size for name in DTYPES}
    manifest["hashes"] = {name: digest(folder / f"{name}.npy") for name in DTYPES}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"check": json_hash(manifest)}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokens", lambda a: a - 10, "tokens.npy has other ids than 0 to 124"),
        ("tokens", lambda a: np.append(a[:-1], np.int32(125)), "tokens.npy has other ids than 0 to 124"),
        ("tokens", lambda a: a.astype(np.int64), "tokens.npy is no array of int32 in one dimension"),
        ("scored", lambda a: a[:-1], "scored.npy has"),
        ("prompt_start", lambda a: a + 2**62, "beyond the tokens"),
        ("prompt_len", lambda a: a - 2**62, "beyond the tokens"),
        ("branch_len", lambda a: a + (a == a.max()) * 2**40, "beyond the tokens"),
        ("branch_scored", lambda a: a + 100, "more than a branch has"),
        ("tree_start", lambda a: a[::-1], "does not count the branches"),
        ("row_index", lambda a: a - 5, "that no row has"),
        ("margin", lambda a: a * np.nan, "that no row has"),
        (None, b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i4',\n", "not a usable array"),
        ("max_token_id", 200, "tokens.npy has other ids than 0 to 200"),
        ("max_token_id", 2**40, "it has the token id 1099511627776; the model has the ids 0 to 258"),
        ("kind", "sft", "says that it is of kind 'sft'"),
        ("inputs", {}, "another one than its name says"),
        ("sources", [], "says that there are 0 trees of 2"),
        ("sources", [{"name": 1}], "TypeError"),
    ],
)
def test_a_store_of_someone_else_fits_together(
    tmp_path: Path, name: str | None, change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the kernels against a store in a shared cache whose hashes are right and whose indexes or ids are not: one
    line, and it is built again."""
    path = write(tmp_path / "a.jsonl", ROWS)
    store = build(path, tmp_path)
    expected, file = store.tree(1), store.folder / f"{name}.npy"
    if name is None:
        (store.folder / "tokens.npy").write_bytes(change)
    elif name in DTYPES:
        array = np.load(file)
        changed = change(array)
        np.save(file, changed if changed.dtype == np.int64 else changed.astype(array.dtype))
    reseal(store.folder, **({} if name is None or name in DTYPES else {name: change}))
    with pytest.raises(InputError, match="not a whole store") as caught:
        Store.open(store.folder, vocab_size=259)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert build(path, tmp_path, vocab_size=259).tree(1) == expected
    assert capsys.readouterr().err.count("it is built again") == 1


def test_ids_are_those_of_the_model(tmp_path: Path) -> None:
    """Guards the embedding against ids that the model does not have, on ranks too that read no hashes."""
    store = build(write(tmp_path / "a.jsonl", ROWS), tmp_path)
    assert Store.open(store.folder, verify=False, vocab_size=125).max_token_id == 124
    with pytest.raises(InputError, match="has the token id 124; the model has the ids 0 to 123"):
        Store.open(store.folder, verify=False, vocab_size=124)
    (store.folder / "margin.npy").unlink()
    os.mkfifo(store.folder / "margin.npy")
    with pytest.raises(InputError, match="margin.npy: not a regular file"):
        Store.open(store.folder)


def test_a_complete_cache_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a cache on a read-only file system: complete, it is used; else one line names the folder, as for a full
    disk, and nothing of the attempt is left."""
    path = write(tmp_path / "a.jsonl", ROWS)
    store = build(path, tmp_path)
    monkeypatch.setattr("vdengine.data.building.partial", lambda *args, **kwargs: pytest.fail("writes into the cache"))
    assert build(path, tmp_path).tree(1) == store.tree(1)
    monkeypatch.undo()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vdengine.data.storefolder.ArrayFile._flush", full)
    with pytest.raises(InputError) as caught:
        build(path, tmp_path, ByteRenderer("other"))
    folder = tmp_path / "store"
    assert str(caught.value) == (
        f"{folder}: cannot be written (No space left on device); make room there, or name another folder (data.cache)"
    )
    assert [p.name for p in folder.iterdir()] == [store.hash]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    for cache in ("file", "x" * 300, "\0", "~nobody-here"):
        with pytest.raises(InputError, match="cannot be written|is no folder that could be made") as caught:
            build(path, Path(cache) if cache[0] == "~" else tmp_path / cache)
        assert "\n" not in str(caught.value)


def test_sources_that_change_while_they_are_read(tmp_path: Path) -> None:
    """Guards the store's name: the hash of one content on the rows of another would be opened for ever after."""
    path = Path(write(tmp_path / "a.jsonl", ROWS))

    class Writing(ByteRenderer):
        def response_tree(self, messages: list[dict[str, str]], responses: list[Any]) -> Rendered:
            other = path.with_suffix(".new")
            other.write_text(path.read_text().replace("because", "therefore"))
            os.replace(other, path)
            return super().response_tree(messages, responses)

    with pytest.raises(InputError, match=r"a.jsonl: changed while it was read; start again$"):
        build(str(path), tmp_path, Writing())
    assert list((tmp_path / "store").iterdir()) == []


def test_far_too_long_texts_are_not_tokenised(tmp_path: Path) -> None:
    """Guards against minutes for one text of megabytes: it is dropped and counted unseen, or cut before it is cut in
    tokens; never a text that might fit, such as one with much white space around it."""
    huge = "x" * 100_000
    rows = [pair("q", huge, "no"), pair(huge, "yes", "no"), pair("q", "yes" + " " * 1000, "no")]
    path = write(tmp_path / "a.jsonl", [*rows, pair("q", "b" * 100, "no")])

    class Counting(ByteRenderer):
        def response_tree(self, messages: list[dict[str, str]], responses: list[Any]) -> Rendered:
            assert all(len(m["content"]) < 2000 for m in [*messages, *responses])
            return super().response_tree(messages, responses)

    store = build(path, tmp_path, Counting())
    reason = "too long to be tokenised (a text of more than 192 bytes)"
    assert store.row_index.tolist() == [2] and store.dropped == {reason: 2, "too long": 1}
    assert store.summary().splitlines()[1:] == [
        "  dropped 1: too long for data.max_tokens = 64 (the longest has 108; 108 would keep 100% of them)",
        f"  dropped 2: {reason}",
    ]
    store = build(path, tmp_path, Counting(), overlong="truncate", reserved=6)
    assert store.row_index.tolist() == [0, 2, 3] and store.dropped == {reason: 1}
    assert text(store.tree(0).branches[0]) == "x" * 57
    lengths = [pair("q", "b" * n, "no") for n in (60, 70, 80, 150)]
    store = build(write(tmp_path / "b.jsonl", [ROWS[0], *lengths]), tmp_path, reserved=6)
    assert store.sources[0].overlong == (
        " for data.max_tokens = 70 (the longest has 164; 84 would keep 50%, 164 would keep 100% of them)"
    )


def test_what_was_not_read_is_said(tmp_path: Path) -> None:
    """Guards against columns and keys that vanish: each name stands once in the summary."""
    rows = [pair("q", "yes", "no") | {"id": 3, "lang": "en", "empty": None} for _ in range(3)]
    rows[2] |= {"score_chosen": 3.0, "source": "web"}
    summary = build(write(tmp_path / "a.jsonl", rows), tmp_path).summary().splitlines()
    assert summary[1:] == [
        "  1 rows: margin 1: only one of score_chosen and score_rejected is there",
        "  columns not read: id, lang, source",
    ]
    rows = [pair("q", "yes", "no") | {f"c{i}": 1 for i in range(11)}]
    assert build(write(tmp_path / "b.jsonl", rows), tmp_path).summary().endswith("c7 and 3 more")


def test_turns_that_are_not_trained_on(tmp_path: Path) -> None:
    """Guards the way of the marks and of the thinking from the row into the arrays."""
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "train": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "reasoning": "hm"},
    ]
    store = build(write(tmp_path / "a.jsonl", [{"messages": turns}]), tmp_path, kind="sft")
    assert [text(b) for b in store.tree(0).branches] == ["<hm>d</s>"] and len(store) == 1
    sides = [[turns[0], {"role": "assistant", "content": "b", "thinking": t}] for t in ("x", "y")]
    store = build(write(tmp_path / "b.jsonl", [{"chosen": sides[0], "rejected": sides[1]}]), tmp_path)
    assert [text(b) for b in store.tree(0).branches] == ["<x>b</s>", "<y>b</s>"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    """Guards against orphans that hold memory, and the lock of a store that nobody writes."""
    path = write(tmp_path / "a.jsonl", [pair(f"question {i}", "yes", "no") for i in range(300)])
    code = f"""
import os, sys, time
sys.path[:0] = {[str(Path(__file__).parent.parent)]!r}
import vdengine.data.building as building
from helpers.stores import ByteRenderer, build
class Stuck(ByteRenderer):
    def response_tree(self, messages, responses):
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)
building.MIN_ROWS = 1
build({path!r}, {str(tmp_path)!r}, Stuck(), workers=2)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline()) for _ in range(2)}
    assert len(workers) == 2 and parent.pid not in workers
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == ""  # ends when no process holds the pipe any more
    build(path, tmp_path)
    assert [p.suffix for p in (tmp_path / "store").iterdir()] == [""]


def test_more_rows_than_a_buffer(tmp_path: Path) -> None:
    """Guards against rows lost where the writer flushes, and against a header of the wrong length."""
    rows = [pair(f"question {i}", "x" * (i % 30), f"answer {i}") for i in range(3000)]
    store = build(write(tmp_path / "a.jsonl", rows), tmp_path)
    assert len(store) == 2900 and store.dropped == {"empty response": 100}
    assert len(store.tokens) > 1 << 16
    for i in (0, 1450, 2899):
        row = rows[store.row_index[i]]
        assert [text(b) for b in store.tree(i).branches] == [row["chosen"] + "</s>", row["rejected"] + "</s>"]
    assert isinstance(store.tokens, np.memmap)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_worker_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an order that depends on which process is faster, and against errors lost in a worker."""
    monkeypatch.setattr("vdengine.data.building.MIN_ROWS", 100)
    rows = [pair(f"question {i}", "x" * (i % 30), f"answer {i}") | {"margin": i / 7} for i in range(500)]
    path = write(tmp_path / "a.jsonl", rows)
    one, two = (build(path, tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert one.hash == two.hash and one.dropped == two.dropped
    for file in sorted(one.folder.iterdir()):
        assert file.read_bytes() == (two.folder / file.name).read_bytes()
    write(tmp_path / "a.jsonl", [*rows[:400], pair("refuse", "a", "b"), *rows[400:]])
    with pytest.raises(InputError) as caught:
        build(path, tmp_path / "2", workers=2)
    assert str(caught.value) == f"{path} line 401: the chat template refuses: roles must alternate"


def test_real_hh_rlhf_store(shared_data: Path, tmp_path: Path) -> None:
    """Guards against an end-to-end path that works on toy rows only: 2,308 real pairs, byte tokens."""
    store = build(str(shared_data / "hh_rlhf"), tmp_path, max_tokens=100_000)
    assert len(store) == 2308
    assert int(store.num_tokens.sum()) == len(store.tokens)
    assert int(store.num_scored.sum()) == int(np.asarray(store.scored).sum())
    prompts = build(str(shared_data / "hh_rlhf"), tmp_path, max_tokens=100_000, kind="prompts")
    # Also of the four rows whose second answer is empty.
    assert len(prompts) == 2312 and int(prompts.num_tokens.sum()) == len(prompts.tokens)
    at = np.searchsorted(prompts.row_index, store.row_index)
    assert all(prompts.prompt(int(k)) == store.prompt(i) for i, k in enumerate(at))


@pytest.mark.parametrize("name, end", [("qwen3", "<|im_end|>"), ("llama3", "<|eot_id|>")])
def test_real_rows_with_real_templates(
    shared_data: Path, tmp_path: Path, real_tokenizer: Any, name: str, end: str
) -> None:
    """Guards against sources, renderer and store that fit each other in stand-ins only: 40 rows of two real sets."""
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(real_tokenizer(name)))
    renderer = Renderer(tokenizer)
    with gzip.open(shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz", "rt") as file:
        pairs = [json.loads(line) for line in islice(file, 40)]
    store = build(write(tmp_path / "hh.jsonl", pairs), tmp_path, renderer, max_tokens=2048)
    assert len(store) == 40
    for i, row in enumerate(pairs):
        tree = store.tree(i)
        assert tree.scored == [[True] * len(branch) for branch in tree.branches]
        for branch, side in zip(tree.branches, ("chosen", "rejected"), strict=True):
            answer = row[side].rpartition("\n\nAssistant:")[2].strip()
            assert tokenizer.decode(branch).endswith(f"{answer}{end}")
        assert tokenizer.decode(tree.prompt).rstrip().endswith("assistant" + "<|end_header_id|>" * (name == "llama3"))
        bos = [] if tokenizer.bos_id is None else [k for k, t in enumerate(tree.prompt) if t == tokenizer.bos_id]
        assert bos == ([0] if name == "llama3" else [])
    prompts = build(write(tmp_path / "hh.jsonl", pairs), tmp_path, renderer, max_tokens=2048, kind="prompts")
    assert [prompts.prompt(i) for i in range(40)] == [
        renderer.prompt_ids(row.example.messages)  # type: ignore[union-attr]
        for row in read(resolve(str(tmp_path / "hh.jsonl")), "hh_rlhf", "prompts", Counter())
    ]
    chats = json.loads((shared_data / "alpaca" / "alpaca_en_demo.json").read_text())[:40]
    store = build(write(tmp_path / "alpaca.jsonl", chats), tmp_path, renderer, max_tokens=2048, kind="sft")
    for i, row in enumerate(chats):
        assert tokenizer.decode(store.tree(i).branches[0]).endswith(f"{row['output']}{end}")
