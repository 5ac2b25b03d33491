"""The model card of an export: numbers of the run, nothing of this machine, and no markup of others."""

from __future__ import annotations

import json
import re

import pytest
from helpers.report_runs import make_run, panel_of
from helpers.task_rows import favour, write_tasks

import vdengine as vd
from vdengine.drift import load_history
from vdengine.drift.capability_log import CapabilityLog
from vdengine.errors import InputError
from vdengine.report.card import card
from vdengine.report.figures import STYLE
from vdengine.tasks.task import load_tasks
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer

PANEL = panel_of(2, 12)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    where = tmp_path_factory.mktemp("card")
    sft = make_run(where / "sft", PANEL, total=8, every=4, objective="sft", source="org/data@main:train", judges=())
    make_run(where / "dpo", PANEL, total=8, every=2, seed=1, after=sft, judges=(), source=str(where / "secret.jsonl"))
    return where


def front(text: str) -> dict:
    """The front matter: YAML whose values are JSON."""
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1]
    return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in head.splitlines())}


def test_numbers_are_those_of_the_analysis(chain):
    """Guards the table: before, after and shift of the lead, by topic, and each stage beside the whole."""
    pytest.importorskip("matplotlib")
    files = card(chain / "dpo", 8)
    text = files["README.md"].decode()
    assert set(files) == {"README.md", "drift.png", "drift.svg"} and files["drift.png"].startswith(b"\x89PNG")
    assert "![Shifts by topic over the run, with 95% intervals](drift.png)" in text
    history = load_history(chain / "dpo")
    analysis = history.analysis("lead")
    row = next(line for line in text.splitlines() if line.startswith("| topic 0 |"))
    shift = analysis.drift("topic 0").magnitude
    levels = analysis.levels["topic 0", "lead"].mean
    for x in (levels[0], levels[-1], shift.mean, shift.low, shift.high):
        assert f"{x:+z.2f}".replace("-", "−") in row
    stages = next(line for line in text.splitlines()[text.splitlines().index(row) :] if line.startswith("| by stage"))
    assert stages == "| by stage | sft | dpo |"
    assert "### Text likelihood" in text and "Fewer than" in text  # 12 probes a topic: a caveat
    assert STYLE["svg.fonttype"] == "path"


def test_front_matter(chain, tmp_path):
    """Guards what the hub reads: a local base is no id of a model, a data set of the hub is one; the license is the
    base model's own, or the user's."""
    head = front(card(chain / "dpo", 8)["README.md"].decode())
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "datasets": ["org/data"],
        "tags": ["vdengine", "value-drift", "sft", "dpo"],
    }
    recipe = chain / "sft" / "recipe.toml"
    old = recipe.read_text()
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    recipe.write_text(old.replace('"tiny-llama"', json.dumps(str(tmp_path))))
    assert front(card(chain / "dpo", 8)["README.md"].decode())["license"] == "apache-2.0"
    recipe.write_text(old.replace('"tiny-llama"', '"org/base@v1"'))
    head = front(card(chain / "dpo", 8, "mit")["README.md"].decode())
    assert (head["base_model"], head["base_model_relation"], head["license"]) == ("org/base", "finetune", "mit")
    recipe.write_text(old)


def test_front_matter_of_an_adapter(chain):
    """Guards how the hub says to load it: with PEFT, onto the model of its own stage, not that of the first one."""
    recipes = [chain / stage / "recipe.toml" for stage in ("sft", "dpo")]
    old = [recipe.read_text() for recipe in recipes]
    for recipe, text, base in zip(recipes, old, ("org/base", "org/sft"), strict=True):
        recipe.write_text(text.replace('"tiny-llama"', json.dumps(base)))
    head = front(card(chain / "dpo", 8, adapter=True)["README.md"].decode())
    for recipe, text in zip(recipes, old, strict=True):
        recipe.write_text(text)
    assert (head["library_name"], head["base_model"], head["base_model_relation"]) == ("peft", "org/sft", "adapter")


def test_nothing_of_this_machine_and_no_token(chain, tmp_path):
    """Guards privacy: paths are cut to their ends, and what looks like a token is not published."""
    recipe = chain / "dpo" / "recipe.toml"
    old = recipe.read_text()
    recipe.write_text(old + '\n[log]\ntrackers = ["hf_abcdefghijklmnopqrstuvwxyz"]\n')
    text = card(chain / "dpo", 8)["README.md"].decode()
    recipe.write_text(old)
    assert str(chain) not in text and "secret.jsonl" in text
    assert "hf_abcdefghijklmnopqrstuvwxyz" not in text and "hf_***" in text


