"""Put the tables of a report into a Markdown page.

Between ``<!-- table FILE -->`` and ``<!-- end -->`` comes the first table of FILE, a Markdown file of a report, without
its title and caption. FILE is relative to the page.

    python scripts/fill_tables.py evaluations/reports/fashion-mnist-slim/README.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def first_table(path: Path) -> str:
    """The first table of a Markdown file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[start:end])


def filled(page: Path) -> str:
    """The text of a page with every table as its file has it now."""
    return re.sub(
        r"(<!-- table (\S+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{first_table(page.parent / found[2])}\n{found[3]}",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown files, changed in place")
    for page in parser.parse_args().pages:
        page.write_text(filled(page), encoding="utf-8")
