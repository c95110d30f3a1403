"""Lists of clips: good ones, and every way a CSV can be wrong."""

import re
from pathlib import Path

import pytest

from mg.dataset.manifest import existing, read_lists, read_manifest, scan_folder
from mg.errors import UserError

CLIPS = Path(__file__).parents[2] / "assets" / "clips"


def write(folder, text, encoding="utf-8"):
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_rows_in_order_with_captions(tmp_path):
    path = write(tmp_path, 'video,caption\nb.mp4,"one, two"\nsub dir/\u00fc \u4f60.mp4,\n\n../c.PNG,x\n')
    items = read_manifest(path, tmp_path)
    assert [(item.name, item.caption, item.row) for item in items] == [
        ("b.mp4", "one, two", 1), ("sub dir/\u00fc \u4f60.mp4", None, 2), ("../c.PNG", "x", 3),
    ]  # fmt: skip
    assert items[1].path == tmp_path / "sub dir" / "\u00fc \u4f60.mp4"
    assert [item.is_image for item in items] == [False, False, True]


@pytest.mark.parametrize("text", ["\ufeffvideo,caption\na.mp4,hi\n", "caption , video\r\nhi,a.mp4\r\n"])
def test_byte_order_mark_spaces_and_windows_lines(tmp_path, text):
    (item,) = read_manifest(write(tmp_path, text), tmp_path)
    assert (item.name, item.caption) == ("a.mp4", "hi")


def test_absolute_paths_and_other_columns(tmp_path):
    (item,) = read_manifest(write(tmp_path, "clip\n/data/x.mp4\n"), tmp_path, column="clip")
    assert item.path == Path("/data/x.mp4") and item.caption is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("video,caption\n", "lists no clips"),
        ("file,caption\na.mp4,x\n", "no column 'video', only file, caption"),
        ("video,caption\n,x\n", "row 1: column 'video' is empty"),
        ("video,caption\na.mp4,x\nb.mp4,one, two\n", "row 2 has more fields"),
        ("video,caption\na\0.mp4,x\n", "UTF-8 CSV"),
    ],
)
def test_malformed_list(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path, tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_encodings_are_named(tmp_path):
    with pytest.raises(UserError, match="not a UTF-8 CSV"):
        read_manifest(write(tmp_path, "video\ngr\u00fcn.mp4\n", "latin-1"), tmp_path)


def test_missing_list_and_folder(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"csv_path: {tmp_path / 'no.csv'} is not a file")):
        read_manifest(tmp_path / "no.csv", tmp_path)
    with pytest.raises(UserError, match=re.escape(f"video_folder: {tmp_path / 'no'} is not a folder")):
        read_manifest(write(tmp_path, "video\na.mp4\n"), tmp_path / "no")


def test_existing_splits_in_order(tmp_path):
    (tmp_path / "b.mp4").touch()
    (tmp_path / "d.mp4").touch()
    items = read_manifest(write(tmp_path, "video\na.mp4\nb.mp4\nc.mp4\nd.mp4\n"), tmp_path)
    good, missing = existing(items)
    assert [item.row for item in good] == [2, 4] and [item.row for item in missing] == [1, 3]


def test_scan_folder(tmp_path):
    for name in ("b.mp4", "a/z.MOV", "a/still.jpg", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [item.name for item in scan_folder(tmp_path)] == ["a/still.jpg", "a/z.MOV", "b.mp4"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no video"):
        scan_folder(empty)


def test_bundled_lists_are_complete_and_disjoint():
    names = ("videos", "train", "test")
    lists = {name: [item.name for item in read_manifest(CLIPS / f"{name}.csv", CLIPS)] for name in names}
    assert sorted(lists["train"] + lists["test"]) == sorted(lists["videos"])
    assert sorted(lists["videos"]) == sorted(path.name for path in CLIPS.glob("*.mp4"))
    licences = (CLIPS / "LICENSES.md").read_text()
    assert [name for name in lists["videos"] if f"| {name} |" not in licences] == []


def test_a_folder_without_a_list_is_the_list_of_its_files(tmp_path):
    for name in ("b.mp4", "sub/a.mkv", "a.png", "C.mov", "notes.txt"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    (tmp_path / "list.csv").write_text("video\nC.mov\na.png\nb.mp4\nsub/a.mkv\n")
    listed, scanned = read_manifest(tmp_path / "list.csv", tmp_path / "v"), scan_folder(tmp_path / "v")
    assert scanned == listed
    lists = read_lists([str(tmp_path / "list.csv"), str(tmp_path / "v")], tmp_path / "v")
    assert list(lists.values()) == [listed, scanned]


def test_lists_that_call_different_files_alike_are_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").touch()
        (tmp_path / folder / "list.csv").write_text("video\na.mp4\n")
    paths = [str(tmp_path / folder / "list.csv") for folder in ("x", "y")]
    with pytest.raises(UserError, match=r"^a\.mp4 is .*x/a\.mp4 in .*x/list\.csv and .*y/a\.mp4 in .*rename one"):
        read_lists(paths)
    assert len(read_lists(paths, tmp_path / "x")) == 2
