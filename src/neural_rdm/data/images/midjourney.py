"""Prompts of Midjourney, which JourneyDB is made of: the text without the program's parameters."""

from __future__ import annotations

import re

_NUMBERS = (
    "ar|aspect|v|version|niji|q|quality|s|stylize|seed|sameseed|c|chaos|iw|stop|w|width|h|height|weird|repeat|r|exp|sw|"
    "cw|ow"
)
_WORDS = (
    "no|style|niji|tile|hd|test|testp|creative|upbeta|upanime|uplight|upalpha|video|fast|relax|turbo|raw|draft|stealth|"
    "public|beta|mp|vibe|sref|cref|oref|sv|profile|p|personalize"
)
#: Midjourney's parameters; a phone makes one dash of two. A dash alone, as in `—a hero—`, is none
_FLAGS = re.compile(
    rf"(?:^|\s)(?:"
    rf"(?:--|[—–]{{1,2}})\s?(?:{_NUMBERS})[\s:=]{{0,2}}\d"  # a name and its number, under any dash
    rf"|--(?:{_WORDS})(?![\w-])"
    rf"|[—–](?:{_WORDS})(?![\w-])(?![^—–]*[—–](?:\W|$))"  # and not `—no hat—`, which is closed
    rf"|(?:\s*--[a-z]\w*(?:[\s=]+[^\s—–-]\S*)?)+\s*$"  # others, where nothing but flags follows
    rf")",
    re.IGNORECASE,
)


def without_flags(prompt: str) -> str:
    """A Midjourney prompt without its trailing parameters, such as `--ar 16:9 --v 5` or `—ar 16:9`."""
    found = _FLAGS.search(prompt)
    return (prompt if found is None else prompt[: found.start()]).strip()
