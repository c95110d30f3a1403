import json
import math
import os
import re
import socket
import subprocess
import sys

from mg.trainers.about import git_commit
from mg.trainers.pace import Pace
from mg.trainers.runlog import RunLog


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resume_drops_the_lines_beyond_it_and_a_torn_one(tmp_path):
    log = RunLog(tmp_path, 0, 10)
    for step in (1, 2, 3, 4):
        log.row("metrics", step, {"loss": step / 8})
    log.row("bad_steps", 4, {"loss": "nan"})
    log.event("save", step=2)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    log = RunLog(tmp_path, 2, 10)
    log.row("metrics", 3, {"loss": 9.0})
    log.close()
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.125}, {"step": 2, "loss": 0.25}, {"step": 3, "loss": 9.0},
    ]
    assert rows(tmp_path / "bad_steps.jsonl") == []
    assert [row["event"] for row in rows(tmp_path / "events.jsonl")] == ["save"]


def test_lines_are_on_the_disk_at_once_and_not_finite_numbers_are_null(tmp_path):
    log = RunLog(tmp_path, 0, 10)
    log.row("metrics", 1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "grad_norm": None, "lr": 0.1}]
    log.close()


def test_one_line_per_logged_step_that_a_simple_parser_reads(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 10)
    values = {"loss": 0.123456789, "disc.loss": math.nan, "lr": 1e-5, "grad_norm": math.inf, "skipped": True}
    log.show(3, values, line=True)
    log.show(4, values, line=False)
    log.tell("validation", 3, {"val_psnr": 24.0, "val_ssim": None, "clip": "a b"})
    log.close()
    lines = [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "train step=3 loss=0.123457 disc.loss=nan lr=1e-05 grad_norm=inf skipped=1",
        "validation step=3 val_psnr=24 val_ssim=nan clip=a_b",
    ]
    pairs = dict(word.split("=") for word in lines[0].split()[1:])
    assert list(pairs) == ["step", *values] and float(pairs["lr"]) == 1e-5 and math.isnan(float(pairs["disc.loss"]))


def test_run_log_has_the_lines_of_the_terminal_with_the_date_also_behind_a_progress_bar(tmp_path, capsys, monkeypatch):
    for terminal in (False, True):
        monkeypatch.setattr(type(sys.stderr), "isatty", lambda self, terminal=terminal: terminal, raising=False)
        log = RunLog(tmp_path, 0, 10)
        log.show(1, {"loss": 0.5}, line=True)
        log.show(2, {"loss": 0.25}, line=False)
        log.say("something")
        log.close()
        log.say("afterwards")
        assert ("INFO train step=1" in capsys.readouterr().err) is not terminal  # the bar stands for the line
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO ", "", line) for line in lines] == [
        "train step=1 loss=0.5", "something",
    ] * 2


def test_a_torn_event_does_not_spoil_the_next_one(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "sa')
    log = RunLog(tmp_path, 0, 10)
    log.event("stop", step=3)
    log.close()
    assert [row["event"] for row in rows(tmp_path / "events.jsonl")] == ["start", "stop"]


def test_the_start_says_where_the_run_runs(tmp_path, capsys):
    import mindspore

    import mg

    log = RunLog(tmp_path, 0, 10)
    log.begin(False, 0, {"steps": 10, "betas": (0.9, 0.99)})
    log.close()
    (event,) = rows(tmp_path / "events.jsonl")
    place = event["about"]
    assert (event["event"], event["step"], event["config"]) == ("start", 0, {"steps": 10, "betas": [0.9, 0.99]})
    assert (place["version"], place["mindspore"], place["device"]) == (mg.__version__, mindspore.__version__, "CPU")
    assert place["host"] == socket.gethostname() and place["pid"] == os.getpid()
    assert f"MindSpore {mindspore.__version__} on CPU, host {place['host']}" in capsys.readouterr().err


def test_the_commit_is_that_of_the_repository_and_says_whether_files_were_changed(tmp_path):
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{head}-dirty"


def test_the_pace_is_the_mean_over_the_steps_without_compilation():
    pace = Pace()
    assert pace.summary() == {"step_time": None, "samples_per_s": None, "steps": 0, "left_out": 0}
    for seconds, samples, graphs in ((9.0, 4, 3), (1.0, 4, 3), (2.0, 8, 3), (7.0, 4, 5), (3.0, 4, 5)):
        pace.add(seconds, samples, graphs)
    assert pace.summary() == {"step_time": 2.0, "samples_per_s": 16 / 6, "steps": 3, "left_out": 2}
    pace.add(2.0, 4, 5, {"frames": 32})
    assert pace.summary()["frames_per_s"] == 32 / 8
