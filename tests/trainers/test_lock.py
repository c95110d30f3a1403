import os
import re
import subprocess
import sys

import pytest
from trainer_toy import toy_trainer

import mg.device
from mg.errors import UserError
from mg.trainers.lock import lock_folder

HOLDS = """
import sys, time
from pathlib import Path
from mg.trainers.lock import lock_folder
file = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_ends(tmp_path, other, monkeypatch):
    mg.device.setup("CPU", "pynative")
    (tmp_path / "step-00000002.tmp").mkdir()  # as if the other one were saving
    with pytest.raises(UserError) as caught:
        toy_trainer(tmp_path, 2).fit()
    assert re.fullmatch(
        rf"--output_path={tmp_path}: process {other.pid} on \S+ is training there; stop it \(touch {tmp_path}/STOP\), "
        "or choose another folder", str(caught.value),
    )
    assert (tmp_path / "step-00000002.tmp").is_dir() and not list(tmp_path.glob("*.jsonl"))
    with monkeypatch.context() as patch:  # processes of one launch share their folder
        patch.setenv("MS_ROLE", "MS_WORKER")
        patch.setenv("MS_WORKER_NUM", "2")
        toy_trainer(tmp_path / "launched", 1).fit()
        assert not (tmp_path / "launched" / ".lock").exists()
    other.kill()  # SIGKILL leaves no chance to tidy up
    other.wait()
    assert toy_trainer(tmp_path, 2).fit()["step"] == 2
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capfd):
    def unsupported(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("mg.trainers.lock.fcntl.lockf", unsupported)
    lock_folder(tmp_path).close()
    assert f"{tmp_path}: cannot be locked (No locks available); start no second training" in capfd.readouterr().err
