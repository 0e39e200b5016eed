"""One small HTML page that shows a run's pictures while it trains: open it once, it reloads itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from urllib.parse import quote

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_text

# The figures are drawn on white: a picture keeps its white card when the page around it is dark.
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: CanvasText; background: Canvas; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 0.2rem 0 0; opacity: 0.75; }
figure { margin: 2rem 0; }
figcaption { margin-bottom: 0.5rem; }
img { max-width: 100%; height: auto; background: white; border-radius: 6px; }
.missing { padding: 1.5rem; border: 1px dashed GrayText; border-radius: 6px; }
""".strip()


def write_page(folder: Path, title: str, pictures: Mapping[str, str], refresh_seconds: int | None) -> Path:
    """Write `folder/index.html`, atomically, and return its path: the pictures in one column, each under its caption.

    The page holds no script and loads nothing but the pictures. It says when it was written (UTC). A picture's address
    ends in the time at which its file last changed, so that a browser shows a new picture and keeps an old one; a click
    opens it in its own size. One that does not exist yet is a box that says so.

    Args:
        folder: of the page.
        title: plain text, such as the run's name and its step; it is also the heading.
        pictures: {file name relative to `folder`, with `/` between folders: caption, plain text}, in order.
        refresh_seconds: how often an open page reloads itself; None: never (the run has finished).

    Raises:
        ConfigError: `refresh_seconds` is below 1.
        UserError: the disk is full or the folder cannot be written.
    """
    if refresh_seconds is not None and refresh_seconds < 1:
        raise ConfigError(f"a page cannot reload every {refresh_seconds} seconds; give at least 1, or none for never.")
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    reload = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">\n'
    note = "" if refresh_seconds is None else f"; this page reloads every {refresh_seconds} s"
    figures = "".join(_figure(folder, name, caption) for name, caption in pictures.items())
    path = folder / "index.html"
    write_text(
        path,
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{reload}<title>{escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>Written {now}{note}.</p>
{figures}</body>
</html>
""",
    )
    return path


def _figure(folder: Path, name: str, caption: str) -> str:
    text = escape(caption)
    try:
        changed = (folder / name).stat().st_mtime_ns
    except OSError:
        shown = f'<div class="missing">{escape(name)} has not been drawn yet.</div>'
    else:
        address = escape(f"{quote(name)}?v={changed}")  # `#`, `?` and `%` are lawful in a file's name
        shown = f'<a href="{address}"><img src="{address}" alt="{text}"></a>'
    return f"<figure>\n<figcaption>{text}</figcaption>\n{shown}\n</figure>\n"
