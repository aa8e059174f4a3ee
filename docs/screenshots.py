"""Take screenshots of pages that `make docs` has built, as on a desk and on a phone.

    python docs/screenshots.py [FOLDER]

For a person to look at: are tables, code and pictures readable, also in dark mode?
Pages and tables that are wider than the screen are errors, on all pages.
Needs Chromium.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HTML = Path(__file__).parent / "_build" / "html"
PAGES = (
    "index",
    "start/getting-started",
    "coming-from/comparison",
    "reference/settings",
    "reference/events",
    "reference/errors",
    "reference/api/producer",
    "how-it-works",
)
#: Pages with pictures, which are also shown in dark mode.
DARK = ("index", "coming-from/comparison", "how-it-works")
WIDTHS = (1360, 420)
HEIGHT = 1600
#: Seconds for one start of Chromium.
LIMIT = 300.0
#: Chromium has no narrower window than 500 pixels, so a page is shown in a frame.
FRAME = """<body style="margin: 0; background: #999">
<iframe src="{page}" width="{width}" height="{height}" frameborder="0"></iframe>"""
#: Shows one page after the other, and writes down what is too wide for the screen.
MEASURE = """<iframe id="frame" height="{height}" frameborder="0"></iframe><pre></pre>
<script>
  const frame = document.getElementById("frame");
  const found = [];
  const measure = async () => {{
    for (const page of {pages}) for (const width of {widths}) {{
      frame.width = width;
      await new Promise((loaded) => {{ frame.onload = loaded; frame.src = page; }});
      for (const part of frame.contentDocument.querySelectorAll("html, .table-wrapper"))
        if (part.scrollWidth > part.clientWidth)
          found.push(`${{page}}: ${{part.tagName}} with ${{part.scrollWidth}} pixels,`
            + ` there is space for ${{part.clientWidth}}`);
    }}
    document.querySelector("pre").textContent = JSON.stringify(found);
  }};
  measure();
</script>"""


class Chromium:
    """Chromium without a window, with a profile of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._page = folder / "page.html"
        self._command = (
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            # Waits until all is loaded and drawn, but no longer.
            "--virtual-time-budget=20000",
            f"--user-data-dir={folder / 'profile'}",
        )

    def show(self, text: str, *arguments: str) -> str:
        """Show a page of this text; return what Chromium prints."""
        self._page.write_text(text)
        done = subprocess.run(  # noqa: S603 - Chromium, on our own pages
            [*self._command, *arguments, self._page.as_uri()],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=LIMIT,
        )
        return done.stdout


def take(chromium: Chromium, name: str, width: int, folder: Path, scheme: str) -> Path:
    """Write a screenshot of the upper end of a page."""
    suffix = "-dark" if scheme == "dark" else ""
    target = folder / f"{name.replace('/', '-')}-{width}{suffix}.png"
    page = (HTML.resolve() / f"{name}.html").as_uri()
    chromium.show(
        FRAME.format(page=page, width=width, height=HEIGHT),
        f"--window-size={max(width, 500)},{HEIGHT}",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        f"--screenshot={target}",
    )
    return target


def too_wide(chromium: Chromium) -> list[str]:
    """Describe what is wider than the screen, on all pages.

    Raises:
        RuntimeError: Chromium has not measured all of them.
    """
    pages = [page.as_uri() for page in sorted(HTML.resolve().rglob("*.html"))]
    text = MEASURE.format(
        pages=json.dumps(pages), widths=json.dumps(WIDTHS), height=HEIGHT
    )
    shown = chromium.show(text, "--window-size=1400,1700", "--dump-dom")
    found = re.search(r"<pre>(.+?)</pre>", shown, re.DOTALL)
    if found is None:
        raise RuntimeError("Chromium has not measured all pages")
    lines: list[str] = json.loads(html.unescape(found[1]))
    return lines


def main() -> int:
    """Take all of them; the exit status."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None or not HTML.exists():
        print("needs Chromium, and the pages of `make docs`", file=sys.stderr)
        return 1
    folder = Path(*sys.argv[1:2]) if sys.argv[1:] else HTML.parent / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Chromium(program, Path(profile))
        for name in PAGES:
            for width in WIDTHS:
                for scheme in ("light", "dark")[: 1 + (name in DARK)]:
                    print(take(chromium, name, width, folder.resolve(), scheme))
        wrong = too_wide(chromium)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
