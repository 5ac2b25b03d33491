"""`vdengine train` as a user meets it: one line per error, a non-zero exit, nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import tables

from vdengine.recipe import make_recipe, to_toml
from vdengine.train import main


@pytest.fixture
def recipe(tmp_path, tiny_models) -> Path:
    """A recipe that works, on a tiny model."""
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": "yes it is", "rejected": f"no {i}"} for i in range(12)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    t = tables(tmp_path, str(tiny_models["llama"]), str(data), "run")
    t["run"]["steps"] = 2
    t["checkpoint"]["export"] = True
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(make_recipe(t)))
    return path


def nothing_begun(folder: Path) -> bool:
    """Whether a run folder is not there, or has only been locked."""
    return not folder.exists() or set(os.listdir(folder)) <= {"lock"}


def damaged(folder: Path, source: Path, name: str, change) -> Path:
    """A copy of a model folder with one file changed."""
    folder.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(change(content) if file.name == name else content)
    return folder


def config_with(**values):
    return lambda content: json.dumps(json.loads(content) | values).encode()


CASES = {
    "unknown model type": ("config.json", config_with(model_type="mamba"), "model_type"),
    "weights cut short": ("model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors"),
    "vocabulary too small": ("config.json", config_with(vocab_size=200), "model.embed_tokens.weight has shape"),
    "template scores nothing": (
        "tokenizer_config.json",
        config_with(chat_template="{{ messages[0].content }}"),
        "template",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_damaged_models(case, recipe, tmp_path, tiny_models, capsys):
    """Guards model folders from outside: one line that names the file or key; no run begins."""
    name, change, word = CASES[case]
    folder = damaged(tmp_path / "damaged", tiny_models["llama"], name, change)
    assert main([str(recipe), f"model.source={folder}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and word in error, error
    assert nothing_begun(tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.source=no-such-org/no-such-model", "no-such-org/no-such-model"),
        ("data.train=none.jsonl", "none.jsonl"),
        ("data.format=alpaca", "alpaca"),
        ("probes.panel=value-mini", "nearest: values-mini"),
        ("parallel.replicate=3", "replicate = 3"),
    ],
)
def test_bad_values(override, message, recipe, tmp_path, capsys):
    """Guards keys that only the run can check."""
    assert main([str(recipe), override]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error, error
    assert nothing_begun(tmp_path / "run")


def test_a_budget_below_the_longest_tree(recipe, tmp_path, capsys):
    """Guards rows whose branches fit one by one, but not together: the row, its length and the budget."""
    long = {"prompt": "a question", "chosen": "yes " * 10, "rejected": "no " * 12}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n")
    keys = [f"data.train={tmp_path / 'long.jsonl'}", "data.template=plain", "data.max_tokens=70", "batch.tokens=70"]
    assert main([str(recipe), *keys]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: batch.tokens: ") and "long.jsonl" in error and "budget of 70" in error, error
    assert nothing_begun(tmp_path / "run")


def test_broken_json_and_panel_lines(recipe, tmp_path, capsys):
    """Guards files with a bad line: the line's number is in the error."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    assert main([str(recipe), f"data.train={tmp_path / 'bad.jsonl'}"]) == 2
    assert "bad.jsonl" in (error := capsys.readouterr().err.strip().splitlines()[-1]) and "2" in error
    (tmp_path / "panel.jsonl").write_text('{"id": "x"}\n')
    assert main([str(recipe), f"probes.panel={tmp_path / 'panel.jsonl'}"]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_whole_run_and_its_resume(recipe, tmp_path, capsys):
    """Guards the main path: plan, lines, table, files; run again it has nothing left to train."""
    assert main([str(recipe)]) == 0
    out = capsys.readouterr().out
    for expected in (
        "model ",
        "probes  values-mini: 48 probes",
        "step 2/2",
        "The side that an answer begins with",
        "Text likelihood",
        "Done in",
    ):
        assert expected in out
    assert {"recipe.toml", "metrics.jsonl", "drift", "checkpoints", "export", "log.txt"} <= set(
        os.listdir(tmp_path / "run")
    )
    assert main([str(recipe)]) == 0
    assert "all 2 steps are done already" in capsys.readouterr().out
    assert main([str(recipe), "run.resume=false"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3, 0), (0, 3, 1, 2), (3, 0, 1, 2)])
