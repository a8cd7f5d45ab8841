"""Shared configuration of the tests: double precision, no silent broadcasting between ranks, shared problems, kept programs."""

import os

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from raw_data import DATA

from gdflow.programs import keep_programs

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every new shape compiles for about a second, so examples have no deadline and are few.
settings.register_profile(
    "gdflow", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gdflow")


def pytest_configure(config):
    """Keeps compiled programs among pytest's own files, for the next run; those of JAX not in CI, nor where it has a folder."""
    if hasattr(config, "cache"):
        os.environ.setdefault("GDFLOW_CACHE", str(config.cache.mkdir("fused")))
    if not (os.environ.get("CI") or jax.config.jax_compilation_cache_dir) and hasattr(config, "cache"):
        keep_programs(config.cache.mkdir("programs"))


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Every compiled kernel holds memory maps, of which a process may have some 65 000: kept all along, the compiler crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture(params=DATA)
def data(request, rng) -> tuple[np.ndarray, np.ndarray]:
    """`X`, `Y` of every shape in turn."""
    return DATA[request.param](rng)
