"""How a program that ends with `cli.run(main)` leaves its process."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import atexit, ctypes, os, signal, sys, threading, time
    from mg.config import cli

    class Library:  # its destructor crashes, as those of some libraries now and then do
        def __del__(self):
            ctypes.string_at(0)

    library = Library()

    def late():
        time.sleep(0.3)
        print("thread")

    def main(argv):
        atexit.register(print, "exit function")
        threading.Thread(target=late).start()
        print("main")
        {body}

    if __name__ == "__main__":
        cli.run(main)
"""


@pytest.fixture
def program(tmp_path):
    """Run a program whose `main` ends with some statements; its standard output is buffered, as it is in a file."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    def call(body, stdout=None):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(PROGRAM).replace("{body}", body))
        with (tmp_path / "out").open("w") as out:
            done = subprocess.run(
                [sys.executable, str(path)], env=environment, stdout=stdout or out, stderr=subprocess.PIPE, text=True,
                timeout=60,
            )  # fmt: skip
        return done.returncode, (tmp_path / "out").read_text(), done.stderr

    return call


@pytest.mark.parametrize(("body", "code"), [("return None", 0), ("return 75", 75), ("raise KeyboardInterrupt", 130)])
def test_threads_and_exit_functions_run_and_destructors_do_not(program, body, code):
    found, out, err = program(body)
    assert (found, out) == (code, "main\nthread\nexit function\n"), err


def test_an_error_is_told_and_decides_the_exit_code(program):
    code, out, err = program("from mg.errors import UserError; raise UserError('--x: wrong')")
    assert (code, out, err) == (2, "main\nthread\nexit function\n", "error: --x: wrong\n")


def test_a_defect_keeps_its_traceback_and_the_usual_end(program):
    code, _, err = program("global library; del library.__class__.__del__; 1 / 0")
    assert code == 1 and "ZeroDivisionError" in err and "in main" in err


def test_a_crash_leaves_the_python_frames(program):
    code, _, err = program("ctypes.string_at(0)")
    assert code == -11 and "Segmentation fault" in err and "in main" in err


def test_a_closed_output_is_told_as_ever(program):
    read, write = os.pipe()
    os.close(read)
    code, _, err = program("del library.__class__.__del__", stdout=write)
    os.close(write)
    assert code == 120 and "BrokenPipeError" in err, err


def test_called_from_another_program_it_raises(tmp_path):
    """As the tests of the scripts do: the process goes on."""
    path = tmp_path / "outer.py"
    path.write_text(
        "from mg.config import cli\n"
        "def inner():\n"
        "    cli.run(lambda argv: 3)\n"
        "try:\n    inner()\nexcept SystemExit as error:\n    print('goes on after', error.code)\n"
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "goes on after 3\n"), done.stderr
