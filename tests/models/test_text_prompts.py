import time
from fractions import Fraction

import pytest

from mg.errors import UserError
from mg.models.text_encoders.prompts import clean_prompt, fps_prefix, nominal_fps, quoted_text


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ('a sign saying "HELLO"', "HELLO"),
        ("a sign saying “HELLO”", "HELLO"),
        ("ein Schild „OFFEN“ und „ZU”", "OFFEN ZU"),
        ("une enseigne « OUVERT » et «FERMÉ»", "OUVERT FERMÉ"),
        ("une enseigne «\u00a0OUVERT\u00a0», rouge", "OUVERT"),
        ("ein Schild »OFFEN« und ›ZU‹", "OFFEN ZU"),
        ("une enseigne ‹OUVERT›", "OUVERT"),
        ("en skylt ”ÖPPET” här", "ÖPPET"),
        ("招牌写着「营业中」和『关门』", "营业中 关门"),
        ('招牌写着"营业中"和"关门"。', "营业中 关门"),
        ("看板に'営業中'と書く", "営業中"),
        ('간판은 "열림"이라고', "열림"),
        ("the 'OPEN' sign", "OPEN"),
        ("it reads 'OPEN'.", "OPEN"),
        ("'OPEN', then 'SHUT'", "OPEN SHUT"),
        ("‘OPEN’ and (‘SHUT’)", "OPEN SHUT"),
        ("ein Schild ‚ZU‘ dort", "ZU"),
        ('"\U0001f600 सूर्य שלום"', "\U0001f600 सूर्य שלום"),
        ("❤️'OPEN'❤️", "OPEN"),
        ("first \"ONE\", then “TWO”, then 'THREE'", "ONE TWO THREE"),
        ('padded " HELLO " text', "HELLO"),
        ('a sloppy "HELLO ".', "HELLO"),
        ('"HELLO"', "HELLO"),
        ('saying:"HELLO"/"BYE"', "HELLO BYE"),
    ],
)
def test_every_kind_of_mark(prompt, quoted):
    assert quoted_text(prompt) == quoted


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a dog",
        '""',
        "a blank sign \"\" and '' and “ ” and « »",
        "don't, can’t, l'eau",
        "the cafe\u0301's dogs' bowl",
        "the dogs' bowl and the cats' bowl",
        "the dogs’ bowl and the cats’ bowl",
        "rock 'n' roll, rock ‘n’ roll, rock n' roll, Rock 'N' Roll",
        "'tis the dogs' bowl of the '90s, boys' toys",
        "‘90s and Hawai‘i’s beaches",
        "a 6'2\" man beside a 5'9\" man",
        'a 5" screen and a 19" screen',
        '"',
        "'",
        "“",
        "”",
        'text " more',
    ],
)
def test_nothing_is_quoted(prompt):
    assert quoted_text(prompt) == ""


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ('"IT\'S OPEN"', "IT'S OPEN"),
        ("'IT'S OPEN'", "IT'S OPEN"),
        ("‘IT’S JOE’S’", "IT’S JOE’S"),
        ("“DON’T WALK” isn't lit", "DON’T WALK"),
        ('"THE DOGS\' BOWL" and "ROCK \'N\' ROLL"', "THE DOGS' BOWL ROCK 'N' ROLL"),
        ("'ROCK 'n' ROLL'", "ROCK 'n' ROLL"),
        ("from the '90s' past", "90s"),
        ('the boy\'s sign "OPEN" and the dogs\' "BOWL"', "OPEN BOWL"),
        ("'ONE ' TWO'", "ONE ' TWO"),
        ("a compass shows 'N' today", "N"),
    ],
)
def test_apostrophes_survive(prompt, quoted):
    assert quoted_text(prompt) == quoted


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ("“he said ‘NO’ twice”", "he said ‘NO’ twice"),
        ("\"he said 'NO' twice\"", "he said 'NO' twice"),
        ("'he said \"NO\" twice'", 'he said "NO" twice'),
        ("“a “b” c” d", "a “b” c"),
        ('"a "b" c" d', 'a "b" c'),
        ("「外『内』外」と『他』", "外『内』外 他"),
        ("«a “b» c” d", "a “b"),
    ],
)
def test_the_outermost_quotation_is_taken_once(prompt, quoted):
    assert quoted_text(prompt) == quoted


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ('"unclosed and “OPEN”', "OPEN"),
        ('"unclosed and "OPEN"', "OPEN"),
        ("“unclosed and “OPEN”", "OPEN"),
        ('"unclosed ("OPEN")', "OPEN"),
        ("«unclosed, 'OPEN' and more", "OPEN"),
        ("stray ” and » and 」 then “OPEN”", "OPEN"),
        ('stray." Then "OPEN"', "OPEN"),
        ('"OPEN" and then "unclosed', "OPEN"),
        ('\'unclosed, she said "OPEN"', "OPEN"),
        ("'round it stands \"the dogs' bowl\"", "the dogs' bowl"),
    ],
)
def test_marks_without_a_partner(prompt, quoted):
    assert quoted_text(prompt) == quoted


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ('a 5" screen shows "HELLO"', "HELLO"),
        ('a 6\'2" man with a "HI" badge', "HI"),
        ('"HI" on a 6\' by 5" board, "BYE"', "HI BYE"),
        ('"ROOM 5" and "ROOM 6"', "ROOM 5 ROOM 6"),
        ("'ROOM 5' and 'ROOM 6'", "ROOM 5 ROOM 6"),
        ("he is 6'2 and says 'HI'", "HI"),
    ],
)
def test_feet_and_inches(prompt, quoted):
    assert quoted_text(prompt) == quoted


