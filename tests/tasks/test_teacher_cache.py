import json
from contextlib import contextmanager

import pytest
import torch

from cct_lightning.tasks.teacher_cache import TeacherCache

CPU = torch.device("cpu")


def never():
    raise AssertionError("it is there already")


def test_logits_are_computed_once_for_all_that_they_follow_from(tmp_path, capsys):
    rows = {(epoch, number): torch.randn(4, 3).half() for epoch in (0, 1) for number in (0, 1)}
    first = TeacherCache(tmp_path, lambda: {"seed": 0}, CPU)
    for (epoch, number), logits in rows.items():
        assert torch.equal(first.get(epoch, number, lambda logits=logits: logits), logits)
    first.write()
    assert json.loads((first.folder / "about.json").read_text()) == {"seed": 0}
    second = TeacherCache(tmp_path, lambda: {"seed": 0}, CPU)
    assert all(torch.equal(second.get(*where, never), logits) for where, logits in rows.items())
    assert (second.computed, second.read, first.computed) == (0, 4, 4)
    other = TeacherCache(tmp_path, lambda: {"seed": 1}, CPU)
    assert torch.equal(other.get(0, 0, lambda: torch.zeros(4, 3).half()), torch.zeros(4, 3).half())
    assert len(list(tmp_path.iterdir())) == 2


def test_an_epoch_that_was_stopped_is_filled_up(tmp_path):
    rows = torch.randn(3, 4, 2).half()
    first = TeacherCache(tmp_path, dict, CPU)
    first.get(5, 2, lambda: rows[2])
    first.write()
    second = TeacherCache(tmp_path, dict, CPU)
    assert [torch.equal(second.get(5, number, lambda number=number: rows[number]), rows[number]) for number in range(3)] == [True] * 3
    assert (second.computed, second.read) == (2, 1)
    second.write()
    third = TeacherCache(tmp_path, dict, CPU)
    assert all(torch.equal(third.get(5, number, never), rows[number]) for number in range(3))


@pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: whole.replace(whole[300:301], b"\xff"), lambda whole: b""])
def test_a_damaged_file_is_computed_anew(tmp_path, damage, caplog):
    caplog.set_level("INFO")
    rows = torch.randn(2, 64, 10).half()
    first = TeacherCache(tmp_path, dict, CPU)
    for number in (0, 1):
        first.get(0, number, lambda number=number: rows[number])
    first.write()
    file = first.folder / "epoch00000.npz"
    file.write_bytes(damage(file.read_bytes()))
    second = TeacherCache(tmp_path, dict, CPU)
    assert all(torch.equal(second.get(0, number, lambda number=number: rows[number]), rows[number]) for number in (0, 1))
    assert second.computed == 2
    assert "epoch00000.npz can't be read" in caplog.text


def test_two_runs_that_begin_a_folder_at_once_both_find_it(tmp_path, monkeypatch):
    """The second failed: the file that it was about to rename had become the first one's."""
    from cct_lightning.tasks import teacher_cache

    first, second = (TeacherCache(tmp_path, lambda: {"seed": 0}, CPU) for _ in "ab")
    real = teacher_cache.replacing

    @contextmanager
    def meanwhile(path):
        with real(path) as file:
            monkeypatch.setattr(teacher_cache, "replacing", real)
            yield file
            assert second.folder.is_dir()

    monkeypatch.setattr(teacher_cache, "replacing", meanwhile)
    assert first.folder == second.folder
    assert json.loads((first.folder / "about.json").read_text()) == {"seed": 0}
