import json
import math

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
