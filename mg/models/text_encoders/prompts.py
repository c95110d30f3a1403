"""What is done to a prompt before it is tokenized: cleaning, the frame rate in front, the quoted text alone."""

import math
import re
import unicodedata
from collections import Counter
from fractions import Fraction

from mg.errors import UserError

# By opening mark, the marks that close it. ” is both in Swedish and Finnish, „ is closed in two ways, »…« is German.
_CLOSERS = {
    '"': '"', "＂": "＂", "“": "”", "”": "”", "„": "“”", "«": "»", "»": "«", "‹": "›", "›": "‹",
    "「": "」", "『": "』", "｢": "｣", "'": "'", "‘": "’", "‚": "‘’",
}  # fmt: skip
_STRAIGHT = '"＂'
_APOSTROPHES = "'’"
# These open a quotation only where a word could begin; every other opening mark does so anywhere.
_CAREFUL = "\"＂”»›'‘"

# Words that begin with an apostrophe ('tis, '90s, rock 'n' roll), which is no quotation mark unless the next closes it.
_ELISION = r"(?<!\w)(?:['‘’]n\b['’]?|['‘’]N\b['’]?(?=\s[A-Z])|['‘](?:[Tt]is|[Tt]was|til|em|cause|\d0s)\b(?!['’]))"
# An elision is found as a whole, so that its apostrophes are not found as marks.
_MARKS = re.compile(f"{_ELISION}|[{''.join({*_CLOSERS, *''.join(_CLOSERS.values())})}]")

# Scripts without spaces between words; Korean, whose particles follow a quotation without one; emoji's selectors.
_SPACELESS = re.compile(
    "[\u0e00-\u11ff\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe00-\ufe0f\uff66-\uffdc"
    "\U00020000-\U0003ffff]"
)
_STOPS = ".,;:!?)]}…。、，！？；：）"

_PREFIX = re.compile(r"\A\s*(?:FPS-[0-9]+(?:\.[0-9]+)?[,.:;]?(?:\s+|$))+", re.IGNORECASE)
# Controls but for tab and the ends of lines, which separate words; the mark some editors put before a text.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")


def clean_prompt(prompt: str) -> str:
    """Drop what no caption means to say: control characters, halves of surrogate pairs, spare whitespace.

    Letters and emoji of all languages stay as they are, with their joiners and variation selectors.

    Args:
        prompt: any text.

    Returns:
        The text without C0 and C1 controls, every run of whitespace (tabs, ends of lines and unusual spaces included)
        one space, none at the ends. Cleaning twice changes nothing more.
    """
    whole = prompt.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return " ".join(_CONTROLS.sub("", whole).split())


def nominal_fps(fps: Fraction | float) -> int:
    """Round a frame rate to the nearest integer, halves upwards and never to 0: the n of the prompt's "FPS-n".

    Raises:
        UserError: fps is not a finite number above 0.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps: {fps} is not a frame rate; give a number above 0, such as 24")
    return max(1, math.floor(fps + Fraction(1, 2)))


def fps_prefix(prompt: str, fps: Fraction | float) -> str:
    """Put a clip's frame rate in front of its prompt, by which Movie Gen controls it (section 3.1.4).

    Args:
        prompt: a rate that stands in front already ("FPS-16 a dog") is replaced.
        fps: frames per second of the clip as it is shown to the model, > 0; 29.97 becomes FPS-30, 23.976 FPS-24.

    Returns:
        "FPS-24 a dog", or "FPS-24" alone for an empty prompt.

    Raises:
        UserError: fps is not a finite number above 0.
    """
    return f"FPS-{nominal_fps(fps)} {_PREFIX.sub('', prompt)}".strip()


def quoted_text(prompt: str) -> str:
    """Take the text inside quotation marks, all that ByT5 reads of a prompt (Movie Gen, section 3.1.4).

    Marks are "…" “…” ”…” „…“ «…» »…« ‹…› ›…‹ 「…」 『…』 '…' ‘…’ ‚…‘. A mark that could be something else is told by
    what stands beside it:

    - An apostrophe opens nothing after a letter or digit (don't, 6'2", the dogs' bowl) and closes nothing before one
      (IT'S OPEN); words such as 'tis and 'n' are known. A straight double mark after a letter or digit closes at most
      (a 5" screen).
    - The first mark that can close a quotation does: a plural's apostrophe or an inch mark inside a quotation in the
      same marks ends it.
    - Of quotations inside one another the outermost is taken, with the marks inside it.
    - A mark without its partner is passed over: what follows it is not quoted, later pairs are found all the same.

    Args:
        prompt: any text; the time is linear in its length.

    Returns:
        The contents in order, stripped and joined by one space; "" when there are none.
    """
    contents = (prompt[start + 1 : end].strip() for start, end in _outermost_pairs(prompt))
    return " ".join(filter(None, contents))


def _outermost_pairs(text: str) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    opened: list[tuple[int, str]] = []  # place of each mark still open, and what closes it
    awaited: Counter[str] = Counter()  # closing mark -> how many open marks it would close
    for match in _MARKS.finditer(text):
        mark, place = match[0], match.start()
        before, after = text[place - 1 : place] or " ", text[place + 1 : place + 2] or " "
        if awaited[mark] and _closes(mark, before, after, on_top=mark in opened[-1][1]):
            closers = ""
            while mark not in closers:  # marks inside that are still open have no partner
                start, closers = opened.pop()
                awaited.subtract(closers)
            while pairs and pairs[-1][0] > start:
                pairs.pop()
            pairs.append((start, place))
        elif mark in _CLOSERS and _opens(mark, before, after):
            opened.append((place, _CLOSERS[mark]))
            awaited.update(_CLOSERS[mark])
    return pairs


def _closes(mark: str, before: str, after: str, on_top: bool) -> bool:
    """Whether a mark that some open one waits for closes it; `on_top`: the innermost open one waits for it."""
    if mark in _APOSTROPHES:
        return on_top and not before.isspace() and not _in_word(after)
    if mark in _STRAIGHT:
        return not ((before.isspace() or before in "([{") and _starts_text(after))
    return True


def _opens(mark: str, before: str, after: str) -> bool:
    if mark not in _CAREFUL:
        return True
    if _in_word(before):
        return False
    return _starts_text(after) or (mark in _STRAIGHT and before.isspace() and after.isspace())


def _starts_text(character: str) -> bool:
    return not character.isspace() and character not in _STOPS


def _in_word(character: str) -> bool:
    """Whether this is a letter, accent or digit of a script that puts spaces between words."""
    return unicodedata.category(character)[0] in "LMN" and not _SPACELESS.match(character)
