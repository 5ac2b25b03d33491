"""Task files: what is read, and what is refused by name."""

from __future__ import annotations

import pytest
from helpers.task_rows import write_rows, write_tasks

from vdengine.errors import InputError
from vdengine.tasks.task import Task
from vdengine.tasks.task_files import MAX_FILES, read_task_file

GOOD = """\
task: t
dataset_path: json
dataset_kwargs: {data_files: rows.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: q
doc_to_choice: c
doc_to_target: a
"""


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"q": "Two?", "c": ["a", "b"], "a": 1}] * 3)
    return tmp_path


def read(folder, text, name="task.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return read_task_file(folder / name)


CODE = "!function utils.go"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (f"process_docs: {CODE}", r"process_docs is code \(!function utils.go\), .* never run: write the"),
        (f"doc_to_text: {CODE}", r"doc_to_text is code .* jinja2 template"),
        (f"fewshot_config: {{samples: {CODE}}}", "fewshot_config is code"),
        (f"metric_list: [{{metric: {CODE}}}]", "metric_list is code"),
        (f"process_results: {CODE}", "process_results is code .* only tasks without code"),
        ("custom: !!python/object/apply:os.system [ls]", "not a usable YAML file"),
        ("output_type: generate_until", "output_type is 'generate_until'; only multiple_choice"),
        ("output_type: guess", "output_type is 'guess'; only multiple_choice"),
        ("output_type: null", "output_type is 'generate_until'"),
        ("group: mmlu", "a group of tasks; name the files of its tasks"),
        ("task: [a, b]", "a group of tasks"),
        ("gen_prefix: So", "'gen_prefix' is not supported; read are task,"),
        ("filter_list: [x]", "'filter_list' is not supported"),
        ("repeats: 3", "repeats is 3; only 1 is supported"),
        ("metric_list: [{metric: f1}]", "metric 'f1' is not supported; allowed are acc, acc_norm, acc_bytes"),
        ("metric_list: [{metric: acc, aggregation: median}]", "aggregation is 'median'; only mean"),
        ("metric_list: acc", "metric_list must be a list"),
        ("num_fewshot: -1", "num_fewshot is -1; a whole number"),
        ("fewshot_config: {sampler: balanced}", "sampler is 'balanced'; allowed are default and first_n"),
        ("fewshot_config: {fewshot_indices: [1]}", "fewshot_config.fewshot_indices is not supported"),
        ("test_split: null", "no test_split and no validation_split"),
        ("test_split: dev", "data_files has no split 'dev'; it has train"),
        ("dataset_kwargs: {data_dir: x}", "dataset_kwargs.data_dir is not supported"),
        ("dataset_kwargs: {data_files: gone.jsonl}", "gone.jsonl: no such file"),
        ("dataset_path: null", "dataset_path is missing"),
        ("dataset_path: 3", "dataset_path is 3; it must be text"),
        ("description: &x [*x]", "not supported|not a usable"),
        ("doc_to_text: [unclosed", "not a usable YAML file"),
        ("include: gone.yaml", "gone.yaml: no such file"),
        ("include: task.yaml", "in a circle"),
    ],
)  # fmt: skip
def test_refusals(folder, changes, said):
    """Guards one line for code, an unknown output type, and what would change a result silently."""
    key = changes.split(":")[0]
    kept = "".join(line + "\n" for line in GOOD.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(InputError, match=said) as error:
        read(folder, kept + changes + "\n")
    assert "\n" not in str(error.value) and "task.yaml" in str(error.value) or "gone" in said


def test_a_key_twice_and_a_file_of_another_kind(folder):
    """Guards a second value that would replace the first, a list in place of keys, and nesting without end."""
    with pytest.raises(InputError, match="'task' stands twice"):
        read(folder, GOOD + "task: other\n")
    with pytest.raises(InputError, match="has keys and values"):
        read(folder, "- a\n- b\n")
    with pytest.raises(InputError, match="task.yaml: not a usable"):
        read(folder, "a: " + "[" * 100_000)


def test_included_files(folder):
    """Guards a base file: its keys count where the file that includes it has none; code that is replaced is none."""
    (folder / "base").write_text(GOOD.replace("task: t", "tag: x") + "process_docs: !function utils.go\n")
    config = read(folder, "include: base\ntask: own\nprocess_docs: null\ndoc_to_target: '{{a}}'\n")
    assert config.name == "own" and config.fields["doc_to_target"] == "{{a}}" and len(config.docs) == 3
    with pytest.raises(InputError, match="process_docs is code"):
        read(folder, "include: base\ntask: own\n")


def test_notes_have_no_effect(folder):
    """Guards task files of the wild, whose notes and names change nothing."""
    notes = (
        "tag: x\ntask_alias: y\nmetadata: {version: 1.0}\nshould_decontaminate: true\ndoc_to_decontamination_query: q\n"
    )
    assert read(folder, GOOD + notes + "repeats: 1\n").docs == read(folder, GOOD).docs


def test_parquet_rows(folder):
    """Guards columns of a table that training data does not have: all of them are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"q": ["Two?"], "c": [["a", "b"]], "a": [1], "picture": [b"\x89PNG"]})
    pq.write_table(table, folder / "rows.parquet")
    text = GOOD.replace("path: json", "path: parquet").replace("rows.jsonl", "rows.parquet")
    (folder / "task.yaml").write_text(text)
    row = Task.load(folder / "task.yaml").rows[0]
    assert (row.text, row.choices, row.gold) == ("Two?", ("a", "b"), (1,))


def test_torch_is_not_needed(tmp_path):
    """Guards two seconds to the first error: a task is read before torch is."""
    import subprocess
    import sys

    path = write_tasks(tmp_path)["facts"]
    code = (
        f"import sys; from vdengine.tasks.task import Task; Task.load({str(path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_include_bomb(folder):
    """Guards files that each include the next one ten times: without a bound on all of them 10^5 are read."""
    for i in range(5):
        (folder / f"b{i}.yaml").write_text(f"include: [{', '.join([f'b{i + 1}.yaml'] * 10)}]\n")
    (folder / "b5.yaml").write_text("tag: x\n")
    with pytest.raises(InputError, match=f"include: more than {MAX_FILES} files"):
        read(folder, "include: b0.yaml\n" + GOOD)


@pytest.mark.parametrize("name", ['"a\\0b"', "~nosuchuser/x", "x" * 5000, "loop"])
@pytest.mark.parametrize("key", ["include", "data_files"])
def test_names_that_are_no_path(folder, key, name):
    """Guards one line that names the key for a file that this machine cannot look up."""
    (folder / "loop").symlink_to("loop")
    text = GOOD.replace("rows.jsonl", name) if key == "data_files" else f"{GOOD}include: {name}\n"
    with pytest.raises(InputError, match=rf"task\.yaml: {key}: .* cannot be read") as error:
        read(folder, text)
    assert "\n" not in str(error.value)


def test_halves_of_characters(folder):
    """Guards tokenizers and files against text that they cannot take: in the task's file, its samples, its rows."""
    with pytest.raises(InputError, match="'target_delimiter' has half of a surrogate pair"):
        read(folder, GOOD + 'target_delimiter: "\\udc00"\n')
    with pytest.raises(InputError, match="'fewshot_config' has half"):
        read(folder, GOOD + 'num_fewshot: 1\nfewshot_config: {samples: [{q: "\\udc00"}]}\n')
    (folder / "rows.jsonl").write_text('{"q": "x", "c": ["a", ["\\ud800"]], "a": 1}\n')
    with pytest.raises(InputError, match="rows.jsonl line 1: 'c' has half"):
        read(folder, GOOD)
