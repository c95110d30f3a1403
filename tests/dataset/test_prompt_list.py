"""Lists of prompts: names of the outputs, bad rows, and files that are no lists."""

from itertools import islice

import pytest

from mg.dataset.prompt_list import read_prompts
from mg.errors import UserError


def rows(tmp_path, text, suffix=".csv", columns=("video", "caption"), encoding="utf-8"):
    path = tmp_path / f"list{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return list(read_prompts(path, columns))


def test_csv(tmp_path):
    text = '\ufeffcaption , video,more\r\n"a, ""b""\nc",sub/x.y.mp4,1\r\n,z.png,\r\n\r\nd\0e,w,\r\n'
    found = rows(tmp_path, text)
    assert [(row.row, row.name, row.output, row.text, row.error) for row in found] == [
        (1, "sub/x.y.mp4", "sub/x.y.npz", 'a, "b" c', None),
        (2, "z.png", "z.npz", "", None),
        (3, "w", "w.npz", "de", None),
    ]


def test_other_columns(tmp_path):
    (row,) = rows(tmp_path, "video,text,clip\na,b,c\n", columns=("clip", "text"))
    assert (row.output, row.text) == ("c.npz", "b")


@pytest.mark.parametrize(
    "line, words",
    [
        ("a.mp4", "has no field 'caption'"),
        ("a.mp4,one, two", "more fields than the header"),
        (",x", "names no file in column 'video'"),
        ("..,x", "leaves the output folder"),
        ("a/../../b.mp4,x", "names a/../../b.mp4, which leaves the output folder"),
        ("/tmp/b.mp4,x", "names /tmp/b.mp4, which leaves"),
        (".,x", "names no file"),
        ("a\0b.mp4,x", "no text"),
        ('"a\nb.mp4",x', "'a\\nb.mp4'"),
        ('b.mp4,"OPEN" sign', "double those inside"),
        ("a" * 252 + ",x", "too long"),
        ("犬" * 84 + ".mp4,x", "too long"),
    ],
)
def test_bad_rows_are_told_and_the_others_read(tmp_path, line, words):
    good, bad, last = rows(tmp_path, f"video,caption\na.mp4,1\n{line}\nz.mp4,3\n")
    assert (good.error, last.error, last.text) == (None, None, "3")
    assert bad.row == 2 and words in bad.error and "\n" not in bad.error


def test_text(tmp_path):
    text = "A dog/cat: runs?\r\n\n  a  b c d e f g h i j k l.m \nnaïve 犬\u2028x\x0c🐕\n..\nlast"
    found = rows(tmp_path, text, ".txt")
    assert [(row.row, row.output, row.text) for row in found] == [
        (1, "000-A-dog_cat_-runs_.npz", "A dog/cat: runs?"),
        (2, "001-.npz", ""),
        (3, "002-a-b-c-d-e-f-g-h-i-j.npz", "a b c d e f g h i j k l.m"),
        (4, "003-naïve-犬-x-🐕.npz", "naïve 犬 x 🐕"),
        (5, "004-...npz", ".."),
        (6, "005-last.npz", "last"),
    ]


def test_text_after_the_last_dot_or_slash_stays(tmp_path):
    (row,) = rows(tmp_path, "3.5 mm. Wide/angle. Shot no. 7\n", ".txt")
    assert row.output == "000-3.5-mm.-Wide_angle.-Shot-no.-7.npz"


def test_names_of_long_words_and_many_lines(tmp_path):
    found = rows(tmp_path, "\n" * 1000 + "犬" * 500, ".TXT")
    assert [row.output for row in found[998:1000]] == ["998-.npz", "999-.npz"]
    assert found[1000].output == f"1000-{'犬' * 82}.npz" and len(found[1000].output.encode()) <= 255
    assert found[1000].text == "犬" * 500


def test_rows_are_read_when_they_are_asked_for(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"video,caption\n" + b"a.mp4,x\n" * 20_000 + b"\xff\n")
    assert len(list(islice(read_prompts(path), 5))) == 5
    with pytest.raises(UserError, match="not a UTF-8 CSV"):
        list(read_prompts(path))


@pytest.mark.parametrize(
    "suffix, content, words",
    [
        (".csv", "", "is empty; it needs a header line such as video,caption"),
        (".csv", "video,caption\n", "lists no prompts"),
        (".csv", "video,text\na,b\n", "has no column 'caption', only video, text; see --column_names"),
        (".csv", "gr\u00fcn,caption\n".encode("latin-1"), "not a UTF-8 CSV file"),
        (".csv", "video,caption\na,b\n".encode("utf-16"), "not a UTF-8 CSV file"),
        (".csv", "video,caption\na,b\n".encode("utf-16-le"), "has no column 'video'"),
        (".csv", bytes(range(256)) * 20, "not a UTF-8 CSV file"),
        (".txt", "", "lists no prompts"),
        (".txt", bytes(range(256)), "not a UTF-8 text file"),
        (".json", "{}", "neither .csv nor .txt"),
        ("", "a\n", "neither .csv nor .txt"),
    ],
)
def test_files_that_are_no_lists(tmp_path, suffix, content, words):
    with pytest.raises(UserError) as error:
        rows(tmp_path, content, suffix)
    assert str(error.value).startswith(f"prompts_file: {tmp_path / f'list{suffix}'} ")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_quotation_mark_that_is_not_closed(tmp_path):
    with pytest.raises(UserError, match="list.csv: a quotation mark in row 2 is not closed"):
        rows(tmp_path, 'video,caption\na.mp4,x\nb.mp4,"y\nc.mp4,z\n')
    # With quotes further down only what they are mixed up with is lost, and told.
    found = rows(tmp_path, 'video,caption\na.mp4,"x\nb.mp4,"y"\nc.mp4,"z"\n')
    assert [(row.row, row.name, row.error is None) for row in found] == [(1, "", False), (2, "c.mp4", True)]


def test_missing_file_and_folder(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("none.csv", "none.txt", "folder.csv"):
        with pytest.raises(UserError, match="is not a file"):
            list(read_prompts(tmp_path / name))
