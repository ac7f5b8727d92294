"""The help texts in docs/reference/cli.md: `make pages` puts them there, a test holds them there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"
BLOCK = re.compile(r"```text\n(Usage: foreword (\w+).*?)```", re.DOTALL)


def help_of(verb: str) -> str:
    """What `foreword VERB --help` prints, 90 columns wide, without spaces at the ends of lines."""
    arguments = [] if verb == "COMMAND" else [verb]
    code = "import sys; from foreword.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "90", "NO_COLOR": "1", "TERM": "dumb"},
    )
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines()) + "\n"


def shown() -> dict[str, str]:
    """Verb and help text of each block of the page."""
    return {verb: text for text, verb in BLOCK.findall(PAGE.read_text(encoding="utf-8"))}


def main() -> None:
    """Renew every block."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda m: f"```text\n{help_of(m[2])}```", page), encoding="utf-8")


if __name__ == "__main__":
    main()
