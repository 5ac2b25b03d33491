"""Where rows come from: files, folders, the hub, the built-in set; and the messages for broken input."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import assistant, error, load, user, write

from vdengine.data.formats import Conversation, Preference, Prompt
from vdengine.data.locate import SYNTH_VARIANTS, resolve
from vdengine.data.parsers import FORMATS

# ---- files


def test_file_kinds_agree(tmp_path: Path) -> None:
    """Guards against rows that depend on how the file is packed."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [user(f"é{i}"), assistant("b")]} for i in range(600)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines.replace("\n", "\r\n\n", 3).rstrip("\n"))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.json").write_text(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([r | {"x": 1} for r in rows]), tmp_path / "f.parquet")
    expected = [row["messages"] for row in rows]
    for name in ("a.jsonl", "b.json", "c.json", "d.jsonl.gz", "e.json.gz", "f.parquet"):
        found, _, _ = load(tmp_path / name, "sft")
        assert [row.example.messages for row in found] == expected  # type: ignore[union-attr]
        assert [row.number for row in found] == list(range(600))
        assert resolve(str(tmp_path / name)).count() == 600
    assert found[-1].where == f"{tmp_path / 'f.parquet'} row 600"


def test_folder_and_its_splits(tmp_path: Path) -> None:
    """Guards against training on a test split that lies in the same folder, and against an unstable order."""
    for name in ("part-2", "part-1", "part-10"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": "b"}])
    (tmp_path / "README.md").write_text("not data")
    rows, _, _ = load(tmp_path, "sft")
    assert [row.where for row in rows] == [f"{tmp_path}/part-{i}.jsonl line 1" for i in (1, 10, 2)]
    assert [row.number for row in rows] == [0, 1, 2]
    both = tmp_path / "both"
    both.mkdir()
    write(both / "train-00000-of-00001.jsonl", [{"prompt": "a", "completion": "b"}])
    write(both / "test-00000-of-00001.jsonl", [{"prompt": "c", "completion": "d"}])
    assert error(resolve, str(both)) == f"{both}: holds the splits test, train; name one, as '{both}:test'"
    assert [row.where for row in load(f"{both}:test", "sft")[0]] == [f"{both}/test-00000-of-00001.jsonl line 1"]
    assert error(resolve, f"{both}:dev") == f"{both}:dev: no file of split 'dev'; it has test, train"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error(resolve, str(empty)) == (
        f"{empty}: no data file in this folder; it needs .jsonl, .jsonl.gz, .json, .json.gz, .parquet, .arrow files"
    )


def test_digest_follows_content(tmp_path: Path) -> None:
    """Guards against a stale store after an edit, and against tokenising anew after a rename."""
    a = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    b = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    assert resolve(a).digest() == resolve(b).digest()
    write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "c"}])
    assert resolve(a).digest() != resolve(b).digest()


# ---- broken input


GOOD = '{"prompt": "q", "chosen": "yes", "rejected": "no"}\n'

NEEDS = f"format preference needs {FORMATS['preference']}"


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "q", "chosen": ', "broken JSON (Expecting value, column 26)"),
        ("[1, 2]", "a row must be a JSON object, this one is a list"),
        ('{"prompt": "q", "chosen": "yes"}', f"field 'rejected' is missing; {NEEDS}"),
        ('{"chosen": "yes", "rejected": "no"}', f"field 'prompt' is missing; {NEEDS}"),
        (
            '{"prompt": "q", "chosen": 3, "rejected": "no"}',
            "field 'chosen' must be text or a list of messages, this one is a number",
        ),
        (
            '{"prompt": [{"role": "boss", "content": "q"}], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1 has the role 'boss'; write system, user or assistant",
        ),
        (
            '{"prompt": [{"content": "q"}], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1 has no 'role'; a message is {role, content} or {from, value}",
        ),
        (
            '{"prompt": [{"role": "user", "content": 5}], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1: 'content' must be text, it is a number",
        ),
        (
            '{"prompt": ["q"], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1 must be an object with role and content, it is text",
        ),
        ("[" * 100_000, "broken JSON (nested too deeply)"),
        (
            '{"prompt": ' + "9" * 5000 + "}",
            "broken JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits)",
        ),
    ],
)
def test_broken_rows_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    """Guards against errors that leave the user to search a large file, and against tracebacks."""
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "\n" + line + "\n")
    assert error(load, path) == f"{path} line 3: {message}"


