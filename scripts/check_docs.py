"""Finds links between the pages of this repository that lead nowhere.

Only links inside the repository are looked at; what is outside needs a network and is
not ours to keep alive.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {".venv", ".tools", ".git", "node_modules", ".stellwerk", "dist"}
_PARSER = MarkdownIt("commonmark")


def pages() -> list[Path]:
    """All Markdown files of the repository."""
    found = (path for path in ROOT.rglob("*.md") if not SKIPPED.intersection(path.relative_to(ROOT).parts))
    return sorted(path for path in found if "site-packages" not in path.parts)


def anchor(heading: str) -> str:
    """The fragment that code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The fragments of all headings of a page."""
    tokens = _PARSER.parse(page.read_text())
    return {
        anchor(tokens[index + 1].content)
        for index, token in enumerate(tokens)
        if token.type == "heading_open"
    }


def targets(tokens: list[Token]) -> Iterator[str]:
    """What links and images point at."""
    for token in tokens:
        target = token.attrGet("href") or token.attrGet("src")
        if target:
            yield str(target)
        yield from targets(token.children or [])


def dead(page: Path) -> Iterator[str]:
    """The links of `page` that lead nowhere."""
    for target in targets(_PARSER.parse(page.read_text())):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        place = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        outside = not place.is_relative_to(ROOT)
        if outside or not place.exists():
            reason = "is outside the repository" if outside else "is not there"
            yield f"{page.relative_to(ROOT)}: {target} {reason}"
        elif parts.fragment and place.suffix == ".md" and parts.fragment not in anchors(place):
            yield f"{page.relative_to(ROOT)}: {target} has no such heading"


def main() -> int:
    found = [complaint for page in pages() for complaint in dead(page)]
    print("\n".join(found) or f"links of {len(pages())} pages are alive")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
