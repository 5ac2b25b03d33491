"""Judges of answers, by name:

    rule             readable rules (`judges.rules`); nothing to install, the same everywhere
    model:SOURCE     any model that this engine loads, by the log-probs of the labels (`judges.model`)
    server:MODEL     an OpenAI-compatible server, at OPENAI_BASE_URL or `server:MODEL@URL` (`judges.server`)

and people, through annotation sheets (`judges.people`). Verdicts are kept by `drift.judgements`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdengine.errors import InputError
from vdengine.settings import shown

if TYPE_CHECKING:
    from vdengine.judges.base import Judge, JudgeOptions


def open_judge(name: str, options: JudgeOptions | None = None) -> Judge:
    """The judge of a name: see the module.

    Raises:
        InputError: no such kind; a model that cannot be loaded; a server without a key, or a missing library.
    """
    from vdengine.judges.base import JudgeOptions

    options = options or JudgeOptions()
    kind, _, rest = name.partition(":")
    if name == "rule":
        from vdengine.judges.rules import RuleJudge

        return RuleJudge()
    if kind == "model" and rest:
        from vdengine.judges.model import ModelJudge

        return ModelJudge(rest, options)
    if kind == "server" and rest:
        from vdengine.judges.server import ServerJudge

        return ServerJudge(rest, options)
    # What follows the colon is not shown: there may be a password in it.
    raise InputError(f"unknown judge {shown(kind)}; there are rule, model:SOURCE and server:MODEL[@URL]")
