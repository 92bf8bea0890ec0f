"""Settings of the whole suite: float64, strict promotion, checked shapes, several CPU devices."""

import os

from flags import FLAGS

# Before JAX starts.
os.environ["XLA_FLAGS"] = (
    f"{FLAGS} --xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

install_import_hook("jaxfl", "checker.check")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A worker takes a file; where a file says `GROUPED_BY`, all tests with one value of that."""
    for item in items:
        by = getattr(item.module, "GROUPED_BY", None)
        value = item.callspec.params.get(by, "") if hasattr(item, "callspec") else ""
        value = str(value).rpartition("/")[2]  # of a path
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {value}".strip()))


@pytest.fixture(autouse=True, scope="module")
def programs():
    """A process may map 65 530 regions of memory, and thousands of compiled programs take more."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """For files that build the same program again and again: a persistent compilation cache."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    old = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("programs")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, old, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
