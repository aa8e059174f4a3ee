"""Take screenshots of pages that `make docs` has built, as on a desk and on a phone.

    python docs/screenshots.py [FOLDER]

For a person to look at: are tables and code readable? Needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HTML = Path(__file__).parent / "_build" / "html"
PAGES = (
    "index",
    "start/getting-started",
    "coming-from/confluent-kafka",
    "coming-from/comparison",
    "reference/settings",
    "reference/events",
    "reference/errors",
    "reference/api/producer",
    "how-it-works",
)
WIDTHS = (1360, 420)
HEIGHT = 1600
#: Chromium has no narrower window than 500 pixels, so a page is shown in a frame.
FRAME = (
    '<body style="margin:0"><iframe src="{}" width="{}" height="{}" frameborder="0">'
)


def take(chromium: str, page: Path, width: int, target: Path) -> None:
    """Write a screenshot of the upper end of a page."""
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.format(page.as_uri(), width, HEIGHT))
        options = ["--headless=new", "--no-sandbox", "--disable-gpu"]
        options += ["--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        options += [f"--window-size={max(width, 500)},{HEIGHT}"]
        subprocess.run(  # noqa: S603 - Chromium, on our own pages
            [chromium, *options, f"--screenshot={target}", frame.as_uri()],
            check=True,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )


def main() -> int:
    """Take all of them; the exit status."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or not HTML.exists():
        print("needs Chromium, and the pages of `make docs`", file=sys.stderr)
        return 1
    arguments = sys.argv[1:]
    folder = Path(arguments[0]) if arguments else HTML.parent / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        for width in WIDTHS:
            target = folder.resolve() / f"{name.replace('/', '-')}-{width}.png"
            take(chromium, HTML.resolve() / f"{name}.html", width, target)
            print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
