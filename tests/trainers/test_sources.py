"""Where a run begins: own checkpoints, remote copies, another run's checkpoint or weights."""

import itertools
import shutil

import mindspore as ms
import numpy as np
import pytest
import remote_drivers
import trainer_toy
from remote_drivers import DriverError, Flaky
from sources_toy import rows, toy
from trainer_toy import ToyLoss, ToyNet, ToySource, toy_config

import mg.device
from mg.config.trainer import TrainerConfig
from mg.dataset.quarantine import Quarantine
from mg.errors import BadClip, UserError
from mg.files import write_bytes
from mg.trainers import Trainer, checkpoint, mirror
from mg.trainers.remote import RemoteFolder
from mg.trainers.sources import record_to_read
from mg.weights import read_weights


@pytest.fixture(autouse=True)
def drivers(monkeypatch, graph_mode):
    mg.device.setup("CPU", "pynative")  # spares a compilation per run; what is tested knows nothing of the mode
    remote_drivers.register()
    monkeypatch.setattr(mirror.Mirror.__init__, "__kwdefaults__", {"attempts": 3, "pause": 0.001})


def tensors(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def names(output):
    return sorted(path.name for path in output.glob("step-*"))


def source(output):
    found = [row for row in rows(output, "events") if row["event"] == "source"]
    return found[-1]["lines"][0]


def equal_to(straight, output, step=10):
    assert tensors(output / f"step-{step:08d}") == tensors(straight / f"step-{step:08d}")
    for name in ("metrics", "validation"):
        assert rows(output, name) == [row for row in rows(straight, name) if row["step"] <= step]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_run_goes_on_from_its_remote_copies_alone(straight, tmp_path, scheme):
    url = "memory://bucket/run" if scheme == "memory" else f"file://{tmp_path}/there"
    toy(tmp_path / "first", 7, remote=url).fit()  # 7: a step of its own, without validation in the whole run
    saved = [row for row in rows(tmp_path / "first", "events") if row["event"] == "remote_save"]
    assert saved and saved[-1]["attempts"] == 1
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "second", ignore_errors=True)
    toy(tmp_path / "second", 10, remote=url).fit()
    assert source(tmp_path / "second") == f"everything from remote: {url}, step 7"
    assert tensors(tmp_path / "second" / "step-00000010") == tensors(straight / "step-00000010")
    assert rows(tmp_path / "second") == rows(straight)
    assert names(tmp_path / "second") == ["step-00000004", "step-00000008", "step-00000010"]  # 4 is the best
    assert (tmp_path / "second" / "BEST").read_text() == "step-00000004\n"
    assert RemoteFolder(url, "train.remote").steps() == [4, 8, 10]
    assert [row["event"] for row in rows(tmp_path / "second", "events")].count("start") == 1  # that of the first


def test_a_remote_folder_that_fails_all_the_time_does_not_touch_the_training(straight, tmp_path):
    Flaky.failures, Flaky.error = 10**6, DriverError
    toy(tmp_path / "run", 10, remote="flaky://run").fit()
    equal_to(straight, tmp_path / "run")
    failed = [row for row in rows(tmp_path / "run", "events") if row["event"] == "remote_failed"]
    assert failed and failed[-1]["reason"] == "DriverError: connection reset"
    Flaky.failures = 0
    toy(tmp_path / "run", 10, remote="flaky://run").fit()  # nothing to train, but to copy
    assert RemoteFolder("flaky://run", "train.remote").steps() == [4, 8, 10]


def test_what_is_ahead_wins_whether_here_or_there(tmp_path):
    toy(tmp_path / "run", 4, remote="memory://run").fit()
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    toy(tmp_path / "run", 8, remote="memory://run").fit()
    toy(tmp_path / "old", 8, remote="memory://run").fit()
    assert source(tmp_path / "old") == "everything from remote: memory://run, step 8"
    assert [row["step"] for row in rows(tmp_path / "old")] == list(range(1, 9))
    toy(tmp_path / "old", 10).fit()
    toy(tmp_path / "old", 10, remote="memory://run").fit()
    assert source(tmp_path / "old").startswith(f"everything from output_path: {tmp_path / 'old'}/step-00000010")


def test_a_remote_folder_out_of_reach_is_an_error_only_where_nothing_else_is(tmp_path, monkeypatch, capfd):
    toy(tmp_path / "run", 2).fit()

    class NoRoute(OSError):
        """Many drivers take an error of the operating system for absence where they are asked whether a file exists."""

    def ls(self, path, **options):
        raise NoRoute("no route to host")

    for name in ("ls", "info"):
        monkeypatch.setattr(Flaky, name, ls)
    with pytest.raises(UserError, match=r"train.remote=flaky://run: cannot be reached \(no route to host\), and"):
        toy(tmp_path / "new", 4, remote="flaky://run").fit()
    toy(tmp_path / "run", 4, remote="flaky://run").fit()
    assert "flaky://run: cannot be reached (no route to host); going on with what is here" in capfd.readouterr().err
    assert names(tmp_path / "run")[-1] == "step-00000004"