def test_show_batch(order, recipe, tmp_path, capsys):
    """Guards the look at the data: labels and texts, no training, and words in any order."""
    words = [str(recipe), "--show-batch", "2", f"data.cache={tmp_path / 'cache'}"]
    assert main([words[i] for i in order]) == 0
    out = capsys.readouterr().out
    assert "chosen" in out and "rejected" in out and "yes it is" in out


@pytest.mark.slow
def test_an_error_on_two_ranks_ends_both(recipe, tmp_path):
    """Guards against a rank that waits for one that has gone: rank 0 fails while it tokenises."""
    (tmp_path / "bad.jsonl").write_text("{\n")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "vdengine.train",
    ]
    done = subprocess.run(
        [*command, str(recipe), f"data.train={tmp_path / 'bad.jsonl'}"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "error (rank 0): " in done.stderr and "bad.jsonl" in done.stderr


@pytest.fixture
def stages(recipe, tmp_path, tiny_models) -> list[str]:
    """Recipes of three stages, each after the one before."""
    paths = []
    for name, before in (("sft", None), ("dpo", "sft"), ("simpo", "dpo")):
        t = tables(tmp_path, str(tiny_models["llama"]), str(tmp_path / "pairs.jsonl"), name)
        t["run"]["steps"], t["checkpoint"]["export"], t["objective"] = 2, True, {"name": name}
        if before:
            t["run"]["after"] = str(tmp_path / before)
            del t["model"]["source"]
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(to_toml(make_recipe(t)))
    return [str(path) for path in paths]


@pytest.mark.slow
def test_stages_in_one_command(stages, tmp_path, capfd):
    """Guards the pipeline: errors in the last recipe are said before the first trains, each stage goes on from the one
    before, the same command again goes on where it was, and bits do not depend on how often it was given."""
    sft, dpo, simpo = stages
    assert main([sft, dpo, simpo, "optimizer.lr=-1"]) == 2 and "optimizer.lr" in capfd.readouterr().err
    bad = Path(simpo).read_text()
    Path(simpo).write_text(bad.replace('panel = "values-mini"', 'panel = "controls"'))
    assert main(stages) == 2
    assert "probes.panel: controls is another panel than that of" in capfd.readouterr().err
    assert nothing_begun(tmp_path / "sft")
    Path(simpo).write_text(bad)
    assert main([sft, dpo]) == 0
    out = capfd.readouterr().out
    assert "the first sample is the last one of sft, to the bit" in out and "shift by stage" in out
    assert main(stages) == 0
    out = capfd.readouterr().out
    assert f"{tmp_path / 'sft'}: finished already" in out and f"{tmp_path / 'dpo'}: finished already" in out
    assert "stage   3, after sft, dpo: steps 5 to 6 of their history" in out
    assert main([*stages, "optimizer.lr=1e-7"]) == 2  # of a finished run: not passed over, but refused
    assert "optimizer.lr" in capfd.readouterr().err
    once = {name: (tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("dpo", "simpo")}
    for name in ("sft", "dpo", "simpo"):
        (tmp_path / name).rename(tmp_path / f"{name}-before")
    assert main(stages) == 0
    assert once == {name: (tmp_path / name / "export" / "model.safetensors").read_bytes() for name in once}


def test_what_several_recipes_may_not_be(stages, recipe, capfd):
    """Guards one line: a wrong order, a folder for all, a folder twice, a word that is neither."""
    sft, dpo, simpo = stages
    for words, said in (
        ([dpo, sft], "is to be named after that one's"),
        ([*stages, "run.folder=x"], "run.folder belongs to one recipe: 3 are named"),
        ([sft, sft], "have one run.folder"),
        ([sft, "notes.txt"], "notes.txt is no recipe (.toml), and no override"),
        ([sft, dpo, "--show-batch", "2"], "--show-batch takes one recipe"),
        ([dpo], "no such folder"),
    ):
        assert main(words) == 2
        error = capfd.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_stages_on_two_ranks(stages, tmp_path):
    """Guards several recipes under torchrun: they share one process group, as a rank that is early would else wait for
    the addresses of the last one's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*command, "vdengine.train", *stages[:2]], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "dpo" / "export" / "model.safetensors").exists()
    assert "the first sample is the last one of sft" in done.stdout
