import json
import os
import subprocess
import sys

import pytest

from mg.errors import UserError
from mg.parallel.heartbeats import places, table

NOW = 1_000_000.0


@pytest.fixture
def beat(tmp_path):
    """Write the heartbeat of a rank: its step, seconds since it moved, seconds since its file was written."""

    def call(rank, step, idle=0.0, silent=0.0, phase="step"):
        path = tmp_path / f"heartbeat-rank{rank}.json"
        path.write_text(json.dumps({"step": step, "time": NOW - idle, "phase": phase, "pid": 1}))
        os.utime(path, (NOW - silent, NOW - silent))

    return call


def states(folder, **options):
    return [(place.rank, place.state) for place in places(folder, now=NOW, **options)]


def test_steps_that_differ_by_the_time_of_writing_are_no_delay(beat, tmp_path):
    beat(0, 700, idle=9, silent=9)
    beat(1, 760, idle=0.1)
    assert states(tmp_path) == [(0, "ok"), (1, "ok")]


def test_the_rank_that_stopped_moving_comes_first(beat, tmp_path):
    beat(0, 12, idle=5)
    beat(1, 12, idle=5)
    beat(2, 11, idle=90)
    assert states(tmp_path) == [(2, "behind"), (0, "ok"), (1, "ok")]


def test_where_all_stand_it_is_the_one_with_fewest_steps(beat, tmp_path):
    for rank in (0, 1, 3):
        beat(rank, 12, idle=300)
    beat(2, 11, idle=320)
    assert states(tmp_path) == [(2, "behind"), (0, "ok"), (1, "ok"), (3, "ok")]


def test_dead_missing_and_ended_processes(beat, tmp_path):
    beat(0, 20, phase="end", idle=500, silent=500)
    beat(1, 12, idle=100, silent=100)
    beat(3, 12)
    assert states(tmp_path, ranks=5) == [(2, "missing"), (4, "missing"), (1, "silent"), (3, "ok"), (0, "ended")]


def test_the_summary_and_the_table_say_it(beat, tmp_path):
    beat(0, 12, idle=3)
    beat(1, 11, idle=90, phase="save")
    lines = table(places(tmp_path, ranks=3, now=NOW), most=2)
    assert lines[0] == "3 processes, steps 11 to 12, 1 missing, 1 behind"
    assert [line.split() for line in lines[2:4]] == [["2", "missing", "-", "-", "-"],
                                                     ["1", "behind", "11", "save", "90", "0"]]  # fmt: skip
    assert lines[4] == "... and 1 more"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"step": "x", "time": 1, "phase": "step"}'])
def test_what_is_no_heartbeat_is_refused(tmp_path, content):
    (tmp_path / "heartbeat-rank0.json").write_text(content)
    with pytest.raises(UserError, match=r"heartbeat-rank0.json: not a heartbeat"):
        places(tmp_path)


def test_a_folder_without_heartbeats_is_refused(tmp_path):
    with pytest.raises(UserError, match="no heartbeat-rank0.json"):
        places(tmp_path)


def test_it_reads_what_the_watchdog_writes(tmp_path, root):
    code = (
        "import sys; from pathlib import Path; from mg.trainers.watchdog import Watchdog\n"
        "for rank in (0, 1):\n"
        "    with Watchdog(Path(sys.argv[1]), 0, 60, rank=rank) as dog: dog.step(7 + rank)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, check=True, timeout=60)
    found = places(tmp_path)
    assert [(place.rank, place.step, place.state) for place in found] == [(0, 7, "ended"), (1, 8, "ended")]
    command = [sys.executable, "tools/where.py", str(tmp_path), "--ranks", "3"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stdout.startswith("3 processes, steps 7 to 8, 1 missing\n")
    shown = subprocess.run([*command[:3], "--json"], cwd=root, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and [entry["step"] for entry in json.loads(shown.stdout)] == [7, 8]