@pytest.mark.parametrize("part", ["metrics.jsonl", "step-00000004/model"])
def test_what_breaks_off_before_everything_is_here_is_copied_by_the_next_start(straight, tmp_path, part):
    toy(tmp_path / "first", 6, remote="flaky://run").fit()
    Flaky.unreadable = part
    with pytest.raises(UserError, match=r"train.remote=flaky://run: cannot be reached \(connection timed out\)"):
        toy(tmp_path / "second", 10, remote="flaky://run").fit()
    assert names(tmp_path / "second") == []
    Flaky.unreadable = None
    toy(tmp_path / "second", 10, remote="flaky://run").fit()
    equal_to(straight, tmp_path / "second")
    assert names(tmp_path / "second") == ["step-00000004", "step-00000008", "step-00000010"]
    RemoteFolder("flaky://run", "train.remote").fetch_logs(tmp_path)
    assert rows(tmp_path) == rows(straight)


def test_logs_of_another_run_that_cannot_be_read_are_not_done_without(straight, tmp_path):
    toy(tmp_path / "first", 6, remote="flaky://run").fit()
    Flaky.unreadable = "validation.jsonl"
    with pytest.raises(UserError, match=r"^train.resume_from=flaky://run: its logs cannot be copied \(connection"):
        toy(tmp_path / "second", 10, resume_from="flaky://run").fit()
    assert names(tmp_path / "second") == []
    Flaky.unreadable = None
    toy(tmp_path / "second", 10, resume_from="flaky://run").fit()
    equal_to(straight, tmp_path / "second")


class Failing:
    """Files 0 to 2 in turn; the one of a failure is left out from then on, and another takes its place."""

    def __init__(self, bad_list, failures=()):
        self.quarantine, self.failures = Quarantine(3, 1.0, bad_list), failures

    def __call__(self, start):
        self.quarantine.reload()
        return map(self.batch_of, itertools.count(start))

    def batch_of(self, index):
        name = str(index % 3)
        if index in self.failures:
            self.quarantine.add(BadClip(name, "cannot be read just now"))
        return ToySource().batch(index + 1000 * (name in self.quarantine.reasons))


def test_what_was_found_bad_is_left_out_wherever_the_run_goes_on(tmp_path):
    """A file that could not be read for once: the batches from there on depend on it."""

    def run(folder, steps, failures=(), **changes):
        source = Failing(tmp_path / folder / "bad_videos.jsonl", failures)
        toy(tmp_path / folder, steps, source=source, **changes).fit()

    run("straight", 6, failures=(1,))
    run("first", 2, failures=(1,), remote="memory://run")
    for name, place in (("resume_from", str(tmp_path / "first")), ("resume_from", "memory://run"),
                        ("remote", "memory://run")):  # fmt: skip
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        run("second", 6, **{name: place})
        equal_to(tmp_path / "straight", tmp_path / "second", 6)
    (tmp_path / "first" / "bad_videos.jsonl").unlink()
    run("first", 6)
    assert rows(tmp_path / "first")[2:] != rows(tmp_path / "straight")[2:]


def test_a_record_is_read_where_the_run_will_go_on(tmp_path):
    def read(**options):
        with record_to_read(tmp_path / "run", TrainerConfig(steps=9, **options), "items.json") as path:
            return path.read_text() if path.exists() else None

    elsewhere = {"remote": "flaky://run", "resume_from": "flaky://other/step-00000002"}
    assert read() is None and read(**elsewhere) is None
    for place, step in (("there", 4), ("other", 2), ("run", 3)):
        checkpoint.save(tmp_path / place, step, {"model": {"w": np.zeros(3, np.float32)}}, {})
        (tmp_path / place / "items.json").write_text(place)
    for url, place, step in (("flaky://other", "other", 2), ("flaky://run", "there", 4)):
        RemoteFolder(url, "train.remote").push(tmp_path / place / f"step-{step:08d}")
        RemoteFolder(url, "train.remote").push_logs(tmp_path / place)
    assert read() == read(resume_from=elsewhere["resume_from"]) == "run" and read(**elsewhere) == "there"
    shutil.rmtree(tmp_path / "there")
    Flaky.unreadable = "/run"
    assert read(**elsewhere) == "run"
    (tmp_path / "run" / "step-00000003").rename(tmp_path / "run" / "step-00000005")
    Flaky.unreadable = None
    assert read(**elsewhere) == "run"
    shutil.rmtree(tmp_path / "run")
    assert read(**elsewhere) == "there" and read(resume_from=elsewhere["resume_from"]) == "other"
    assert read(resume_from=str(tmp_path / "other")) == "other"
    Flaky.unreadable = "/run"
    with pytest.raises(UserError, match="^train.remote=flaky://run: cannot be reached"):
        read(**elsewhere)
    Flaky.unreadable = "items.json"
    with pytest.raises(UserError, match="^flaky://other/items.json: cannot be read .connection timed out.; try again"):
        read(resume_from=elsewhere["resume_from"])
    assert not (tmp_path / "run").exists()  # nothing is copied there


