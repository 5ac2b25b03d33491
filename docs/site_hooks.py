"""Hooks of the documentation site (mkdocs.yml), so that nothing is written twice.

README, CONTRIBUTING and others stay where a reader of the repository expects them, and are pages of the site too; links
are turned accordingly. `vdengine` and `kernels/` (installed as `vdengine.kernels`) are copied into one tree, so
that the API reference is read from the source under the names that users import.
"""

import posixpath
import re
import shutil
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

REPO = Path(__file__).resolve().parent.parent
PAGES = {  # in the repository: in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
}
LINK = re.compile(r"(?P<label>!?\[[^\]\n]*\])\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
_tree = tempfile.TemporaryDirectory()


@event_priority(100)  # before mkdocstrings looks at its paths
def on_config(config):
    """Join the package and its kernels."""
    for source, name in (("vdengine", "vdengine"), ("kernels", "vdengine/kernels")):
        for path in (REPO / source).rglob("*.py*"):
            if path.suffix in (".py", ".pyi"):
                target = Path(_tree.name, name, path.relative_to(REPO / source))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [_tree.name]
    config.watch += [str(REPO / name) for name in (*PAGES, "vdengine", "kernels")]
    return config


def on_files(files, config):
    """Add the pages that live outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPO / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links of the repository into links of the site; what the site does not have keeps its text alone."""
    here = page.file.src_uri
    source = next((path for path, to in PAGES.items() if to == here), f"docs/{here}")

    def turned(match):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
        if not (REPO / path).exists():
            return match[0]  # mkdocs says so
        target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            return match["label"].removeprefix("[").removesuffix("]")
        return f"{match['label']}({posixpath.relpath(target, posixpath.dirname(here) or '.')}{match['anchor'] or ''})"

    return LINK.sub(turned, markdown)