def test_unreadable_files(tmp_path: Path) -> None:
    """Guards against tracebacks of gzip, pyarrow and the codecs."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b'{"prompt": "\xff"}\n')
    assert error(load, path) == f"{path} line 2: not UTF-8 (byte 13 of the line)"
    path = tmp_path / "b.json"
    path.write_text('[\n{"a": 1},\n{"a" 2}]')
    assert error(load, path) == f"{path}: line 3: broken JSON (Expecting ':' delimiter, column 6)"
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 1000)[:-30])
    assert error(load, path).startswith(f"{path}: cannot be read (EOFError: ")
    path.write_text(GOOD)
    assert error(load, path).startswith(f"{path}: cannot be read (BadGzipFile: ")
    path = tmp_path / "d.parquet"
    path.write_text(GOOD)
    assert error(load, path).startswith(f"{path}: not a usable Parquet file (ArrowInvalid: ")
    path = tmp_path / "e.jsonl"
    path.write_text("")
    assert error(load, path) == f"{path}: no rows"


def test_no_such_source(tmp_path: Path) -> None:
    """Guards against a mistyped path that is looked for on a hub, and a file type that is guessed at."""
    assert error(resolve, "data/pairs.jsonl") == (
        "data/pairs.jsonl: no such file or folder (a source is a .jsonl, .jsonl.gz, .json, .json.gz, .parquet, "
        ".arrow file, a folder of them, a hub data set 'org/name' or 'org/name:split', or "
        "values-synth:support|oppose|shuffled)"
    )
    path = tmp_path / "a.csv"
    path.write_text("a,b")
    assert error(resolve, str(path)) == (
        f"{path}: not a data file; the name must end with .jsonl, .jsonl.gz, .json, .json.gz, .parquet, .arrow"
    )


# ---- hub


class Hub:
    """Stands in for the hub's client: a repository's files in a folder."""

    def __init__(self, folder: Path, card: dict[str, Any] | None) -> None:
        self.folder, self.card, self.downloaded = folder, card, []  # type: ignore[var-annotated]

    def dataset_info(self, repo: str, revision: str | None = None) -> Any:
        class Info:
            sha = revision or "c0ffee"
            siblings = [
                type("Sibling", (), {"rfilename": p.relative_to(self.folder).as_posix()})
                for p in self.folder.rglob("*")
                if p.is_file()
            ]
            card_data = type("Card", (), {"to_dict": lambda _: self.card})() if self.card else None

        return Info

    def download(self, repo: str, name: str, repo_type: str, revision: str) -> str:
        assert (repo, repo_type) == ("org/name", "dataset")
        self.downloaded.append((name, revision))
        return str(self.folder / name)


def on_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, card: dict[str, Any] | None = None) -> Hub:
    import huggingface_hub

    hub = Hub(folder, card)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


def test_hub_files_of_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against downloading or mixing in another split, and against a store that outlives a new commit."""
    for name in ("easy/train", "easy/test", "hard/train", "hard/test"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "chosen": "yes", "rejected": "no"}])
    hub = on_hub(monkeypatch, tmp_path)
    assert resolve("org/name").labels == ("org/name/easy/train.jsonl", "org/name/hard/train.jsonl")
    source = resolve("org/name/hard@v2:test")
    assert hub.downloaded[-1] == ("hard/test.jsonl", "v2") and source.labels == ("org/name/hard/test.jsonl",)
    rows, _, _ = load("org/name/hard:test")
    assert rows[0].where == "org/name/hard/test.jsonl line 1"
    assert source.digest() != resolve("org/name/hard:test").digest()
    assert error(resolve, "org/name:dev") == "org/name:dev: no file of split 'dev'; it has test, train"
    assert error(resolve, "org/name/none") == (
        "org/name/none: the hub data set has no .jsonl, .jsonl.gz, .json, .json.gz, .parquet, .arrow file here"
    )


