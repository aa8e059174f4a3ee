"""Files with expected output, line by line.

After an intended change `GREENDROP_WRITE_GOLDEN=1 pytest ...` writes them again; the
diff shows the effect on users.
"""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).parent


def given(name: str) -> list[str]:
    """Return the lines of a file."""
    return (_HERE / name).read_text(encoding="utf-8").splitlines()


def expected(name: str, lines: list[str]) -> list[str]:
    """Return the lines of a file; write the actual lines first if requested."""
    if os.environ.get("GREENDROP_WRITE_GOLDEN") == "1":
        text = "".join(f"{line}\n" for line in lines)
        (_HERE / name).write_text(text, encoding="utf-8")
    return given(name)
