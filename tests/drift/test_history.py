"""Several stages as one history: nothing is lost at an edge, and the whole is the sum of its stages."""

import json

import numpy as np
import pytest
from helpers.report_runs import make_run, panel_of

from vdengine.drift import load_history, load_run
from vdengine.drift.history import tell_apart
from vdengine.errors import InputError

PANEL = panel_of(2, 12)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """SFT of 20 steps, DPO of 12 after it, and PPO of 8 after that."""
    where = tmp_path_factory.mktemp("chain")
    sft = make_run(where / "sft", PANEL, total=20, every=5, objective="sft")
    dpo = make_run(where / "dpo", PANEL, total=12, every=4, seed=1, strength=-0.03, after=sft)
    make_run(where / "ppo", PANEL, total=8, every=4, seed=2, objective="ppo", after=dpo)
    return where


def test_the_whole_is_the_sum_of_its_stages(chain):
    """Guards the joint: probes' shifts add up over the stages, in every channel of what is read by log-prob."""
    history = load_history(chain / "ppo")
    assert [(s.name, s.first, s.last) for s in history.stages] == [("sft", 0, 20), ("dpo", 20, 32), ("ppo", 32, 40)]
    assert history.total_steps == 40 and not any("first sample" in note for note in history.notes)
    for key in ("lead", "text_likelihood"):
        analysis = history.analysis(key)
        assert analysis.values.steps.tolist() == [0, 5, 10, 15, 20, 24, 28, 32, 36, 40]
        for topic in ("all", *analysis.topics):
            stages = [stage.run.analysis(key).drift(topic).magnitude.mean for stage in history.stages]
            assert analysis.drift(topic).magnitude.mean == pytest.approx(sum(stages), abs=1e-9)
            assert max(map(abs, stages)) > 0 or topic == "topic 1"


def test_a_stage_is_its_run_alone(chain):
    """Guards the stage's own baseline and length."""
    history, alone = load_history(chain / "ppo"), load_run(chain / "dpo")
    for key in alone.views:
        of_stage = history.stages[1].run.analysis(key)
        assert of_stage.drifts == alone.analysis(key).drifts
    assert load_history(chain / "sft").stages == []


def test_answers_go_on_over_the_edge(chain):
    """Guards the answers: one anchor at an edge, the later stage's, each with its own verdicts."""
    history, parts = load_history(chain / "ppo"), [load_run(chain / name) for name in ("sft", "dpo", "ppo")]
    assert history.answers.anchors == [0, 10, 20, 28, 32, 36, 40]
    at_edge = [i for i, a in enumerate(history.answers.answers) if a.anchor == 20]
    first = [i for i, a in enumerate(parts[1].answers.answers) if a.anchor == 0]
    np.testing.assert_array_equal(history.stances["rule"][at_edge], parts[1].stances["rule"][first])
    values = history.analysis("answers:rule").values
    assert values.anchors[values.kinds == "anchor"].tolist() == history.answers.anchors
    beside = history.lead_values(judge="rule")
    np.testing.assert_allclose(beside.channels["lead"][-1], parts[2].lead_values(judge="rule").channels["lead"][-1])


def test_tables_have_the_stages(chain):
    """Guards the steps of rows: of the history, whatever the row is of; raw rows once."""
    history = load_history(chain / "dpo")
    rows = history.rows("curves")
    assert {row["stage"] for row in rows} == {None, "sft", "dpo"}
    assert {row["step"] for row in rows if row["stage"] == "dpo"} >= {20, 24, 28, 32}
    rows = [r for r in history.rows("magnitudes") if r["stage"] == "dpo" and r["frac95_step"] is not None]
    assert rows and all(20 < r["frac95_step"] <= 32 and 0 < r["frac95_fraction"] <= 1 for r in rows)
    assert {row["stage"] for row in history.rows("leads")} == {"sft", "dpo"}
    assert len(history.rows("training")) == sum(len(s.run.rows("training")) for s in history.stages)
    assert load_run(chain / "dpo").rows("curves")[0].keys() >= {"run", "step"} - {"stage"}
    baseline = load_history(chain / "dpo", baseline=20)
    assert baseline.analysis("lead").drift().magnitude.mean == pytest.approx(
        history.stages[1].run.analysis("lead").drift().magnitude.mean
    )


def test_an_edge_that_is_none(chain, tmp_path):
    """Guards a history of a stage that was trained again, or of another panel."""
    sft = make_run(tmp_path / "sft", PANEL, total=8, every=4, answers=False)
    make_run(tmp_path / "dpo", PANEL, total=8, every=4, seed=1, answers=False, after=chain / "sft")
    recipe = tmp_path / "dpo" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(chain / "sft"), str(sft)))
    assert any(
        "dpo: the first sample differs from the last one of sft" in n for n in load_history(tmp_path / "dpo").notes
    )
    other = make_run(tmp_path / "other", panel_of(2, 6), total=8, every=4, answers=False)
    recipe.write_text(recipe.read_text().replace(str(sft), str(other)))
    with pytest.raises(InputError, match="were probed with different panels; report them apart"):
        load_history(tmp_path / "dpo")


def test_saved_models_are_stages(tmp_path):
    """Guards the picture of public stages: each from the last model before it, several models of a stage together."""
    run = make_run(tmp_path / "scored", PANEL, total=3, every=1, answers=False)
    (run / "recipe.toml").unlink()
    (run / "metrics.jsonl").unlink()
    names = ["base", "sft", "sft", "dpo"]
    models = {str(k): {"model": f"org/m@{name}-{k}", "stage": name} for k, name in enumerate(names)}
    (run / "models.json").write_text(json.dumps(models))
    history = load_history(run)
    assert [(s.name, s.first, s.last) for s in history.stages] == [("sft", 0, 2), ("dpo", 2, 3)]
    assert list(history.models.values()) == ["m@base-0", "m@sft-1", "m@sft-2", "m@dpo-3"]
    whole = history.analysis("lead").drift().magnitude.mean
    assert whole == pytest.approx(sum(s.run.analysis("lead").drift().magnitude.mean for s in history.stages))
    assert {row["stage"] for row in history.rows("magnitudes")} == {None, "sft", "dpo"}
    (run / "models.json").write_text('{"0": "base", "x": {}, "1": {"model": 3}}')  # of another version, or damaged
    assert load_history(run).stages == []


def test_a_stage_that_is_gone(chain, tmp_path):
    """Guards the report of what is left, with a word on what is not there."""
    make_run(tmp_path / "dpo", PANEL, total=4, every=2, answers=False, after=chain / "sft")
    recipe = tmp_path / "dpo" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(chain / "sft"), str(tmp_path / "none")))
    run = load_history(tmp_path / "dpo")
    assert run.stages == [] and any("shown without the stages before it" in note for note in run.notes)


def test_names_that_tell_apart():
    """Guards two stages with one name."""
    assert tell_apart(["a/sft", "b/dpo"]) == ["sft", "dpo"]
    assert tell_apart(["a/export", "b/export"]) == ["a/export", "b/export"]
