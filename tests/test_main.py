"""`vdengine` by itself: its verbs, its version, and words that are none."""

import subprocess
import sys

import pytest

import vdengine
from vdengine.__main__ import VERBS, main


def test_console_command():
    """Guards `python -m vdengine` as a process: verbs on stdout, an error on stderr with status 2."""
    done = subprocess.run([sys.executable, "-m", "vdengine"], capture_output=True, text=True)
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    done = subprocess.run([sys.executable, "-m", "vdengine", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean train?" in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], f"vdengine {vdengine.__version__}"),
        (["-V"], vdengine.__version__),
        (["help"], "verbs:"),
        ([], "verbs:"),
    ],
)
def test_what_it_says_of_itself(words, said, capsys):
    """Guards a version and an overview, however they are asked for."""
    assert main(words) == 0 and said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trian", "did you mean train?"),
        ("Report", "did you mean report?"),
        ("quantum", "verbs: train, check"),
        ("recipes/quickstart.toml", "did you mean: vdengine train recipes/quickstart.toml"),
        ("--panel", "a verb comes first"),
    ],
)
def test_words_that_are_no_verb(word, said, capsys):
    """Guards against a list of verbs in answer to a slip: the word and the nearest verb are named, in one line."""
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert word in error and said in error and error.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    """Guards `VERB --help` and `help VERB`: the same text, with the verb's own name."""
    texts = []
    for words in ([verb, "--help"], ["help", verb]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and f"vdengine {verb}" in texts[0] and "-h, --help" in texts[0]
