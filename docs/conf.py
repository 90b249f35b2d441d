"""Build the pages with Sphinx: Markdown by MyST, the references from the code, the texts beside the code as they are.

``make docs`` calls it. Pages of ``generated/`` are written at each build, and are no part of the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import mvtec_lab
from mvtec_lab import reference

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent

project, author, version = "mvtec_lab", "the authors of mvtec_lab", mvtec_lab.__version__
project_copyright = f"{author}; Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them: longtail.md#limits
suppress_warnings = ["myst.header"]  # a page's own headings may begin at any level
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # Lightning's own speak of Lightning
autodoc_member_order = "bysource"
add_module_names = False
maximum_signature_line_length = 80  # characters; longer ones have an argument per line
html_theme = "furo"
html_title = f"mvtec_lab {version}"
html_static_path = ["static"]
html_css_files = ["lab.css"]

# Texts that stay beside what they speak of, and are pages too: page -> file.
BESIDE = {
    "start": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
    "benchmarks": "benchmarks/README.md",
}
BESIDE |= {
    f"methods/{file.parent.name}": file.relative_to(REPOSITORY).as_posix()
    for file in sorted(REPOSITORY.glob("mvtec_lab/problems/*/methods/*/README.md"))
}
BESIDE = {f"generated/{page}": file for page, file in BESIDE.items()}
PAGE_OF = {file: page for page, file in BESIDE.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def write_pages(app: Any) -> None:
    """Write the pages of ``generated/``."""
    shutil.rmtree(DOCS / "generated", ignore_errors=True)
    for page, file in BESIDE.items():
        (DOCS / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, DOCS / f"{page}.md")


def every_key() -> str:
    """Return what there is to know of every key, section by section, and the names of the groups' files."""
    parts, section, listed = ["## The run itself"], "", set()
    for entry in sorted(reference.entries(), key=lambda entry: "." in entry.key):
        if "." in entry.key and not entry.key.startswith(f"{section}."):
            section = entry.key.partition(".")[0]
            parts += [f"## {section}", reference.sections()[section]]
        parts.append(of_key(entry, again=entry.key in listed))
        listed.add(entry.key)
    for group in ("attempt", "study", "data", "augment", "optimizer", "scheduler", "hydra/launcher"):
        rows = [f"| `{name}` | {about} |" for name, about in reference.choices(group).items()]
        parts += [f"## Files of {group}", "\n".join(["| name | what |", "|---|---|", *rows])]
    return "\n\n".join(parts)


def of_key(entry: reference.Entry, again: bool) -> str:
    """Return a key's directive; an option that methods declare differently comes ``again``, and is indexed once."""
    changes = {"run": "another run of the same attempt", "nothing": "no difference to a result"}
    facts = {
        "Takes": entry.takes,
        "Has an effect with": "; ".join(f"`{setting}`" for setting in entry.needs),
        "Of the methods": ", ".join(entry.methods),
        "Another value makes": changes.get(entry.changes, ""),
    }
    lines = [f"```{{confval}} {entry.key}", f":type: {entry.kind}", f":default: `{entry.default}`"]
    lines += [":no-index:"] * again + ["", re.sub(r"--[\w-]+", r"`\g<0>`", entry.about), ""]
    return "\n".join([*lines, *(f"- {what}: {fact}" for what, fact in facts.items() if fact), "```"])


def prepare(app: Any, page: str, source: list[str]) -> None:
    """Fill in the keys, and let links that hold in the repository hold among the pages.

    Of a link to a file that is no page, its words alone are shown.
    """
    here = posixpath.dirname(BESIDE.get(page, f"docs/{page}.md"))

    def link(match: re.Match[str]) -> str:
        image, text, path, anchor = match.groups()
        if ":" in path:
            return match[0]
        target = posixpath.normpath(posixpath.join(here, path))
        if target in PAGE_OF or target.startswith("docs/") or image:
            target = f"docs/{PAGE_OF[target]}.md" if target in PAGE_OF else target
            return f"{image}[{text}]({posixpath.relpath(target, f'docs/{posixpath.dirname(page)}')}{anchor or ''})"
        return text if (REPOSITORY / target).exists() else match[0]

    source[0] = LINK.sub(link, source[0])
    if page == "keys":
        source[0] = source[0].replace("<!-- keys -->", every_key())


def keep_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put a line of nothing first: in an attribute's first line, napoleon takes what precedes a colon for a type."""
    if what in ("attribute", "property"):
        lines.insert(0, "\\ ")


def setup(app: Any) -> None:
    """Connect these functions to Sphinx."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Annotated types say how a file is checked; a reader wants the types themselves.
    mvtec_lab.RunResult.__annotations__ = get_type_hints(mvtec_lab.RunResult)
    app.connect("builder-inited", write_pages)
    app.connect("env-get-outdated", lambda *args: ["keys"])  # its text is not in its file
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon's 500
