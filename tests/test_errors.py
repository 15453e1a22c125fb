"""Messages that name what is wrong and what would be right."""

import pytest

from adabm_basicsr.errors import (
    AdaBMError,
    CheckpointError,
    NotRegisteredError,
    OptionError,
    check_positive,
    check_range,
    counted,
    did_you_mean,
    first_line,
    near_paths,
    not_found,
    within,
)

NUMBERS = [str(number) for number in range(20)]


@pytest.mark.parametrize(
    ("value", "choices", "message"),
    [
        ("w_bit", ["w_bits", "recipe"], "did you mean 'w_bits'? (valid: 'w_bits', 'recipe')"),
        ("w_bit", ["w_bits", "a_bits", *NUMBERS], "did you mean 'w_bits' or 'a_bits'?"),
        ("x", ["best", "fast"], "valid: 'best', 'fast'"),
        ("x", NUMBERS, f"valid: {', '.join(repr(number) for number in NUMBERS[:12])}, ..."),
        ("x", [], "there are none"),
        (4, [4], "did you mean '4'?"),
    ],
)
def test_nearest_choices(value, choices, message):
    assert did_you_mean(value, choices) == message


def test_first_line_that_helps():
    error = ValueError("\nException from src/a.cpp:1\nno such operator\nmore")
    assert first_line(error, ("Exception from",)) == "no such operator"
    assert first_line(ValueError("")) == "ValueError('')"


def test_paths_that_are_not_there(tmp_path):
    (tmp_path / "net.pth").touch()
    error = not_found("checkpoint", tmp_path / "ned.pth", CheckpointError)
    assert isinstance(error, CheckpointError)
    assert str(error) == (
        f"checkpoint {tmp_path}/ned.pth does not exist; did you mean '{tmp_path}/net.pth'?"
    )
    assert str(not_found("", tmp_path)) == f"{tmp_path} is a folder, not a file"
    assert str(not_found("folder", tmp_path / "net.pth")).endswith("is a file, not a folder")
    assert near_paths(tmp_path / "gone" / "net.pth") == ""
    assert near_paths(tmp_path / ("a" * 300) / "net.pth") == ""


def test_counts_that_are_too_large():
    with pytest.raises(
        OptionError, match="batch: 2147483648 is out of range; valid: 1 to 2147483647"
    ):
        check_positive("batch", 2**31)


def test_sections_are_named_once():
    for message in ("w_bits: 9", "network_g: w_bits: 9"):
        with pytest.raises(OptionError) as caught, within("network_g"):
            raise OptionError(message)
        assert str(caught.value) == "network_g: w_bits: 9"


@pytest.mark.parametrize("wrong", [0, -1, True, 1.0, "1", None])
def test_counts(wrong):
    assert check_positive("batch", 1) == 1
    with pytest.raises(OptionError) as caught:
        check_positive("batch", wrong)
    assert str(caught.value) == f"batch: {wrong!r} is not a positive whole number"


@pytest.mark.parametrize("wrong", [1, 9, True, 4.0, "4", None])
def test_ranges(wrong):
    assert check_range("bits", 8, 2, 8) == 8
    with pytest.raises(OptionError) as caught:
        check_range("bits", wrong, 2, 8)
    assert str(caught.value) == f"bits: {wrong!r} is out of range; valid: 2 to 8"


def test_all_mistakes_are_caught_the_same_way():
    for kind in (OptionError, NotRegisteredError, CheckpointError):
        with pytest.raises(AdaBMError):
            raise kind("a mistake")


def test_counts_in_words():
    assert [counted(number, "clips") for number in range(3)] == ["0 clips", "1 clip", "2 clips"]
