"""Copies of checkpoints at a URL: whole or absent, verified, tried again, kept by the run's rules."""

import json
import sys

import fsspec
import numpy as np
import pytest
import remote_drivers
from remote_drivers import DriverError, Flaky, Lossy

from mg.errors import UserError
from mg.trainers import checkpoint
from mg.trainers.mirror import Mirror
from mg.trainers.remote import RemoteFolder, is_url, split_step


@pytest.fixture(autouse=True)
def drivers():
    remote_drivers.register()


def write(output, step):
    return checkpoint.save(output, step, {"model": {"w": np.full((3, 2), step, np.float32)}}, {"updates": step})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(url):
    fs, path = fsspec.core.url_to_fs(url)
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.find(path)}


def newest(steps):
    return steps[-2:]


def mirrored(url, output, steps, kept=newest, **options):
    """Copy steps to the end; return the reports."""
    mirror = Mirror(RemoteFolder(url, "train.remote"), output, kept, pause=0.001, **options)
    for step in steps:
        mirror.submit(step)
    assert mirror.close(30)
    return [(row["event"], row["step"], row["attempts"]) for row in mirror.reports()]


@pytest.mark.parametrize("scheme", ["memory", "file", "flaky"])
def test_a_copy_is_equal_and_comes_back_equal(tmp_path, scheme):
    folder = write(tmp_path / "here", 3)
    place = f"file://{tmp_path}/there" if scheme == "file" else f"{scheme}://bucket/run"
    remote = RemoteFolder(place, "train.remote")
    assert remote.steps() == [] and remote.fetch_newest(tmp_path / "back") is None
    assert remote.push(folder) is True
    assert stored(f"{place}/{folder.name}") == contents(folder)
    assert remote.steps() == [3]
    assert remote.push(folder) is False  # the very same is there
    fetched = remote.fetch_newest(tmp_path / "back")
    assert checkpoint.committed(tmp_path / "back") == {}  # not before all that belongs to it is there
    found = checkpoint.adopt(fetched)
    assert (found.step, found.folder) == (3, tmp_path / "back" / folder.name)
    assert contents(found.folder) == contents(folder)
    assert remote.fetch_newest(tmp_path / "back", beyond=3) is None


def test_the_manifest_is_written_last(tmp_path):
    folder = write(tmp_path, 3)
    RemoteFolder("flaky://run", "train.remote").push(folder)
    assert Flaky.written == ["model.safetensors", "state.json", "manifest.json"]


