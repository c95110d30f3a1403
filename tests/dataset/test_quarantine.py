"""The list of bad files of a run: once each, believed when it is there, and too many are an error."""

import json
import threading

import pytest

from mg.dataset.quarantine import Quarantine
from mg.errors import BadClip, TooManyBadClips, UserError
from mg.log import get_logger


@pytest.mark.parametrize(("total", "share", "allowed"), [
    (5, 0.01, 1), (100, 0.01, 1), (299, 0.01, 2), (1000, 0.01, 10), (10, 0.5, 5), (10, 0.0, 0), (3, 1.0, 3),
])  # fmt: skip
def test_how_many_are_allowed(total, share, allowed):
    quarantine = Quarantine(total, share)
    for number in range(allowed):
        quarantine.add(BadClip(f"{number}.mp4", "damaged"))
        quarantine.add(BadClip(f"{number}.mp4", "damaged"))  # the same one again
    if allowed == total:
        return
    with pytest.raises(TooManyBadClips, match=f"^{allowed + 1} of {total} files are bad, more than max_bad={share}"):
        quarantine.add(BadClip("last.mp4", "empty"))


def test_a_list_is_written_once_per_file_read_again_and_repaired(tmp_path, caplog):
    path = tmp_path / "run" / "bad_videos.jsonl"
    first = Quarantine(10, 1.0, path)
    names = ["a b.mp4", "\u00e9t\u00e9.mp4", "\udcff.mp4", "line\nbreak.mp4"]
    for name in names:
        first.add(BadClip(name, "damaged"))
        first.add(BadClip(name, "damaged"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"path": name, "reason": "damaged"} for name in names]

    with path.open("a") as file:
        file.write("no json\n" + '{"path": "torn.mp4", "rea')  # a crash in the middle of a line
    logger = get_logger()
    logger.addHandler(caplog.handler)
    try:
        again = Quarantine(10, 1.0, path)
        assert again.reasons == dict.fromkeys(names, "damaged")
        again.add_all([BadClip(name, "missing") for name in (*names, "torn.mp4", "new.mp4")], "missing")
    finally:
        logger.removeHandler(caplog.handler)
    with pytest.raises(BadClip, match="a b.mp4: damaged"):
        again.check("a b.mp4")
    again.check("good.mp4")
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "passed over a damaged line" in told and "4 files that" in told and "2 of 10 files are missing" in told
    assert Quarantine(10, 1.0, path).reasons == {**dict.fromkeys(names, "damaged"), "torn.mp4": "missing",
                                                 "new.mp4": "missing"}  # fmt: skip


def test_a_list_that_comes_later_is_taken_in(tmp_path):
    path = tmp_path / "bad.jsonl"
    first = Quarantine(10, 1.0, path)
    first.reload()  # there is none
    first.add(BadClip("own.mp4", "missing"))
    other = Quarantine(10, 1.0, tmp_path / "other.jsonl")
    other.add(BadClip("latents/a.npz", "damaged"), "a.mp4")
    (tmp_path / "other.jsonl").replace(path)
    first.reload()
    assert first.reasons == {"own.mp4": "missing", "latents/a.npz": "damaged"} and first.names == {"a.mp4"}
    kept = path.read_text()
    first.reload()
    assert path.read_text() == kept and len(kept.splitlines()) == 2  # what was noted before stands there again, once
    assert Quarantine(10, 1.0, path).reasons == first.reasons
    assert Quarantine(10, 1.0).reload() is None


def test_items_may_have_other_names_than_their_files(tmp_path):
    first = Quarantine(10, 1.0, tmp_path / "bad.jsonl")
    first.add(BadClip("latents/a.npz", "damaged"), "a.mp4")
    first.add(BadClip("latents/a.npz", "damaged"), "a.mp4")
    assert Quarantine(10, 1.0, tmp_path / "bad.jsonl").names == first.names == {"a.mp4"}
    entry = {"path": "latents/a.npz", "name": "a.mp4", "reason": "damaged"}
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == entry


def test_threads_write_whole_lines(tmp_path):
    path = tmp_path / "bad.jsonl"
    quarantine = Quarantine(200, 1.0, path)
    work = [threading.Thread(target=lambda k=k: [quarantine.add(BadClip(f"{n}.mp4", "x" * 500))
                                                 for n in range(k, 100, 2)]) for k in (0, 1, 0)]  # fmt: skip
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert sorted(json.loads(line)["path"] for line in path.read_text().splitlines()) == sorted(
        f"{n}.mp4" for n in range(100)
    )


def test_a_list_that_cannot_be_read_or_written(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="bytes.jsonl: cannot be read"):
        Quarantine(3, 1.0, tmp_path / "bytes.jsonl")
    (tmp_path / "file").write_text("")
    quarantine = Quarantine(3, 1.0, tmp_path / "file" / "bad.jsonl")
    quarantine.add(BadClip("a.mp4", "damaged"))  # a warning, and the run goes on
    assert quarantine.reasons == {"a.mp4": "damaged"}
