"""What code a row of results was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: what every row depends on: not on results, pages and tests that were committed meanwhile
CODE = ("src", "configs", ":(glob)benchmarks/*.py")
#: what rows of the soak depend on as well: not on the page that is written from them
SOAK = ("benchmarks/soak", ":(exclude)benchmarks/soak/page.py")


def commit_of(*further: str) -> str:
    """The commit that has changed the code last, with a mark where files of it are changed since.

    Args:
        further: files or folders of code, below that of the repository, that these rows depend on as well.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = ["git", "-C", str(Path(__file__).parents[1]), *arguments, "--", *CODE, *further]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    name = git("log", "-1", "--format=%h", "--abbrev=10").stdout.strip()
    return f"{name}-dirty" if name and git("diff", "--quiet", "HEAD").returncode else name or "unknown"
