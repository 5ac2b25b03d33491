"""Rows in memory as a source: the same store as from a file, and the same messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.stores import ByteRenderer, build, pair, write

from vdengine.data.building import build_store
from vdengine.data.memory import rows_in_memory
from vdengine.data.store import Store
from vdengine.errors import InputError
from vdengine.trees import Tree

ROWS = [pair("q", "yes", "no"), pair("q", "a", "a"), pair("why?", "because", "no idea")]
TREES = [Tree([1, 5], [[7, 2], [8, 9, 2]], [[True, True], [False, True, True]]), Tree([1], [[4], [5]], id=77)]


def store_of(rows: Any, cache: Path, kind: str = "preference", **changes: Any) -> Store:
    options: dict[str, Any] = {"max_tokens": 64, "cache": cache, "progress": False} | changes
    return build_store(
        [rows_in_memory(rows, "data", 300)], options.pop("formats", "auto"), kind, ByteRenderer(), **options
    )


class Lazy:
    """A data set whose rows are made when they are asked for, as those of `datasets`."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.made = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        for row in self.rows:
            self.made += 1
            yield dict(row) | {"embedding": object()}  # a column that no format has


def test_the_store_is_that_of_the_file(tmp_path: Path) -> None:
    """Guards rows in memory against being read otherwise than rows in a file; and a generator, which can be read
    once, as well as a data set, of whose unknown columns nothing is read."""
    from_file = build(write(tmp_path / "a.jsonl", ROWS), tmp_path)
    for rows in (ROWS, Lazy(ROWS), (row for row in ROWS)):
        store = store_of(rows, tmp_path)
        assert [store.tree(i) for i in range(len(store))] == [from_file.tree(i) for i in range(len(from_file))]
        assert store.dropped == from_file.dropped and store.where(1) == "data row 3"
    assert store.summary().splitlines()[0] == "data (preference): 3 rows, 2 examples, 40 tokens"


def test_a_data_set_of_datasets(tmp_path: Path) -> None:
    """Guards `datasets.Dataset`, its rows lists of messages too."""
    datasets = pytest.importorskip("datasets")
    chat = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": a}]} for a in "abc"]
    found = store_of(datasets.Dataset.from_list(chat), tmp_path / "a", kind="sft")
    assert [found.tree(i) for i in range(3)] == [store_of(chat, tmp_path / "b", kind="sft").tree(i) for i in range(3)]
    with pytest.raises(InputError, match="data: a DatasetDict of train, test; give one sequence of rows"):
        rows_in_memory(datasets.DatasetDict({"train": [], "test": []}), "data", 300)


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    """Guards resume and the caches: equal rows are one store, whatever holds them; other rows, or another order of
    them, another one."""
    digest = lambda rows: rows_in_memory(rows, "data", 300).digest()  # noqa: E731
    assert digest(ROWS) == digest(Lazy(ROWS)) == digest([dict(reversed(row.items())) for row in ROWS])
    assert (
        len({digest(ROWS), digest(ROWS[::-1]), digest(ROWS[:2]), digest([*ROWS[:2], pair("why?", "because", "no")])})
        == 4
    )
    masked = Tree(TREES[0].prompt, TREES[0].branches)
    shifted = Tree([1, 5, 7], [[2], [8, 9, 2]])
    assert len({digest([tree]) for tree in (TREES[0], TREES[1], masked, shifted)}) == 4
    assert digest(TREES) == digest([Tree(t.prompt, t.branches, t.scored, id=3) for t in TREES])
    assert store_of(ROWS, tmp_path).folder == store_of(Lazy(ROWS), tmp_path).folder


def test_trees_are_stored_as_they_are(tmp_path: Path) -> None:
    """Guards token ids and masks on their way into the store; ids are rows of the store."""
    store = store_of(TREES, tmp_path)
    assert store.tree(0) == Tree(TREES[0].prompt, TREES[0].branches, TREES[0].scored, id=0)
    assert store.tree(1) == Tree([1], [[4], [5]], [[True], [True]], id=1)
    assert store_of(TREES, tmp_path, max_tokens=4).dropped == {"too long": 1}
    cut = store_of(TREES, tmp_path, max_tokens=4, overlong="truncate")
    assert cut.tree(0).branches == [[7, 2], [8, 9]] and cut.sources[0].truncated == 1


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([], "sft", "data: no rows"),
        ("rows.jsonl", "sft", r"data: text; rows are dictionaries or trees \(files are named in the recipe"),
        ({"train": [], "test": []}, "sft", "data: a dict of train, test; give one sequence of rows"),
        (3, "sft", "data: a int; an iterable of dictionaries or trees is needed"),
        ([pair("q", "a", "b"), "x"], "preference", "data row 2: a row must be a dictionary, .* this one is text"),
        ([pair("q", "a", "b"), TREES[0]], "preference", "data row 2: a row must be a dictionary, .* is a tree"),
        ([pair("q", "a", "b") | {"margin": b"1"}], "preference", "data row 1: rows hold text, numbers, lists"),
        ([pair("q", "a", "b"), {"prompt": "q"}], "preference", "data row 2: field 'chosen' is missing; format pref"),
        ([{"text": "q"}], "sft", r"data row 1: the fields \(text\) fit no format; SFT reads messages|preference"),
        ([TREES[0], pair("q", "a", "b")], "preference", "data row 2: the first row is a tree, this one is not"),
        (TREES, "sft", "data row 1: a tree of 2 branches; an answer is 1"),
        (TREES, "prompts", "data: trees have their answers already, and prompts are needed; give rows of text"),
        ([Tree([1], [[2], [3], [4]])], "preference", "data row 1: a tree of 3 branches; a preference pair has 2"),
        ([TREES[0], Tree([1], [[2], [300]])], "preference", "data row 2: token id 300; the model has the ids 0 to 299"),
        ([Tree([-1], [[2], [3]])], "preference", "data row 1: token id -1; the model has"),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path: Path, rows: Any, kind: str, message: str) -> None:
    """Guards the messages: which row, what is wrong with it, what is allowed; in one line."""
    with pytest.raises(InputError, match=message) as error:
        store_of(rows, tmp_path, kind=kind)
    assert "\n" not in str(error.value)


def test_a_format_may_be_named(tmp_path: Path) -> None:
    """Guards data.format: rows that fit two formats need it, trees have none."""
    both = [
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "prompt": "q",
            "completion": "b",
        }
    ]
    with pytest.raises(InputError, match="data row 1: the fields .* fit several formats"):
        store_of(both, tmp_path, kind="sft")
    assert store_of(both, tmp_path, kind="sft", formats="prompt_completion").sources[0].format == "prompt_completion"
    with pytest.raises(InputError, match="data.format: 'alpaca' does not fit data; leave it 'auto'"):
        store_of(TREES, tmp_path, formats="alpaca")


def test_rows_are_not_kept(tmp_path: Path) -> None:
    """Guards the memory of a large data set: it is gone through for the hash, the first row and the tokens, and a
    store that is there already is opened after the hash alone."""
    rows = Lazy(ROWS)
    store_of(rows, tmp_path)
    first, rows.made = rows.made, 0
    store_of(rows, tmp_path)
    assert first == len(ROWS) * 2 + 2 and rows.made == len(ROWS) + 2  # and the first row twice: kind, format


def test_a_store_without_rows() -> None:
    """Guards a run that is given each step's rows: there is a store, it has none, and it can be asked."""
    store = Store.empty("preference")
    assert len(store) == 0 and store.summary() == "no rows" and store.num_tokens.tolist() == []