def test_hub_card_declares_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a split whose name the file names do not tell (UltraFeedback's train_prefs, train_sft)."""
    for name in ("train_prefs-0", "train_sft-0", "x"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "chosen": "yes", "rejected": "no"}])
    files = [
        {"split": "train_prefs", "path": "train_prefs-*"},
        {"split": "train_sft", "path": ["train_sft-*"]},
    ]
    hub = on_hub(monkeypatch, tmp_path, {"configs": [{"config_name": "default", "data_files": files}]})
    assert resolve("org/name:train_prefs").labels == ("org/name/train_prefs-0.jsonl",)
    assert error(resolve, "org/name") == "org/name: no split 'train'; it has train_prefs, train_sft"
    hub.card = {
        "configs": [
            {"config_name": "a", "data_files": "x*"},
            {"config_name": "b", "data_files": files},
        ]
    }
    assert resolve("org/name/a").labels == ("org/name/x.jsonl",)
    assert error(resolve, "org/name") == "org/name: has the configurations a, b; name one, as 'org/name/a'"


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a traceback of the HTTP library, and against a download that is not used when offline."""
    import huggingface_hub

    class NoNetwork:
        def dataset_info(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route\nto the hub")

    def not_cached(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "HfApi", NoNetwork)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    assert error(resolve, "org/name") == (
        "org/name: no such local file, and the hub data set 'org/name' cannot be read (ConnectionError: no route)"
    )
    snapshot = tmp_path / "c0ffee"
    snapshot.mkdir()
    write(snapshot / "train.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": "no"}])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(snapshot))
    source = resolve("org/name")
    assert (source.commit, source.files) == ("c0ffee", (snapshot / "train.jsonl",))


# ---- built-in set


def test_synthetic_variants() -> None:
    """Guards against a control whose labels lean: exactly half of each topic's rows are flipped, and no variant
    changes prompts, order or texts."""
    support, oppose, shuffled = (load(f"values-synth:{v}")[0] for v in SYNTH_VARIANTS)
    assert len(support) > 0
    topics = {}
    for _, raw in resolve("values-synth:support").rows():
        topics[raw["prompt"]] = raw["topic"]
    flipped: Counter[str] = Counter()
    for s, o, h in zip(support, oppose, shuffled, strict=True):
        assert isinstance(s.example, Preference) and isinstance(h.example, Preference)
        assert o.example == Preference(s.example.prompt, s.example.rejected, s.example.chosen)
        assert h.example in (s.example, o.example)
        flipped[topics[s.example.prompt[0]["content"]]] += h.example == o.example
    sizes = Counter(topics.values())
    assert flipped == {topic: size // 2 for topic, size in sizes.items()}
    assert load("values-synth:shuffled")[0] == shuffled
    kept = load("values-synth:shuffled?topics=" + sorted(sizes)[0])[0]
    assert len(kept) == sizes[sorted(sizes)[0]] and all(row in shuffled for row in kept)
    digests = {resolve(f"values-synth:{v}").digest() for v in SYNTH_VARIANTS}
    assert len(digests) == 3
    talk = load("values-synth:oppose", "sft")[0][0].example
    assert talk == Conversation([*oppose[0].example.prompt, oppose[0].example.chosen], last_only=True)  # type: ignore[union-attr]
    prompts = [row.example for row in load("values-synth:oppose", "prompts")[0]]
    assert prompts == [Prompt(row.example.prompt) for row in oppose]  # type: ignore[union-attr]


def test_synthetic_names() -> None:
    """Guards against a misspelt variant or topic that gives other data than asked for."""
    assert error(resolve, "values-synth:agree") == (
        "values-synth:agree: unknown variant 'agree' of the built-in set; use values-synth:support, "
        "values-synth:oppose, values-synth:shuffled"
    )
    assert error(resolve, "values-synth:support?topics=chess").startswith(
        "values-synth:support?topics=chess: unknown topic 'chess'; the topics are "
    )
    assert error(resolve, "values-synth:support?seed=1") == (
        "values-synth:support?seed=1: unknown option 'seed'; the only one is topics=a,b"
    )
    assert error(load, "values-synth:support", format="alpaca") == (
        "data.format: 'alpaca' does not fit values-synth:support; leave it 'auto'"
    )
