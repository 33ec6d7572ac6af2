"""Has Python run some packages only when something of them is used: more than half of what Lightning imports is of no use to a training.

torchmetrics imports its measures of sound, text and pictures, with torchvision and scipy; Lightning and torch's optimizers import torch's compiler,
to ask whether a module is of its making or to be left alone by it.

Nothing is replaced or left out: a finder in ``sys.meta_path`` puts a package off as ``importlib.util.LazyLoader`` would, and whatever is asked of it
but the few names that are known without runs it, in the same module. So a version that asks for more is slower to start, and no worse.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from threading import RLock
from types import ModuleType
from typing import Any

COMPILER, METRICS = "torch._dynamo", "torchmetrics"
PACKAGES = (COMPILER, METRICS, f"{METRICS}.functional")
# What Lightning and we ask of torchmetrics, and where it is, in an order in which its parts can be imported.
PARTS = {"Metric": "metric", "MetricCollection": "collections", "MeanMetric": "aggregation"}
_lock = RLock()  # whoever asks for something while a package is run, from another thread, waits
_running: set[str] = set()
# Functions that torch had kept from the compiler before it ran, what stands for each, and how the compiler makes that.
_undisabled: list[tuple[Callable[..., Any], Callable[..., Any], Callable[[], Any]]] = []


def postpone() -> None:
    """Puts off, for the rest of this process, those of the packages that have not been imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def is_put_off(name: str) -> bool:
    """Tells whether a package has not been run."""
    return name not in sys.modules or isinstance(sys.modules[name], Postponed)


class Postponed(ModuleType):
    """A package that is put off; a plain module as soon as it was run."""

    def __getattr__(self, name: str) -> Any:
        run(self)
        return object.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        run(self)
        return sorted(vars(self))


def run(package: ModuleType) -> None:
    """Runs a package that was put off."""
    with _lock:
        if not isinstance(package, Postponed) or package.__name__ in _running:
            return
        assert package.__spec__ is not None
        assert package.__spec__.loader is not None
        known = {name: vars(package).pop(name) for name in STAND_INS} if package.__name__ == COMPILER else {}
        _running.add(package.__name__)
        try:
            package.__spec__.loader.exec_module(package)
        except BaseException:
            vars(package).update(known)
            raise
        finally:
            _running.discard(package.__name__)
        package.__class__ = ModuleType  # type: ignore[assignment]
        if package.__name__ == COMPILER:
            for function, stand_in, make in _undisabled:  # torch keeps what it was given
                vars(function).update({name: make() for name, value in vars(function).items() if value is stand_in})
            _undisabled.clear()


class _Put(Loader):
    """Makes a package, and leaves it at what is known of it without running it.

    Args:
        real: Its own loader.
    """

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # a plain one

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.real
        module.__class__ = Postponed  # type: ignore[assignment]
        if module.__name__ == COMPILER:
            vars(module).update(STAND_INS)
        elif module.__name__ == METRICS:
            try:
                _import_parts(module)
            except Exception:  # in a version whose parts need each other otherwise; as if they had never been asked for
                for name in [name for name in sys.modules if name.startswith(f"{METRICS}.")]:
                    del sys.modules[name]
                run(module)


def _import_parts(metrics: ModuleType) -> None:
    vars(metrics).update(_logger=logging.getLogger(METRICS), __version__=version(METRICS))
    import_module(f"{METRICS}.utilities")
    vars(metrics).update({name: getattr(import_module(f"{METRICS}.{part}"), name) for name, part in PARTS.items()})


class _Found(Loader):
    """Gives a module that is there already: its package was run since it was asked for, and imported it."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _Finder(MetaPathFinder):
    """Finds the packages that are put off, and has the compiler run before a part of it is imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname in sys.modules:  # to be loaded anew
            return None
        if fullname in PACKAGES and fullname.rpartition(".")[0] not in _running:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.loader is not None:
                spec.loader = _Put(spec.loader)
            return spec
        if fullname.startswith(f"{COMPILER}."):
            run(sys.modules[COMPILER])
            if fullname in sys.modules:
                return ModuleSpec(fullname, _Found(sys.modules[fullname]))
        return None


class _Compiled(type):
    """Has ``isinstance`` ask the compiler; nothing is of its making before it runs."""

    def __instancecheck__(cls, instance: object) -> bool:
        return not is_put_off(COMPILER) and isinstance(instance, sys.modules[COMPILER].OptimizedModule)

    def __subclasscheck__(cls, other: type) -> bool:
        return not is_put_off(COMPILER) and issubclass(other, sys.modules[COMPILER].OptimizedModule)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        run(sys.modules[COMPILER])
        return sys.modules[COMPILER].OptimizedModule(*arguments, **named)


class _OptimizedModule(metaclass=_Compiled):
    """Stands for the class of compiled modules."""


def _disable(function: Any = None, *arguments: Any, **named: Any) -> Any:
    """Keeps the compiler out of a function; until it runs there is nothing to keep out."""

    def make() -> Any:
        run(sys.modules[COMPILER])
        return sys.modules[COMPILER].disable(function, *arguments, **named)

    if not callable(function):
        return make()

    def stand_in(*given: Any, **named_given: Any) -> Any:
        return (function if is_put_off(COMPILER) else make())(*given, **named_given)

    _undisabled.append((function, stand_in, make))
    return stand_in


def _graph_break(*_: Any, **__: Any) -> None:
    """Ends what the compiler records; until it runs it records nothing."""


STAND_INS: dict[str, Any] = {"OptimizedModule": _OptimizedModule, "disable": _disable, "graph_break": _graph_break}
