"""Put the output of a real quickstart run into README.md.

Everything between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced: tables by those of the run's report, the output
of the Python example by what the example prints when it is run now. The overview figure goes to docs/.

    robustfdd run quickstart && python scripts/update_readme.py runs/quickstart
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fill_tables import first_table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def python_output(text: str) -> str:
    """What the first Python example of the README prints, run in an empty folder."""
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code.group(1)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return f"```\n{done.stdout.rstrip()}\n```"


def main() -> None:
    """Rewrite the README from the run named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run directory of a finished quickstart")
    run = parser.parse_args().run
    text = README.read_text(encoding="utf-8")
    content = {
        "robust accuracy": first_table(run / "report" / "tables" / "robust-accuracy-linf.md"),
        "agreement": first_table(run / "report" / "tables" / "agreement.md"),
        "python output": python_output(text),
    }
    for name, block in content.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        text, n = re.subn(pattern, lambda match, block=block: match[1] + block + match[2], text, flags=re.DOTALL)
        assert n == 1, f"README.md has no place for {name!r}"
    README.write_text(text, encoding="utf-8")
    shutil.copyfile(run / "report" / "figures" / "overview.png", ROOT / "docs" / "quickstart-overview.png")


if __name__ == "__main__":
    main()
