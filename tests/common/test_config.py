import json

import pytest

from sb3_mbrl.common.config import check_config, read_json

KIND = {"name": {"cem", "mppi"}, "sizes": [int], "rate": float, "seed": (int, None), "on": bool, "note": str, "more": dict}
RIGHT = {"name": "cem", "sizes": [4, 5], "rate": 1, "seed": None, "on": True, "note": "", "more": {"a": []}}


def test_valid_configurations_pass():
    check_config(RIGHT, KIND, "The file")
    check_config({**RIGHT, "sizes": [], "rate": 1.5, "seed": 3}, KIND, "The file")


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("name", "os.system", r"name must be one of \['cem', 'mppi'\], got 'os.system'"),
        ("name", ["cem"], "name must be one of"),
        ("sizes", 4, "sizes must be a list, got 4"),
        ("sizes", [4, 5.0], r"sizes\[1\] must be an integer, got 5.0"),
        ("sizes", [True], r"sizes\[0\] must be an integer, got True"),
        ("rate", "1", "rate must be a finite number"),
        ("rate", float("nan"), "rate must be a finite number"),
        ("rate", 10**400, "rate must be a finite number"),
        ("rate", None, "rate must be a finite number"),
        ("seed", 0.5, "seed must be an integer"),
        ("on", 1, "on must be true or false"),
        ("note", None, "note must be a text"),
        ("more", [], "more must be a mapping"),
    ],
)
def test_invalid_entries_are_named(name, value, expected):
    with pytest.raises(ValueError, match=f"The file is damaged: {expected}"):
        check_config({**RIGHT, name: value}, KIND, "The file")


def test_keys_that_are_missing_or_unknown_are_refused():
    for config in ({**RIGHT, "surplus": 1}, {name: value for name, value in RIGHT.items() if name != "seed"}):
        with pytest.raises(ValueError, match=r"must be a mapping of \['more', 'name', .*\], got \["):
            check_config(config, KIND, "The file")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000, b"\xff", "{'a': 1}"])
def test_json_that_is_not_a_mapping_counts_as_damaged(text):
    with pytest.raises(ValueError, match="The file is damaged: its configuration"):
        read_json(text, "The file")


def test_json_is_read():
    assert read_json(json.dumps(RIGHT), "The file") == RIGHT
