import subprocess
import sys

import pytest

from cct_lightning import InputError, LitClassifier
from cct_lightning.tasks.registry import TASKS, task_class
from cct_lightning.tasks.task import Task


@pytest.mark.parametrize("name", TASKS)
def test_every_name_is_a_task(name):
    assert issubclass(task_class(name), Task)


def test_classification_is_the_classifier():
    assert task_class("classification") is LitClassifier


def test_an_unknown_name_is_refused_with_those_that_are_close():
    with pytest.raises(InputError, match=r"task='clasification' is unknown\. Did you mean classification\?"):
        task_class("clasification")
    with pytest.raises(InputError, match=r"task='x' is unknown\. Known: classification"):
        task_class("x")


def test_the_names_are_known_without_torch():
    words = "import sys, cct_lightning.tasks.registry as registry; assert registry.TASKS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", words], check=True)
