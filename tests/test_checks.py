"""Counts and numbers as options: what is accepted, and that what is not is named."""

import jax.numpy as jnp
import numpy as np
import pytest

from gdflow.checks import check_count, check_number


@pytest.mark.parametrize(
    "value", [1000, 1e3, np.int32(1000), np.uint64(1000), np.float64(1e3), np.array(1000), jnp.array(1e3)]
)
def test_integral_numbers_are_counts(value):
    found = check_count("num", value)
    assert found == 1000
    assert type(found) is int


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (True, TypeError, "num must be an integer, got True"),
        (np.True_, TypeError, "num must be an integer, got"),
        ("7", TypeError, "num must be an integer, got '7'"),
        (None, TypeError, "num must be an integer, got None"),
        (1j, TypeError, "num must be an integer, got 1j"),
        ([7], TypeError, r"num must be an integer, got \[7\]"),
        (np.array([7, 8]), TypeError, "num must be an integer, got array"),
        (2.5, ValueError, "num must be an integer, got 2.5"),
        (np.nan, ValueError, "num must be an integer, got nan"),
        (np.inf, ValueError, "num must be an integer, got inf"),
        (2, ValueError, "num must be at least 3, got 2"),
        (-1e3, ValueError, "num must be at least 3, got -1000.0"),
    ],
)
def test_what_is_no_count_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        check_count("num", value, 3)


def test_numbers_are_finite_and_real():
    for value in (2, 2.0, np.float32(2), jnp.array(2.0)):
        found = check_number("rtol", value)
        assert found == 2
        assert type(found) is float
    for value, error in (
        (np.nan, ValueError),
        (-np.inf, ValueError),
        (True, TypeError),
        ("2", TypeError),
        (2j, TypeError),
    ):
        with pytest.raises(error, match="rtol must be a"):
            check_number("rtol", value)
