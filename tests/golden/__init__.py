"""Files with what is to come out, line by line.

After a change that is meant, `GREENDROP_WRITE_GOLDEN=1 pytest ...` writes them anew;
the diff shows what users will see.
"""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).parent


def given(name: str) -> list[str]:
    """Give the lines of a file."""
    return (_HERE / name).read_text(encoding="utf-8").splitlines()


def expected(name: str, lines: list[str]) -> list[str]:
    """Give the lines of a file; those that came out are written first, if asked for."""
    if os.environ.get("GREENDROP_WRITE_GOLDEN") == "1":
        text = "".join(f"{line}\n" for line in lines)
        (_HERE / name).write_text(text, encoding="utf-8")
    return given(name)
