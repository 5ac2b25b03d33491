"""`benchmarks/gather.py`, without network: made-up wheels, a made-up tree, and everything that may be missing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gather_script", REPO / "benchmarks" / "gather.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path, script, monkeypatch) -> Path:
    """A small tree in place of this one; it needs `alpha`, and the peer is `beta`."""
    repo = tmp_path / "tree"
    (repo / "vdengine").mkdir(parents=True)
    (repo / "kernels").mkdir()
    (repo / "csrc").mkdir()
    (repo / "vdengine" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (repo / "kernels" / "__init__.py").write_text("NAME = 'kernels of the tree'\n")
    (repo / "csrc" / "module.cpp").write_text("// C++\n")
    (repo / "setup.py").write_text("")
    (repo / "pyproject.toml").write_text(
        '[project]\nname = "vdengine"\ndynamic = ["version"]\ndependencies = ["alpha"]\n'
        '[project.optional-dependencies]\nbench = ["packaging"]\n'
    )
    monkeypatch.setattr(script, "REPO", repo)
    monkeypatch.setattr(script, "PEERS", ("beta",))
    return repo


@pytest.fixture
def index(tmp_path, script, monkeypatch):
    """index(name, version, *needs, tags=...) puts a wheel where the script's downloads come from: newest that fits."""
    folder = tmp_path / "index"
    folder.mkdir()

    def add(name: str, version: str, *needs: str, tags: str = "py3-none-any") -> Path:
        file = folder / f"{name}-{version}-{tags}.whl"
        info = f"{name}-{version}.dist-info"
        metadata = "".join(f"Requires-Dist: {need}\n" for need in needs)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{name}/__init__.py", f"VERSION = {version!r}\n")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
            archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n")
            archive.writestr(f"{info}/RECORD", "")
        return file

    def download(requirement: str, python: str, platforms, into: Path) -> Path:
        wanted = Requirement(requirement)
        fit = [f for f in folder.glob(f"{wanted.name}-*.whl") if wanted.specifier.contains(f.name.split("-")[1])]
        if not fit:
            raise script.Missing(f"No matching distribution found for {requirement}")
        return max(fit, key=lambda f: Version(f.name.split("-")[1]))

    monkeypatch.setattr(script, "download", download)
    return add


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(f"{name}\n")
    return folder


@pytest.fixture
def built(script, monkeypatch) -> Path:
    """In place of a build: the extension that these tests run with."""
    source = Path(importlib.util.find_spec("vdengine._native").origin)

    def build(python: str, into: Path, isolated: bool) -> Path:
        into.mkdir(exist_ok=True)
        return Path(shutil.copy(source, into))

    monkeypatch.setattr(script, "build_native", build)
    return source


def gather(script, tmp_path, *arguments, python=sys.executable, **options) -> tuple[int, dict]:
    into = tmp_path / "carry"
    code = script.main(["--into", str(into), "--python", str(python), *map(str, arguments)])
    manifest = into / "MANIFEST.json"
    return code, json.loads(manifest.read_text()) if manifest.is_file() else {}


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


# ------------------------------------------------------------------------------------------------ versions


