import logging
import re

import pytest

from mg.errors import UserError
from mg.log import get_logger, setup_logging


def test_one_plain_line_per_event_on_standard_error(capsys):
    get_logger().info("step %d", 3)
    get_logger("mg.dataset").warning("skipped")
    get_logger().debug("unseen")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO step 3\n\d\d:\d\d:\d\d WARNING skipped\n", err)


def test_lines_are_appended_to_a_file_too(tmp_path, capsys):
    path = tmp_path / "run.log"
    path.write_text("before\n")
    handler = setup_logging(path)
    get_logger().info("größer")
    get_logger().removeHandler(handler)
    handler.close()
    get_logger().info("after")
    assert re.fullmatch(r"before\n\d{4}-\d\d-\d\d [\d:]{8} INFO größer\n", path.read_text("utf-8"))
    assert capsys.readouterr().err.count("größer") == 1


def test_no_file_is_opened_unasked():
    before = list(get_logger().handlers)
    assert setup_logging() is None
    assert get_logger().handlers == before


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write the log .*no/run\.log: No such file"):
        setup_logging(tmp_path / "no/run.log")


def test_a_name_that_is_not_utf8_reaches_the_log(tmp_path, capsys):
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "%s: damaged", "args": ("\udcff.mp4",)})
    handler = setup_logging(tmp_path / "run.log")
    for each in get_logger().handlers:  # not by the logger: pytest-xdist cannot pass on such a record
        if type(each).__module__.startswith(("mg", "logging")):
            each.handle(record)
    get_logger().removeHandler(handler)
    handler.close()
    assert (tmp_path / "run.log").read_text("utf-8").endswith(" WARNING \\udcff.mp4: damaged\n")
    assert capsys.readouterr().err.endswith(" WARNING \\udcff.mp4: damaged\n")