def test_texts_of_others_are_no_markup(tmp_path):
    """Guards the page on the hub against a panel or a recipe that writes to it."""
    bad = "</details><img src=x> | [a](http://x) `b` ```"
    run = make_run(tmp_path / "run", panel_of(1, 6, text=bad), total=4, every=2, answers=False, source=bad)
    text = card(run, 4)["README.md"].decode()
    outside = re.sub(r"(`{3,})toml\n.*?\n\1\n", "", text, flags=re.DOTALL)
    assert "<img" not in outside and not re.search(r"(?<!\\)\]\(http", outside)
    assert not re.search(r"(?<!\\)`", outside)
    assert re.search(r"^````+toml$", text, re.MULTILINE)  # a fence longer than the recipe's own
    lines = outside.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| --- |"):
            columns = {len(re.findall(r"(?<!\\)\|", row)) for row in lines[number - 1 : number + 3]}
            assert len(columns) == 1, lines[number - 1 : number + 3]


def test_no_value_of_an_earlier_recipe_is_markup(chain):
    """Guards the table of stages: every value that it shows may be a text in a recipe that was not checked."""
    recipe = chain / "sft" / "recipe.toml"
    old, bad = recipe.read_text(), json.dumps("<img src=x onerror=alert(1)> | a")
    text = re.sub(r"^(steps|seed|name) = .*$", lambda m: f"{m[1]} = {bad}", old, flags=re.MULTILINE)
    recipe.write_text(f"{text}\n[batch]\nexamples = {bad}\n\n[optimizer]\nlr = {bad}\n")
    page = card(chain / "dpo", 8)["README.md"].decode()
    recipe.write_text(old)
    outside = re.sub(r"(`{3,})toml\n.*?\n\1\n", "", page.split("\n---\n", 1)[1], flags=re.DOTALL)
    row = next(line for line in outside.splitlines() if line.startswith("| sft |"))
    assert "<img" not in outside and row.count("&lt;img") == 5 and len(re.findall(r"(?<!\\)\|", row)) == 8


def test_a_checkpoint_in_the_middle(chain):
    """Guards an earlier step's card against what was sampled later."""
    text = card(chain / "dpo", 4)["README.md"].decode()
    shift = load_history(chain / "dpo")
    values = shift.analysis("lead").values
    at = int((values.steps == 12).argmax())
    mean = (values.channels["lead"][at] - values.channels["lead"][0])[values.member("topic 0")].mean()
    row = next(line for line in text.splitlines() if line.startswith("| topic 0 |"))
    assert f"{mean:+z.2f}".replace("-", "−") in row and "| 4 of 8 |" in text


def test_a_run_that_was_not_probed(tmp_path):
    """Guards a card of a run without a panel: it says so."""
    run = make_run(tmp_path / "run", PANEL, total=4, leads=False, openings=False, answers=False, objective="reward")
    files = card(run, 4)
    assert set(files) == {"README.md"} and "This run was not probed." in files["README.md"].decode()
    assert "pipeline_tag" not in front(files["README.md"].decode())


def test_a_run_with_tasks_and_no_panel(tmp_path, tiny_models):
    """Guards a run that scored tasks alone: no panel without a name, and accuracies up to the exported step."""
    run = make_run(tmp_path / "run", PANEL, total=8, leads=False, openings=False, answers=False)
    files = write_tasks(tmp_path)
    renderer = Renderer(vd.load_tokenizer(str(tiny_models["qwen3"])))
    packs = TaskPacks.build(load_tasks([files["facts"]], 4), renderer, 2048)
    log = CapabilityLog.create(run, packs)
    log.append(0, favour(packs, [True, True, False, False]))
    assert "| task | metric | rows | step 0 |\n" in card(run, 4)["README.md"].decode()
    log.append(4, favour(packs, [True, False, False, False]))
    log.append(8, favour(packs, [True] * 4))
    files = card(run, 4)
    text = files["README.md"].decode()
    assert set(files) == {"README.md"} and "This run was not probed." in text
    assert "the panel ." not in text and "Panel ," not in text
    # 2 of 4 and 1 of 4: standard errors are sqrt(1/3 / 4) and sqrt(1/4 / 4), that of the change is sqrt(1/4 / 4)
    moved = CapabilityLog.open(run).change("facts", 0, 4)
    bounds = f"[{moved.low:+.3f}, {moved.high:+.3f}]".replace("-", "−")
    assert "| task | metric | rows | step 0 | step 4 | change |" in text
    assert f"| facts | acc | 4 | 0.500 ± 0.289 | 0.250 ± 0.250 | −0.250 ± 0.250 {bounds} |" in text
    (run / "capability" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="schema"):  # damaged, which is not the same as not there
        card(run, 4)


def test_a_run_with_a_panel_and_tasks(tmp_path, tiny_models):
    """Guards the panel's part against the tasks beside it, at the ends of the run."""
    run = make_run(tmp_path / "run", PANEL, total=4, every=2, answers=False)
    files = write_tasks(tmp_path)
    renderer = Renderer(vd.load_tokenizer(str(tiny_models["qwen3"])))
    packs = TaskPacks.build(load_tasks([files["facts"]], 4), renderer, 2048)
    CapabilityLog.create(run, packs).append(4, favour(packs, [True] * 4))
    text = card(run, 4)["README.md"].decode()
    assert "read on the panel made-up." in text and "Panel made-up, 24 probes" in text and "## Tasks" in text