def test_the_records_of_all_processes_are_copied(tmp_path):
    files = {
        "bad_videos.jsonl": b"0", "items.json": b"items",
        "ranks/1/bad_videos.jsonl": b"1", "ranks/12/bad_videos.jsonl": b"12",
    }  # fmt: skip
    for name, data in files.items():
        write_bytes(tmp_path / "here" / name, data)
    (tmp_path / "here" / "ranks" / "2").mkdir()
    (tmp_path / "here" / "ranks" / "1" / "metrics.jsonl").write_text("of that process alone")
    remote = RemoteFolder("memory://run", "train.remote")
    remote.push_logs(tmp_path / "here")
    remote.fetch_logs(tmp_path / "back")
    found = (path for path in (tmp_path / "back").rglob("*") if path.is_file())
    assert {str(path.relative_to(tmp_path / "back")): path.read_bytes() for path in found} == files


@pytest.mark.parametrize("kind", ["remote", "url", "path"])
def test_nothing_of_a_refused_checkpoint_is_left_behind(tmp_path, kind):
    toy(tmp_path / "run", 7, remote="memory://run").fit()
    place = str(tmp_path / "run") if kind == "path" else "memory://run"
    option = {"remote": place} if kind == "remote" else {"resume_from": place}
    said = f"^{place}/step-00000007: cannot resume, the run differs: trainer.seed was 0 is 1; "
    with pytest.raises(UserError, match=said):
        toy(tmp_path / "other", 8, seed=1, **option).fit()
    assert [path.name for path in (tmp_path / "other").rglob("*")] == [".lock"]


