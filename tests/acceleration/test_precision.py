"""Which number formats are accepted."""

import pytest
import torch as th

from sb3_mbrl.acceleration import precision
from sb3_mbrl.acceleration.precision import check_precision


def test_precisions_are_checked(monkeypatch):
    with pytest.raises(ValueError, match=r"must be one of \['float32', 'bfloat16'\], got 'half'"):
        check_precision("half", th.device("cpu"))
    monkeypatch.setattr(precision, "HAS_BFLOAT16", False)
    with pytest.raises(ValueError, match="cannot multiply bfloat16"):
        check_precision("bfloat16", th.device("cpu"))
    check_precision("bfloat16", th.device("cuda"))
    check_precision("float32", th.device("cpu"))
