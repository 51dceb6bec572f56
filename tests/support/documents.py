"""Every Markdown file of the repository: its code blocks, commands and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs/**", "benchmarks/**", "examples/**", "spec/**", "tests/**")
    for path in ROOT.glob(f"{folder}/*.md")
)


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """The arguments of each line of its sh blocks that begins with ckptdiff."""
    return [words[1:] for words in lines(document) if words[0] == "ckptdiff"]


def lines(document: str) -> list[list[str]]:
    """The words of each line of its sh blocks that begins with ckptdiff, or copies a folder."""
    found = [line for block in blocks(document, "sh") for line in block.splitlines() if line.startswith(("ckptdiff ", "cp -r "))]
    return [shlex.split(line, comments=True) for line in found]


def prose(document: str) -> str:
    """The text without blocks, code and addresses of links."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text))


def anchors(document: str) -> set[str]:
    """The ids that GitHub gives to the headings."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        repeated = [f"{slug}-{k}" for k in range(1, 100)]
        found.add(next(name for name in [slug, *repeated] if name not in found))
    return found


def broken_links(document: str) -> list[str]:
    """Relative links that lead to no file, or to no heading."""
    broken = []
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL))
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists() or (anchor and anchor not in anchors(file.resolve().relative_to(ROOT).as_posix())):
            broken.append(link)
    return broken
