import importlib
import sys
import threading

import pytest

from cct_lightning.runs import postponed
from cct_lightning.runs.postponed import Postponed, is_put_off, postpone

COMPILER = {
    "__init__": "import time; time.sleep(0.05)\nfrom fake_compiler.frame import OptimizedModule\nfrom fake_compiler import config\n"
    "def disable(function, recursive=True):\n    return ('disabled', function)\n"
    "def graph_break():\n    raise AssertionError\nloads = globals().get('loads', 0) + 1\n",
    "frame": "class OptimizedModule:\n    def __init__(self, module):\n        self.module = module\n",
    "config": "settings = []\n",
}
METRICS = {
    "__init__": "_logger = None\nfrom fake_metrics import functional\nfrom fake_metrics.metric import Metric\nAccuracy = 1\n",
    "utilities": "from fake_metrics import _logger\nfrom fake_metrics.metric import Metric\n",
    "metric": "import fake_metrics.functional.sums\nclass Metric: pass\n",
    "collections": "class MetricCollection: pass\n",
    "aggregation": "class MeanMetric: pass\n",
    "functional/__init__": "import fake_metrics.functional.heavy\n",
    "functional/sums": "",
    "functional/heavy": "",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of files; those of the two above stand for torch's compiler and torchmetrics."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(postponed, "COMPILER", "fake_compiler")
    monkeypatch.setattr(postponed, "METRICS", "fake_metrics")
    monkeypatch.setattr(postponed, "PACKAGES", ("fake_compiler", "fake_metrics", "fake_metrics.functional"))
    monkeypatch.setattr(postponed, "version", lambda name: "1.0")

    def make(name, files):
        for file, text in files.items():
            path = tmp_path / name / f"{file}.py"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
        importlib.invalidate_caches()
        postpone()
        return importlib.import_module(name)

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


def test_a_package_is_run_once_something_is_asked_that_is_not_known_without(package):
    compiler = package("fake_compiler", COMPILER)
    assert is_put_off("fake_compiler")
    assert not isinstance(3, compiler.OptimizedModule)
    assert compiler.graph_break() is None
    assert "fake_compiler.config" not in sys.modules
    assert compiler.loads == 1
    assert not is_put_off("fake_compiler")
    assert type(compiler).__name__ == "module"
    assert compiler is sys.modules["fake_compiler"]
    with pytest.raises(AttributeError, match="fake_compiler"):
        compiler.absent  # noqa: B018


def test_its_class_is_asked_once_there_is_one(package):
    compiler = package("fake_compiler", COMPILER)
    asked = compiler.OptimizedModule
    made = asked("network")  # which runs it
    assert made.module == "network"
    assert asked is not compiler.OptimizedModule
    assert isinstance(made, asked)
    assert issubclass(type(made), asked)
    assert not isinstance("network", asked)


def test_what_the_compiler_was_to_leave_alone_it_does(package):
    compiler = package("fake_compiler", COMPILER)

    def step(lr):
        return lr

    step.kept = early = compiler.disable(step, True)  # as torch keeps it
    assert early(0.1) == 0.1
    assert is_put_off("fake_compiler")
    assert compiler.config.settings == []
    assert step.kept == ("disabled", step)
    assert compiler.disable(step) == ("disabled", step)


def test_a_part_that_is_imported_runs_the_compiler_first_and_is_there_once(package):
    compiler = package("fake_compiler", COMPILER)
    config = importlib.import_module("fake_compiler.config")
    assert not is_put_off("fake_compiler")
    assert config is compiler.config is sys.modules["fake_compiler.config"]
    assert config.__spec__.loader.get_source("fake_compiler.config") == COMPILER["config"]
    assert importlib.import_module("fake_compiler.frame").OptimizedModule is compiler.OptimizedModule


def test_threads_wait_until_it_is_whole(package):
    compiler, found = package("fake_compiler", COMPILER), []
    threads = [threading.Thread(target=lambda: found.append((compiler.loads, compiler.config))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(1, compiler.config)] * 4


def test_one_that_fails_says_so_each_time(package):
    compiler = package("fake_compiler", {**COMPILER, "frame": "raise ImportError('no such library')"})
    for _ in range(2):
        with pytest.raises(ImportError, match="no such library"):
            compiler.config  # noqa: B018
    assert is_put_off("fake_compiler")


def test_parts_of_the_metrics_are_imported_without_the_whole(package):
    metrics = package("fake_metrics", METRICS)
    assert isinstance(metrics, Postponed)
    assert metrics.Metric is sys.modules["fake_metrics.metric"].Metric
    assert metrics.__version__ == "1.0"
    assert "fake_metrics.functional.heavy" not in sys.modules
    first = metrics.Metric
    assert metrics.Accuracy == 1
    assert metrics.Metric is first
    assert "fake_metrics.functional.heavy" not in sys.modules
    assert "heavy" in dir(metrics.functional)
    assert not is_put_off("fake_metrics.functional")


@pytest.mark.parametrize("part", ["metric", "collections"])
def test_metrics_whose_parts_can_not_be_had_alone_are_imported_whole(package, part):
    text = "import fake_metrics\nfake_metrics.functional.heavy\n" if part == "metric" else "raise ImportError"
    metrics = package("fake_metrics", {**METRICS, part: text + METRICS[part]})
    assert not is_put_off("fake_metrics")
    assert not is_put_off("fake_metrics.functional")
    assert metrics.Accuracy == 1
    assert metrics.Metric is sys.modules["fake_metrics.metric"].Metric
