"""Exit codes and texts that command lines and scripts around them rely on."""

import pytest

from mg.errors import BadClip, NoGoodClip, NumericalAbort, TooManyBadClips, UserError


@pytest.mark.parametrize(
    ("error", "code"), [(UserError, 2), (NumericalAbort, 3), (NoGoodClip, 5), (TooManyBadClips, 5)]
)
def test_exit_codes(error, code):
    assert error("x").exit_code == code
    assert str(error("x")) == "x"


def test_a_users_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError) and issubclass(NoGoodClip, UserError)


def test_an_abort_is_not_taken_for_a_users_mistake():
    assert not issubclass(NumericalAbort, ValueError)


def test_a_bad_clip_names_file_and_reason(tmp_path):
    error = BadClip(tmp_path / "a.mp4", "no video stream")
    assert (error.path, error.reason) == (str(tmp_path / "a.mp4"), "no video stream")
    assert str(error) == f"{tmp_path / 'a.mp4'}: no video stream"
    assert not isinstance(error, UserError)  # it is skipped and counted, it does not end a run
