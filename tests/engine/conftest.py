"""Results of the scenarios of helpers/runs.py, on one rank and on two; a group is launched when a test asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import GROUPS, ON_TWO
from helpers.scenarios import Result, Scenarios

import vdengine as vd


@pytest.fixture(scope="session")
def one(tmp_path_factory, tiny_models, data) -> Scenarios:
    """Every scenario on one rank."""
    names = [name for group in GROUPS.values() for name in group]
    return Scenarios(1, names, tmp_path_factory.mktemp("one"), tiny_models["qwen3"], data)


@pytest.fixture(scope="session")
def two(tmp_path_factory, tiny_models, data) -> Scenarios:
    """Those of ON_TWO on two ranks."""
    return Scenarios(2, ON_TWO, tmp_path_factory.mktemp("two"), tiny_models["qwen3"], data)


@pytest.fixture(params=(pytest.param(1, id="1 rank"), pytest.param(2, id="2 ranks", marks=pytest.mark.slow)))
def runs(request, one, two) -> Scenarios:
    """Either."""
    return one if request.param == 1 else two


@pytest.fixture(scope="session")
def start(tiny_models: dict[str, Path]) -> Result:
    """The weights that every scenario starts from."""
    model = vd.load_model(str(tiny_models["qwen3"]))
    return {"weights": {n: p.detach() for n, p in model.named_parameters()}}