def test_a_damaged_remote_checkpoint_keeps_out_none_of_the_later_copies(straight, tmp_path):
    url, there = f"file://{tmp_path}/there", tmp_path / "there"
    toy(tmp_path / "first", 10, remote=url, keep_last=1).fit()
    with open(there / "step-00000010" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    toy(tmp_path / "second", 8, remote=url, keep_last=1).fit()
    assert source(tmp_path / "second") == f"everything from remote: {url}, step 4"
    assert RemoteFolder(url, "train.remote").steps() == [4, 8]
    equal_to(straight, there, 8)
    toy(tmp_path / "second", 10, remote=url, keep_last=1).fit()
    assert RemoteFolder(url, "train.remote").steps() == [4, 10]
    equal_to(straight, there)


@pytest.mark.parametrize("kind", ["step", "run", "url", "step url"])
def test_everything_of_another_run_is_resumed_and_the_logs_are_joined(straight, tmp_path, kind):
    earlier = tmp_path / "earlier"
    shutil.copytree(straight, earlier)
    for step in (8, 10) if "step" not in kind else ():
        shutil.rmtree(earlier / f"step-{step:08d}")
    place = {"step": f"{earlier}/step-00000006", "run": str(earlier), "url": f"file://{earlier}",
             "step url": f"file://{earlier}/step-00000006/"}[kind]  # fmt: skip
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    toy(tmp_path / "run", 10, resume_from=place).fit()
    assert source(tmp_path / "run") == f"everything from resume_from: {place}, step 6"
    equal_to(straight, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    assert (tmp_path / "run" / "BEST").read_text() == "step-00000008\n"  # the best of this folder
    toy(tmp_path / "run", 12, resume_from=place).fit()  # the same command again: its own come first
    assert source(tmp_path / "run").startswith(f"everything from output_path: {tmp_path / 'run'}/step-00000010")


@pytest.mark.parametrize(
    "place, words",
    [
        ("{0}/none", "train.resume_from={0}/none: there is no valid checkpoint"),
        ("{0}/step-00000003", "train.resume_from={0}/step-00000003: missing, incomplete or damaged"),
        ("file://{0}/none", "train.resume_from=file://{0}/none: there is no valid checkpoint"),
        ("nonsense://x", "train.resume_from=nonsense://x: "),
    ],
)
def test_nothing_to_resume_from_is_an_error(straight, tmp_path, place, words):
    place, words = place.format(straight), words.format(straight)
    with pytest.raises(UserError) as caught:
        toy(tmp_path / "run", 10, resume_from=place).fit()
    assert str(caught.value).startswith(words)


def test_going_back_drops_the_logs_beyond(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    place = f"{run}/step-00000006"
    with pytest.raises(UserError, match="has newer checkpoints, up to step 10; to go back, move those away"):
        toy(run, 10, resume_from=place).fit()
    assert rows(run) == rows(straight)
    for step in (8, 10):
        shutil.rmtree(run / f"step-{step:08d}")
    (run / "STOP").touch()
    toy(run, 10, resume_from=place).fit()  # stops before the first step
    assert [row["step"] for row in rows(run)] == list(range(1, 7))
    assert [row["step"] for row in rows(run, "validation")] == [2, 4, 6]
    toy(run, 10).fit()
    equal_to(straight, run)


def averaged(folder):
    return {**read_weights(folder / "model.safetensors"), **{
        name: array for name, array in read_weights(folder / "ema.safetensors").items() if not name.startswith("loss.")
    }}


@pytest.mark.parametrize("kind", ["run", "step", "url"])
def test_weights_alone_begin_a_new_run(straight, tmp_path, kind):
    place = {"run": str(straight), "step": f"{straight}/step-00000010", "url": f"file://{straight}"}[kind]
    seen = {}

    class Looking(ToySource):
        def batch(self, index):
            if index == 0:
                seen.update((name, value.asnumpy().copy()) for name, value in trainer._main.weights.items())
                seen.update((f"ema.{name}", value.asnumpy().copy()) for name, value in
                            zip(trainer._main.trained, trainer._main.averages, strict=True))
            return super().batch(index)

    trainer = toy(tmp_path / "run", 3, source=Looking(seed=5), init_from=place, seed=5)
    assert trainer.fit()["step"] == 3
    want = averaged(straight / "step-00000010")
    raw = read_weights(straight / "step-00000010" / "model.safetensors")
    assert not np.array_equal(want["last.bias"], raw["last.bias"])
    for name, array in want.items():
        np.testing.assert_array_equal(seen[name], array)
        if name != "frozen":
            np.testing.assert_array_equal(seen[f"ema.{name}"], array)
    lines = rows(tmp_path / "run", "events")[1]["lines"]
    assert lines == [
        f"weights, and nothing else, from train.init_from={place}, step 10", "unlike there: trainer.seed was 0 is 5",
    ]
    assert rows(tmp_path / "run")[0]["step"] == 1 and trainer.updates == 3
    # A fresh optimizer: the same as a run whose network was made with these weights.
    network = ToyNet()
    for name, param in network.parameters_and_names():
        param.set_data(ms.Tensor(want[name]))
    same = Trainer(network=network, loss=ToyLoss(network), batches=ToySource(seed=5),
                   config=toy_config(3, seed=5), output_path=tmp_path / "same")  # fmt: skip
    same.fit()
    assert tensors(tmp_path / "run" / "step-00000003") == tensors(tmp_path / "same" / "step-00000003")
    toy(tmp_path / "run", 4, source=ToySource(seed=5), init_from=place, seed=5).fit()
    assert source(tmp_path / "run").startswith("everything from output_path: ")


class WiderNet(ToyNet):
    """Another last layer, and a parameter more."""

    def __init__(self):
        super().__init__()
        self.last.weight = ms.Parameter(ms.Tensor(np.zeros((trainer_toy.TARGETS, 2 * trainer_toy.HIDDEN), np.float32)))
        self.more = ms.Parameter(ms.Tensor(np.float32([3.0])))
        del self.frozen


def test_weights_that_do_not_fit_are_listed_and_left_out_on_request(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_toy, "ToyNet", WiderNet)
    with pytest.raises(UserError) as caught:
        toy(tmp_path / "run", 3, init_from=str(straight)).fit()
    assert str(caught.value) == (
        f"train.init_from={straight}: does not fit: more is missing there, frozen is not in the network, "
        "last.weight is (3, 8) instead of (3, 16); set train.init_strict false to leave these out"
    )
    trainer = toy(tmp_path / "run", 3, init_from=str(straight), init_strict=False)
    resumed, lines = trainer._begin()
    assert not resumed and lines[1:4] == [
        "left out: more is missing there", "left out: frozen is not in the network",
        "left out: last.weight is (3, 8) instead of (3, 16)",
    ]
    weights = {name: value.asnumpy() for name, value in trainer._main.weights.items()}
    np.testing.assert_array_equal(weights["first.weight"], averaged(straight / "step-00000010")["first.weight"])
    assert not weights["last.weight"].any() and weights["more"] == 3.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"remote": "bucket/run"}, "remote='bucket/run' must be a URL, such as file:///folder"),
        ({"remote": ""}, "remote='' must be the name of a folder, or left out"),
        ({"init_from": "a", "resume_from": "b"}, "init_from='a' must be left out where resume_from is given: that one "
         "brings its weights along"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(UserError) as caught:
        TrainerConfig(steps=5, **options)
    assert str(caught.value) == words
