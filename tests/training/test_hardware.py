import subprocess
import sys

import pytest
import torch

from cct_lightning.training.hardware import cpu_seconds, default_precision, keep_freed_memory, product_speed


@pytest.mark.parametrize(("able", "precision"), [("avx512_bf16", "bf16-mixed"), ("amx_bf16", "bf16-mixed"), ("avx2", "32-true")])
def test_a_cpu_computes_bf16_where_it_says_that_it_can(monkeypatch, able, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True})
    assert default_precision("cpu") == precision


@pytest.mark.parametrize(("able", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_computes_bf16_where_it_needs_no_emulation(monkeypatch, able, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    assert default_precision("auto") == default_precision("gpu") == precision


def test_an_older_torch_that_can_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert default_precision("cpu") == "32-true"


def test_the_speed_of_products_counts_their_operations_and_the_fastest(monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr("cct_lightning.training.hardware.time.process_time", lambda: next(clock))
    assert product_speed(rounds=3) == pytest.approx(2 * 1024**3 / 2 / 1e9)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step():
    import resource

    assert keep_freed_memory()
    for _ in range(15):
        torch.ones(2**24)  # 64 MiB, freed at once; the heap grows to hold it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    # 5 x 64 MiB are 81,920 pages of 4 KiB; without the setting each is new
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8_000


def test_cpu_seconds_grow_with_work_and_count_children():
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert cpu_seconds() - before > 0.05