def test_a_copy_that_was_broken_off_does_not_count_and_is_completed(tmp_path):
    remote = RemoteFolder("flaky://run", "train.remote")
    remote.push(write(tmp_path / "here", 1))
    fs, _ = fsspec.core.url_to_fs("flaky://run")
    folder = write(tmp_path / "here", 2)
    fs.put_file(str(folder / "model.safetensors"), f"/run/{folder.name}/model.safetensors")
    assert remote.steps() == [1] and remote.fetch_newest(tmp_path / "back").step == 1
    remote.push(folder)
    assert remote.steps() == [1, 2]


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "manifest"])
def test_a_damaged_copy_is_passed_over(tmp_path, harm):
    remote = RemoteFolder("memory://run", "train.remote")
    for step in (1, 2):
        remote.push(write(tmp_path / "here", step))
    fs, _ = fsspec.core.url_to_fs("memory://run")
    path = "/run/step-00000002/" + ("manifest.json" if harm == "manifest" else "model.safetensors")
    data = fs.cat_file(path)
    fs.rm_file(path)
    if harm in ("cut", "manifest"):
        fs.pipe_file(path, data[: len(data) // 2])
    elif harm == "flip":
        fs.pipe_file(path, data[:-1] + bytes([data[-1] ^ 1]))
    assert remote.fetch_newest(tmp_path / "back").step == 1
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["step-00000001.tmp"]
    assert remote.steps() == [1, 2]  # a folder that is only read stays as it is


def test_a_damaged_copy_no_longer_counts_as_the_newest(tmp_path):
    remote, here = RemoteFolder("memory://run", "train.remote"), tmp_path / "here"
    for step in (5, 10):
        remote.push(write(here, step))
    fs, _ = fsspec.core.url_to_fs("memory://run")
    path = "/run/step-00000010/model.safetensors"
    whole = fs.cat_file(path)
    fs.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    manifest = fs.cat_file("/run/step-00000010/manifest.json")
    assert remote.fetch_newest(tmp_path / "back").step == 5
    write(here, 6)
    mirror = Mirror(remote, here, lambda steps: steps[-1:], pause=0.001)
    mirror.submit(6)
    assert mirror.close(30) and [row["event"] for row in mirror.reports()] == ["remote_save"]
    assert remote.steps() == [6]
    assert fs.cat_file("/run/step-00000010/manifest.json.damaged") == manifest
    assert remote.push(here / "step-00000010") is True  # reached again
    assert remote.fetch_newest(tmp_path / "back").step == 10 and fs.cat_file(path) == whole


def test_what_the_network_loses_is_no_damage(tmp_path):
    remote = RemoteFolder("flaky://run", "train.remote")
    for step in (1, 2):
        remote.push(write(tmp_path / "here", step))
    Flaky.torn = 1
    assert remote.fetch_newest(tmp_path / "back").step == 2
    for part in ("step-00000002/model", "step-00000002/manifest", "run"):
        Flaky.unreadable = part
        with pytest.raises(DriverError):
            remote.fetch_newest(tmp_path / "again")
        Flaky.unreadable = None
        remote.set_aside()
        assert remote.steps() == [1, 2] and not any(name.endswith(".damaged") for name in stored("flaky://run"))
    assert list((tmp_path / "again").iterdir()) == []


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_copy_with_files_missing_or_cut_is_made_anew(tmp_path, harm):
    remote, folder = RemoteFolder("memory://run", "train.remote"), write(tmp_path, 3)
    remote.push(folder)
    fs, _ = fsspec.core.url_to_fs("memory://run")
    path = "/run/step-00000003/model.safetensors"
    data = fs.cat_file(path)
    fs.rm_file(path)
    if harm == "cut":
        fs.pipe_file(path, data[:-1])
    assert remote.push(folder) is True
    assert stored(f"memory://run/{folder.name}") == contents(folder)
    assert remote.push(folder) is False


def test_a_damaged_checkpoint_here_takes_the_place_of_none_there(tmp_path):
    remote = RemoteFolder("memory://run", "train.remote")
    remote.push(write(tmp_path / "one", 3))
    before = stored("memory://run")
    other = checkpoint.save(tmp_path / "other", 3, {"model": {"w": np.ones(3, np.float32)}}, {"updates": 1})
    (other / "model.safetensors").write_bytes(b"x" * (other / "model.safetensors").stat().st_size)
    with pytest.raises(OSError, match=r"damaged \(model.safetensors has not the CRC of manifest.json\), not copied"):
        remote.push(other)
    assert stored("memory://run") == before


def test_no_checkpoint_is_there_without_its_logs(tmp_path):
    for step in (1, 2):
        write(tmp_path, step)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    mirrored("flaky://run", tmp_path, [2])
    assert Flaky.written == ["metrics.jsonl", "model.safetensors", "state.json", "manifest.json"]
    (tmp_path / "metrics.jsonl").write_text("")  # of a process that could not reach step 2 there
    assert mirrored("flaky://run", tmp_path, [1]) == [("remote_save", 1, 1)]
    assert stored("flaky://run")["metrics.jsonl"] == b'{"step": 2}\n'


@pytest.mark.parametrize("name", ["../evil.json", "..", "a/b", "/etc/x"])
def test_a_manifest_that_names_files_elsewhere_is_not_followed(tmp_path, name):
    fs, _ = fsspec.core.url_to_fs("memory://run")
    entries = [{"name": name, "bytes": 1, "crc32": 0}, {"name": "state.json", "bytes": 1, "crc32": 0}]
    fs.pipe_file("/run/step-00000002/manifest.json", json.dumps({"files": entries}).encode())
    fs.pipe_file("/run/evil.json", b"x")
    assert RemoteFolder("memory://run", "train.remote").fetch_newest(tmp_path / "back") is None
    assert list(tmp_path.rglob("*")) == [tmp_path / "back"]


def test_deleting_takes_the_manifest_first(tmp_path, monkeypatch):
    remote = RemoteFolder("flaky://run", "train.remote")
    for step in (1, 2, 3):
        remote.push(write(tmp_path, step))
    gone = []
    monkeypatch.setattr(Flaky, "rm_file", lambda self, path: gone.append(path) or self.store.pop(path))
    monkeypatch.setattr(Flaky, "rm", lambda self, path, **options: gone.append(path))
    remote.prune(newest)
    assert gone == ["/run/step-00000001/manifest.json", "/run/step-00000001"]
    assert remote.steps() == [2, 3]


@pytest.mark.parametrize("error", [OSError, DriverError])
def test_failures_are_tried_again_and_the_copy_is_equal_in_the_end(tmp_path, error, capfd):
    folder = write(tmp_path, 1)
    Flaky.failures, Flaky.error = 3, error
    assert mirrored("flaky://run", tmp_path, [1]) == [("remote_save", 1, 4)]
    assert stored(f"flaky://run/{folder.name}") == contents(folder)
    assert f"step 1 not copied, attempt 3: {error.__name__}: connection reset" in capfd.readouterr().err


def test_a_byte_lost_on_the_way_is_found_by_reading_back(tmp_path, capfd):
    folder = write(tmp_path, 1)
    Lossy.losses = 1
    assert mirrored("lossy://run", tmp_path, [1]) == [("remote_save", 1, 2)]
    assert stored(f"lossy://run/{folder.name}") == contents(folder)
    assert "model.safetensors: read back" in capfd.readouterr().err


def test_what_fails_for_good_is_reported_and_the_next_one_is_tried_anew(tmp_path):
    for step in (1, 2):
        write(tmp_path, step)
    Flaky.failures = 5
    mirror = Mirror(RemoteFolder("flaky://run", "train.remote"), tmp_path, newest, pause=0.001, attempts=5)
    mirror.submit(1)
    while not (first := mirror.reports()):
        pass
    mirror.submit(2)
    assert mirror.close(30)
    assert [(row["event"], row["step"]) for row in first + mirror.reports()] == [
        ("remote_failed", 1), ("remote_save", 2),
    ]
    assert RemoteFolder("flaky://run", "train.remote").steps() == [2]


def test_the_copies_are_kept_by_the_rules_and_none_is_made_in_vain(tmp_path):
    for step in range(1, 7):
        write(tmp_path, step)
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        (tmp_path / "wandb.json").write_text("{}")  # a run that goes on elsewhere is the same one there
    mirrored("memory://run", tmp_path, [1, 2], lambda steps: {*steps[-2:], *(s for s in steps if s % 4 == 0)})
    reports = mirrored(
        "memory://run", tmp_path, [3, 4, 5, 6], lambda steps: {*steps[-2:], *(s for s in steps if s % 4 == 0)}
    )
    assert RemoteFolder("memory://run", "train.remote").steps() == [4, 5, 6]
    assert all(event == "remote_save" for event, _, _ in reports)
    assert stored("memory://run")["metrics.jsonl"] == b'{"step": 6}\n'
    (elsewhere := tmp_path / "elsewhere").mkdir()
    RemoteFolder("memory://run", "train.remote").fetch_logs(elsewhere)
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {
        "metrics.jsonl": b'{"step": 6}\n', "wandb.json": b"{}",
    }


def test_a_thread_that_does_not_come_to_its_end_is_left_behind(tmp_path, capfd):
    write(tmp_path, 1)
    Flaky.failures = 10**6
    mirror = Mirror(RemoteFolder("flaky://run", "train.remote"), tmp_path, newest, pause=1000)
    mirror.submit(1)
    assert mirror.close(0.2) is False
    assert "the checkpoints of steps 1 not copied in 0.2 s" in capfd.readouterr().err
    Flaky.failures = 0


@pytest.mark.parametrize(
    "url, words", [("nonsense://x", "train.remote=nonsense://x: "), ("abfs://x/y", "train.remote=abfs://x/y: ")]
)
def test_a_url_without_driver_is_told_by_option(url, words):
    with pytest.raises(UserError) as caught:
        RemoteFolder(url, "train.remote")
    assert str(caught.value).startswith(words)


def test_without_fsspec_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"fsspec is not installed; run: pip install 'mg\[remote\]'"):
        RemoteFolder("s3://bucket/run", "train.remote")


def test_places_are_told_apart():
    assert is_url("s3://a/b") and not is_url("/a/b") and not is_url("a:b")
    assert split_step("s3://a/run/step-00000012/") == ("s3://a/run", 12)
    assert split_step("runs/x") == ("runs/x", None) and split_step("step-00000012") == (".", 12)