MARKS = "\"＂“”„«»‹›「」『』｢｣'‘’‚"


@pytest.mark.parametrize("unit", [*MARKS, "“»", "' ", ' "a', "a' ", "«a ", "“” ", "『「", "'n", "‘’ '"])
def test_linear_time(unit):
    count = 100_000 // len(unit)
    start = time.process_time()
    quoted_text(unit * count + MARKS * 2)
    assert time.process_time() - start < 3  # a quadratic method takes minutes


def test_deep_nesting_is_one_quotation():
    assert quoted_text("「" * 20_000 + "x" + "」" * 20_000) == "「" * 19_999 + "x" + "」" * 19_999


def test_long_text_is_kept_whole():
    assert quoted_text(f'x "{"y" * 20_000}" z') == "y" * 20_000


@pytest.mark.parametrize(
    ("fps", "label"),
    [(24, 24), (29.97, 30), (Fraction(24000, 1001), 24), (23.976, 24), (15.98, 16), (24.5, 25), (0.2, 1), (12.4, 12)],
)
def test_nominal_rate(fps, label):
    assert nominal_fps(fps) == label
    assert fps_prefix("a dog", fps) == f"FPS-{label} a dog"


@pytest.mark.parametrize(
    ("prompt", "prefixed"),
    [
        ("", "FPS-24"),
        ("   ", "FPS-24"),
        ("FPS-16", "FPS-24"),
        ("FPS-16 a dog", "FPS-24 a dog"),
        ("  fps-29.97   a dog ", "FPS-24 a dog"),
        ("FPS-16 FPS-30, a dog", "FPS-24 a dog"),
        ("FPS-16x is a name", "FPS-24 FPS-16x is a name"),
        ("a dog, FPS-16 on a screen", "FPS-24 a dog, FPS-16 on a screen"),
        ("FPS-a", "FPS-24 FPS-a"),
    ],
)
def test_prefix_replaces_a_prefix_and_nothing_else(prompt, prefixed):
    assert fps_prefix(prompt, 24) == prefixed
    assert fps_prefix(prefixed, 24) == prefixed


@pytest.mark.parametrize("fps", [0, -24, float("nan"), float("inf"), Fraction(0)])
def test_no_frame_rate(fps):
    with pytest.raises(UserError, match="^fps: .* is not a frame rate; give a number above 0"):
        fps_prefix("a dog", fps)


@pytest.mark.parametrize(
    ("prompt", "clean"),
    [
        ("  a \t dog\r\n\r\non\va\fhill\u2028now\u0085here ", "a dog on a hill now here"),
        ("a\u00a0dog\u3000犬", "a dog 犬"),
        ("a\0 d\x1bo\x7fg\x9f\x1c", "a dog"),
        ("\ufeffa dog", "a dog"),
        ("a \0 b", "a b"),
        ("half \ud83d and \ude00 half\ud83d", "half and half"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\0\n", ""),
    ],
)
def test_clean_prompt(prompt, clean):
    assert clean_prompt(prompt) == clean
    assert clean_prompt(clean) == clean


@pytest.mark.parametrize(
    "prompt",
    [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 family, ❤️, \U0001f1e9\U0001f1ea, 1️⃣",
        "שלום, नमस्ते, สวัสดี, 你好, می\u200cخواهم, cafe\u0301, café",
        "“quotes” «kept» ‘as’ they're",
    ],
)
def test_cleaning_keeps_every_language(prompt):
    assert clean_prompt(prompt) == prompt