def resolved(script, roots: list[str], tree_needs: list[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Versions that are carried, and the lines."""
    tree = script.Wheel("vdengine", Version("1"), tuple(map(Requirement, tree_needs)))
    log, markers = script.Log(), script.target("3.12", "x86_64")

    def fetch(line: str) -> Path:
        return script.download(line, "3.12", [], Path())

    carried = script.resolve([Requirement(r) for r in roots], tree, markers, fetch, log)
    versions = {name: str(wheel.version) for name, wheel in carried.items()}
    return versions, log.lines + script.unmet((tree, *carried.values()), script.ASSUMED | versions, markers)


def test_versions_fit_together(script, index):
    """Guards what travels: the newest of each package, which another one's bounds exclude, would not import there."""
    index("trainer", "1.0", "sets>=2", "numpy>=1.17")
    index("sets", "2.0", "pickles<0.5,>=0.3", "many<0.8")
    index("many", "0.7", "pickles>=0.4")
    index("many", "0.8", "pickles>=0.5")
    for version in ("0.3", "0.4", "0.5"):
        index("pickles", version)
    versions, wrong = resolved(script, ["pickles"], ["trainer"])
    assert versions == {"trainer": "1.0", "sets": "2.0", "many": "0.7", "pickles": "0.4"} and not wrong


def test_conflicts_are_named(script, index, monkeypatch):
    """Guards against a comparison that fails on a rented machine: bounds that nothing meets are said before."""
    monkeypatch.setattr(script, "ASSUMED", {"torch": "2.11.0+cu130", "pandas": ""})
    index("one", "1.0", "shared<2", "torch>=2.11", "pandas>=99")
    index("two", "1.0", "shared>=2", "torch>=2.12", "absent>=3")
    index("shared", "1.5")
    index("shared", "2.5")
    versions, wrong = resolved(script, ["one", "two"])
    assert versions == {"one": "1.0", "two": "1.0"}
    assert sorted(wrong) == [
        "one 1.0 needs shared<2, which is neither carried nor there",
        "two 1.0 needs absent>=3, which is neither carried nor there",
        "two 1.0 needs shared>=2, which is neither carried nor there",
        "two 1.0 needs torch>=2.12, and there is 2.11.0+cu130",
        "wheel of absent>=3: No matching distribution found for absent>=3",
        "wheel of shared<2,>=2: No matching distribution found for shared<2,>=2",
    ]


def test_needs_of_the_target(script, index):
    """Guards against carrying what only other machines or unused extras need, and against leaving out used extras."""
    index("one", "1.0", 'other; platform_system == "Windows"', 'dev; extra == "dev"', "two[fast]")
    index("two", "1.0", 'quick; extra == "fast"', 'old; python_version < "3.12"')
    index("quick", "1.0")
    assert resolved(script, ["one"]) == ({"one": "1.0", "two": "1.0", "quick": "1.0"}, [])


def test_another_version_of_what_is_there(script, index, monkeypatch):
    """Guards --also: what is asked for by name is carried although the target has one, in a version that fits."""
    monkeypatch.setattr(script, "ASSUMED", {"shared": "3.0"})
    index("one", "1.0", "shared<2")
    index("shared", "1.5")
    assert resolved(script, ["one"]) == ({"one": "1.0"}, ["one 1.0 needs shared<2, and there is 3.0"])
    assert resolved(script, ["one", "shared"]) == ({"one": "1.0", "shared": "1.5"}, [])


# -------------------------------------------------------------------------------------------------- gather


def test_gathers(script, tree, index, tokenizer, built, tmp_path, capsys):
    """Guards the manifest, which --install goes by; a compiled wheel is carried and named as such."""
    index("alpha", "1.0", "gamma")
    index("beta", "2.0")
    index("gamma", "3.0", tags="cp312-cp312-manylinux_2_28_x86_64")
    code, manifest = gather(script, tmp_path, "--tokenizer", tokenizer)
    out, err = capsys.readouterr()
    assert code == 0 and err == "" and manifest["skipped"] == []
    assert {name: (w["version"], w["pure"]) for name, w in manifest["wheels"].items()} == {
        "alpha": ("1.0", True), "beta": ("2.0", True), "gamma": ("3.0", False),
    }  # fmt: skip
    assert "gamma 3.0, compiled: gamma-3.0-cp312" in out
    assert manifest["native"]["file"] == built.name and manifest["native"]["sources"] == script.sources_digest()
    found = {f.relative_to(tmp_path / "carry").as_posix() for f in (tmp_path / "carry").rglob("*") if f.is_file()}
    assert found == {"MANIFEST.json", *manifest["files"]} and len(found) == 1 + 3 + 2 + 1


def test_each_missing_thing_is_one_line(script, tree, index, tmp_path, capsys, monkeypatch):
    """Guards a gathering that is not complete: what is missing is said once, exit code 1, and the rest is carried."""
    index("beta", "2.0")
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    code, manifest = gather(script, tmp_path, python="python9.99")
    said = lines(capsys)
    assert code == 1 and list(manifest["wheels"]) == ["beta"] and manifest["python"] == "9.99"
    starts = ("wheel of alpha: No matching", "vdengine 0.1.0 needs alpha", "_native: no interpreter python9.99 here",
              "tokenizer: no npm here")  # fmt: skip
    assert len(said) == len(starts) and all(any(x.startswith(f"gather.py: {s}") for x in said) for s in starts), said
    assert manifest["skipped"] == [line.removeprefix("gather.py: ") for line in said]


def test_missing_tokenizer(script, tree, index, built, tmp_path, capsys):
    """Guards --tokenizer: a folder without one is named, the rest is carried."""
    index("alpha", "1.0")
    index("beta", "2.0")
    code, manifest = gather(script, tmp_path, "--tokenizer", tmp_path / "nowhere")
    assert code == 1 and len(manifest["wheels"]) == 2 and manifest["native"]
    assert lines(capsys) == [
        f"gather.py: tokenizer: {tmp_path}/nowhere has no tokenizer.json and no tokenizer_config.json"
    ]


def test_too_large(script, tree, index, tokenizer, built, tmp_path, capsys, monkeypatch):
    """Guards the limit of what can travel: the largest files are named while there is still time to leave them out."""
    index("alpha", "1.0")
    index("beta", "2.0")
    monkeypatch.setattr(script, "LIMIT", 2**16)
    assert gather(script, tmp_path, "--tokenizer", tokenizer)[0] == 1
    (line,) = lines(capsys)
    assert "MiB are more than" in line and f"the largest: native/{built.name} 0." in line


@pytest.mark.parametrize("what", ["a file", "a folder of someone's"])
def test_folder_that_cannot_be_used(what, script, tree, tmp_path, capsys):
    """Guards other people's files, and against a traceback: neither command empties a folder that it did not make."""
    into = tmp_path / "carry"
    if what == "a file":
        into.write_text("mine")
    else:
        into.mkdir()
        (into / "wheels").write_text("mine")
    assert gather(script, tmp_path) == (1, {})
    assert script.main(["--install", "--into", str(tmp_path / "nowhere"), "--site", str(into)]) == 1
    said = lines(capsys)
    assert len(said) == 2 and all(line.startswith(f"gather.py: {into}: ") for line in said), said
    assert (into if what == "a file" else into / "wheels").read_text() == "mine"


# ------------------------------------------------------------------------------------------------- install


@pytest.fixture
def carried(script, tree, index, tokenizer, built, tmp_path, capsys) -> Path:
    index("alpha", "1.0")
    index("beta", "2.0", "alpha")
    assert gather(script, tmp_path, "--tokenizer", tokenizer)[0] == 0
    capsys.readouterr()
    return tmp_path / "carry"


@pytest.fixture
def unpacked(script, monkeypatch) -> None:
    """In place of pip, which takes a second to start."""

    def unpack(wheels: list[Path], site: Path, log) -> None:
        for file in wheels:
            zipfile.ZipFile(file).extractall(site)

    monkeypatch.setattr(script, "install_wheels", unpack)


def install(script, carried, tmp_path) -> int:
    return script.main(["--install", "--into", str(carried), "--site", str(tmp_path / "the site")])


def test_install(script, carried, tree, tmp_path, capsys, monkeypatch):
    """Guards the line for the shell: with it, also inside the tree, python finds kernels/, `_native` and the peers.

    Without PYTHONSAFEPATH the tree's own vdengine/ would come first, which has neither. Twice, as on a warm machine.
    """
    for _ in range(2):
        assert install(script, carried, tmp_path) == 0
        out, err = capsys.readouterr()
        assert out.startswith("export ") and out.count("\n") == 1 and err == ""
    assert (tree / "tests/tokenizers/qwen3/tokenizer.json").read_text() == "tokenizer.json\n"
    (tree / "kernels" / "__init__.py").write_text("NAME = 'edited'\n")  # seen without another --install
    code = "import alpha, beta, vdengine._native; from vdengine.kernels import NAME; print(beta.VERSION, NAME)"
    shell = f'eval "$1" && cd "$2" && "$3" -c "{code}"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", out, str(tree), sys.executable],
        capture_output=True, text=True, env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
    )  # fmt: skip
    assert done.stdout == "2.0 edited\n", done.stderr


def test_install_builds_where_the_carried_does_not_fit(script, carried, unpacked, tree, tmp_path, capsys):
    """Guards against measuring an extension of older sources: it is built again, and that is said."""
    (tree / "csrc" / "module.cpp").write_text("// edited\n")
    next((carried / "native").iterdir()).write_bytes(b"older")
    manifest = json.loads((carried / "MANIFEST.json").read_text())
    manifest["files"] = script.listing(carried)
    (carried / "MANIFEST.json").write_text(json.dumps(manifest))
    assert install(script, carried, tmp_path) == 0
    assert lines(capsys) == ["_native: csrc/ has changed since it was built; it is built here"]
    assert (tmp_path / "the site/vdengine" / manifest["native"]["file"]).stat().st_size > 1000


def test_install_of_wheels_that_do_not_fit(script, tmp_path, index, monkeypatch):
    """Guards the peers against one of them: pip installs none of several wheels where one is for another Python."""
    good, bad, other = index("one", "1.0"), index("two", "1.0", tags="cp27-none-any"), index("three", "1.0")
    calls = []

    def pip(command: list[str]) -> None:
        calls.append([part for part in command if part.endswith(".whl")])
        if str(bad) in command:
            raise script.Missing("two-1.0-cp27-none-any.whl is not a supported wheel on this platform.")

    monkeypatch.setattr(script, "run", pip)
    log = script.Log()
    script.install_wheels([good, bad, other], tmp_path, log)
    assert calls[1:] == [[str(good)], [str(bad)], [str(other)]] and len(log.lines) == 1 and bad.name in log.lines[0]


def test_the_telling_line(script):
    """Guards the one line of an error: of pip's and npm's many, the first that names a cause."""
    pip = """  error: subprocess-exited-with-error
      error: command 'gcc' failed: No such file or directory
    ERROR: Failed building wheel for vdengine"""
    assert script.telling(pip) == "command 'gcc' failed: No such file or directory"
    assert script.telling("npm error code ENOTFOUND\nnpm error A complete log") == "npm error code ENOTFOUND"
    assert script.telling("Traceback:\n  x\nImportError: no symbol\n") == "ImportError: no symbol"
    assert script.telling("") == ""


def test_install_damaged(script, carried, unpacked, tmp_path, capsys):
    """Guards the way there: a wheel that arrived damaged is named and left out, the other is installed."""
    (carried / "wheels/alpha-1.0-py3-none-any.whl").write_bytes(b"half of it")
    assert install(script, carried, tmp_path) == 1
    assert lines(capsys) == [
        "gather.py: wheels/alpha-1.0-py3-none-any.whl: damaged",
        "gather.py: vdengine 0.1.0 needs alpha, which is neither carried nor there",
        "gather.py: beta 2.0 needs alpha, which is neither carried nor there",
    ]
    assert (tmp_path / "the site/beta/__init__.py").is_file() and not (tmp_path / "the site/alpha").exists()


def test_install_keeps_a_tokenizer(script, carried, unpacked, tree, tmp_path):
    """Guards the tokenizer that the tests have: it is not replaced by one of `gather.py --tokenizer`."""
    mine = tree / "tests/tokenizers/qwen3/tokenizer.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert install(script, carried, tmp_path) == 0 and mine.read_text() == "mine"


def test_install_without_a_folder(script, tree, built, tmp_path, capsys):
    """Guards a forgotten folder: it is named, and vdengine itself is still linked."""
    assert install(script, tmp_path / "nowhere", tmp_path) == 1
    said = lines(capsys)
    assert said[0] == f"gather.py: {tmp_path}/nowhere: no MANIFEST.json: run gather.py where there is a network, " + (
        "and take the folder along"
    )
    assert said[1:] == [
        "_native: none is carried; it is built here",
        "gather.py: vdengine 0.1.0 needs alpha, which is neither carried nor there",
    ]
    assert (tmp_path / "the site/vdengine/kernels/__init__.py").is_file()
