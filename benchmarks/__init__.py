"""Programs that measure: python -m benchmarks.NAME."""

from importlib.util import find_spec

if find_spec("cct_lightning.callbacks") is None:  # a checkout that is not installed
    import cli  # noqa: F401
