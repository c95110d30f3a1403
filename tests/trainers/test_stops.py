import json
import os
import signal

import pytest
from trainer_toy import ToySource, toy_trainer

import mg.device
from mg.trainers.stops import Stops


@pytest.fixture(autouse=True)
def pynative(graph_mode):
    mg.device.setup("CPU", "pynative")  # spares a compilation per run; what is tested knows nothing of the mode


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Acting(ToySource):
    """Does something while batch 4 is made: in the third step of two micro-batches."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def batch(self, index):
        if index == 4:
            self.act()
        return super().batch(index)


def last_event(output):
    return json.loads((output / "events.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("number, again", [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGUSR1, True)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path, number, again):
    figures = toy_trainer(tmp_path, 8, Acting(lambda: os.kill(os.getpid(), number)), save_every=100).fit()
    assert (figures["step"], figures["stopped"], figures["restart"]) == (3, True, again)
    assert (tmp_path / "LATEST").read_text() == "step-00000003\n"
    # MindSpore turns a SIGINT into a SIGTERM once it has compiled a graph.
    assert last_event(tmp_path)["reason"] in {number.name, number.name.replace("INT", "TERM")}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was before
    straight = toy_trainer(tmp_path / "straight", 8, save_every=100).fit()
    again = toy_trainer(tmp_path, 8, save_every=100).fit()
    assert (again["step"], again["stopped"], again["loss"]) == (8, False, straight["loss"])


def test_the_file_stops_the_run_and_is_taken_away(tmp_path):
    figures = toy_trainer(tmp_path, 8, Acting((tmp_path / "STOP").touch)).fit()
    step = figures["step"]  # it is looked for about once a second
    assert 3 <= step <= 8 and (tmp_path / f"step-{step:08d}").is_dir()


def test_a_file_that_is_there_at_the_start_stops_before_the_first_step(tmp_path):
    (tmp_path / "STOP").touch()
    figures = toy_trainer(tmp_path, 4).fit()
    assert (figures["step"], figures["stopped"], figures["restart"]) == (0, True, False)
    assert not (tmp_path / "STOP").exists() and not list(tmp_path.glob("step-*"))
    assert toy_trainer(tmp_path, 4).fit()["step"] == 4


def test_the_time_given_stops_the_run_which_wants_a_restart(tmp_path):
    figures = toy_trainer(tmp_path, 1000, max_minutes=1e-6).fit()
    assert (figures["step"], figures["stopped"], figures["restart"]) == (0, True, True)


def test_a_run_that_is_complete_wants_no_restart(tmp_path):
    kill = lambda: os.kill(os.getpid(), signal.SIGUSR1)  # noqa: E731
    figures = toy_trainer(tmp_path, 3, Acting(kill)).fit()
    assert (figures["step"], figures["stopped"], figures["restart"]) == (3, False, False)


def test_file_and_time_are_looked_at_by_the_clock(tmp_path):
    clock = Clock()
    stops = Stops(tmp_path, max_minutes=2, clock=clock)
    assert stops.reason is None
    (tmp_path / "STOP").touch()
    clock.now += 0.5
    assert stops.reason is None  # not looked for again yet
    clock.now += 0.6
    assert stops.reason == "STOP" and not stops.wants_restart
    clock.now += 1000
    assert stops.reason == "STOP"  # the first reason stays
    stops.obeyed()
    assert not (tmp_path / "STOP").exists()
    timed = Stops(tmp_path, max_minutes=2, clock=clock)
    clock.now += 119
    assert timed.reason is None
    clock.now += 1
    assert timed.reason == "max_minutes" and timed.wants_restart


def test_the_second_signal_has_its_usual_effect(tmp_path):
    stops = Stops(tmp_path)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stops:
            # Not os.kill: any thread of the process may get that signal, and the handler then runs some time later.
            signal.raise_signal(signal.SIGINT)
            assert stops.reason == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_signal_between_the_question_and_the_next_step_is_met_after_that_step(tmp_path):
    """Nothing is lost: the run never ends at a step that is not saved."""
    seen = []

    def hook(point):
        if point == "latest" and not seen:
            seen.append(point)
            os.kill(os.getpid(), signal.SIGTERM)

    figures = toy_trainer(tmp_path, 8, hook=hook, save_every=2).fit()
    assert figures["step"] == 3 and (tmp_path / "LATEST").read_text() == "step-00000003\n"
