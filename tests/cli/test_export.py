"""`vdengine export`: checkpoints of a run as Hugging Face folders."""

import json
import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest
from safetensors.torch import load_file

from vdengine.cli.export import main
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_the_newest_and_a_named_step(run, tmp_path, capsys):
    """Guards the tensors: the newest is the run's own export to the bit, an earlier step has other weights; dtype; what
    is there already is replaced if it is an export."""
    own = load_file(run / "export" / "model.safetensors")
    shutil.rmtree(run / "export")
    assert main([str(run)]) == 0 and "step 4: " in capsys.readouterr().out
    newest = load_file(run / "export" / "model.safetensors")
    assert newest.keys() == own.keys() and all(newest[name].equal(own[name]) for name in own)
    assert main(["--dtype", "bfloat16", str(run), "2"]) == 0 and "export-2" in capsys.readouterr().out
    earlier = load_file(run / "export-2" / "model.safetensors")
    assert {str(t.dtype) for t in earlier.values()} == {"torch.bfloat16"}
    assert any(not earlier[name].equal(own[name].bfloat16()) for name in own)
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 4", "steps = 9"))  # it is training still
    (run / "export").rename(tmp_path / "done")
    assert main([str(run)]) == 0 and "step 4: " in capsys.readouterr().out
    assert (run / "export-4" / "model.safetensors").exists() and not (run / "export").exists()
    (tmp_path / "done").rename(run / "export")
    assert main([str(run), "2", "--to", str(run / "export")]) == 0
    again = load_file(run / "export" / "model.safetensors")
    assert all(again[name].bfloat16().equal(earlier[name]) for name in own)


def test_the_runs_template_goes_with_it(run, tmp_path):
    """Guards the words: the template that the run trained with, and the tokens that end its turns."""
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('template = "auto"', f'template = "{template}"'))
    assert main([str(run), "--to", str(tmp_path / "out")]) == 2  # another template than the run's
    inputs = json.loads((run / "inputs.json").read_text())
    source = next(line.split('"')[1] for line in recipe.read_text().splitlines() if line.startswith("source ="))
    inputs["model.tokenizer or data.template"] = Renderer(load_tokenizer(source), template=str(template)).hash
    (run / "inputs.json").write_text(json.dumps(inputs))
    assert main([str(run), "--to", str(tmp_path / "out")]) == 0
    assert load_tokenizer(str(tmp_path / "out")).chat_template == template.read_text()
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert 256 in (ends if isinstance(ends, list) else [ends])  # <|endoftext|>


def test_what_is_refused(run, tmp_path, capsys):
    """Guards one line: no run, no such step, a word for a step, a folder that is no export, damaged checkpoints."""
    lines = (run / "recipe.toml").read_text().splitlines()
    source = next(line.split('"')[1] for line in lines if line.startswith("source ="))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("do not lose")
    for words, said in (
        ([str(tmp_path / "none")], "not the folder of a run"),
        ([str(run), "3"], "no checkpoint of step 3; there are 2, 4"),
        ([str(run), "newest"], "STEP is the number of a step"),
        ([str(run), "--to", str(full)], "thesis.tex"),
        ([str(run), "--dtype", "int8"], "int8"),
        ([str(run), "--to", source], "which the run reads"),
        ([str(run), "--to", f"{source}/export"], "which the run reads"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and error.startswith("error: ") and "\n" not in error, error
    for folder in (run / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{}")
    assert main([str(run)]) == 2 and "no whole checkpoint" in capsys.readouterr().err
    assert (full / "thesis.tex").exists()


def test_a_card_goes_with_it(run, tmp_path, capsys):
    """Guards the card as a part of the export: there, and replaced with it by the next one."""
    assert main([str(run), "--to", str(tmp_path / "out"), "--license", "mit"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name") and 'license: "mit"' in text and "## Value drift" in text
    assert main([str(run), "2", "--to", str(tmp_path / "out")]) == 0
    assert "at step 2" in (tmp_path / "out" / "README.md").read_text()
    load_tokenizer(str(tmp_path / "out"))


def test_push(run, tmp_path, capsys, monkeypatch):
    """Guards the order and the secret: the repository is asked for before the weights are written, the export's files
    alone are uploaded, and the token is in no output and no file."""
    secret, calls = "hf_" + "s3cr3t" * 5, []
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    class Api:
        def create_repo(self, repo, **options):
            calls.append(("create", repo, (tmp_path / "out").exists()))

        def upload_folder(self, **options):
            calls.append(("upload", options["commit_message"], sorted(options["allow_patterns"])))
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert main([str(run), "--push", "org/name", "--to", str(tmp_path / "out"), "--message", "first"]) == 0
    out = capsys.readouterr()
    assert "pushed: https://hub/commit" in out.out
    assert calls == [
        ("create", "org/name", False), ("upload", "first", sorted(p.name for p in (tmp_path / "out").iterdir())),
    ]  # fmt: skip
    written = [p for folder in (tmp_path / "out", run) for p in folder.rglob("*") if p.is_file()]
    assert secret not in out.out + out.err and not [p for p in written if secret.encode() in p.read_bytes()]
    for words, said in (
        ([str(run), "--token", secret, "--push", "org/name"], "a token is not taken on the command line"),
        ([str(run), f"--token={secret}"], "a token is not taken on the command line"),
        ([str(run), "--push", secret], "a token is not taken on the command line"),
        ([str(run), "--private"], "--private has no effect without --push"),
        ([str(run), "--message", "x"], "--message has no effect without --push"),
        ([str(run), "--push", "name"], "write org/name"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1 and secret not in error


def test_what_cannot_be_pushed_makes_no_repository(run, tmp_path, capsys, monkeypatch):
    """Guards the hub against an empty repository of a failed push, and an adapter's config against the path of a base
    that nobody else has."""
    calls = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: calls.append("asked"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("do not lose")
    before = sorted(path.name for path in run.iterdir())

    def refused(said, *words):
        assert main([str(run), *words, "--push", "org/new"]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1, error

    refused("no whole checkpoint of step 999; there are 2, 4", "999")
    refused("thesis.tex", "--to", str(full))
    (run / "adapter_config.json").write_text("{}")
    refused("is on this machine alone, so nobody else could load it: push the merged model: --merge")
    (run / "adapter_config.json").unlink()
    for folder in (run / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{}")
    refused("no whole checkpoint; there are none")
    assert not calls and sorted(path.name for path in run.iterdir()) == before
