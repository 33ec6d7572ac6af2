import logging
import multiprocessing
import os
import signal
import sys
import time
from contextlib import closing

import pytest
import studied

from cct_lightning.studies.plan import Job
from cct_lightning.studies.running import LOG, carry_out, into, line


def jobs(tmp_path, arms="abc", seeds=1):
    return [Job(arm, {}, seed, {}, tmp_path / arm / f"seed{seed}") for seed in range(seeds) for arm in arms]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_fails_is_told_and_ends_nothing_else(tmp_path, processes, capfd):
    results = {result.job.arm: result for result in carry_out(jobs(tmp_path), studied.fail_at_b, processes)}
    assert {arm: result.error for arm, result in results.items()} == {"a": None, "b": "b is what it can't do", "c": None}
    assert "FAILED, b is what it can't do" in line(2, 3, results["b"])
    assert line(1, 3, results["a"]).startswith("[1/3] a, seed 0: 10.00 % test, ")
    assert "ValueError" in (tmp_path / "b" / "seed0" / LOG).read_text()
    assert "trained a, seed 0" in (tmp_path / "a" / "seed0" / LOG).read_text()
    assert capfd.readouterr() == ("", "")  # what runs say is in their logs


def test_a_logger_that_begins_in_a_run_writes_into_the_log_of_the_next(tmp_path, capfd):
    logger = logging.getLogger("of.a.library")
    handlers = []
    for name in ("one", "two"):
        with into(tmp_path / name):
            if not handlers:
                handlers.append(logging.StreamHandler())  # as a library's is made when it is imported
                logger.addHandler(handlers[0])
            logger.warning("said in %s", name)
    logger.removeHandler(handlers[0])
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["said in one\n", "said in two\n"]
    assert capfd.readouterr() == ("", "")
    assert handlers[0].stream is sys.stderr


def test_processes_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert len(list(carry_out(jobs(tmp_path), studied.pretend, 4))) == 3
    assert "with 2 threads" in (tmp_path / "c" / "seed0" / LOG).read_text()


def test_a_process_that_is_killed_costs_its_run_alone(tmp_path):
    results = {result.job.arm: result.error for result in carry_out(jobs(tmp_path, "abcd"), studied.die_at_b, 2)}
    assert results.pop("b").startswith("its process ended by signal 9")
    assert results == {"a": None, "c": None, "d": None}


@pytest.mark.parametrize(("call", "raised"), [(studied.stop_at_b, KeyboardInterrupt), (studied.end_at_b, SystemExit)])
def test_a_signal_ends_the_study_after_the_run_that_it_stopped(tmp_path, call, raised):
    seen = []
    with pytest.raises(raised):
        seen += (result for result in carry_out(jobs(tmp_path), call))
    assert not (tmp_path / "c").exists()


def test_a_signal_to_one_of_two_stops_the_other(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        list(carry_out(jobs(tmp_path, "ab"), studied.wait_at_b, 2))
    assert (tmp_path / "b" / "seed0" / "recipe" / "20260101-000000" / "summary.json").is_file()  # it ended, and long before its minute was over


def test_runs_stop_where_the_process_that_gave_them_is_killed(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=studied.carry_out_for_ever, args=(jobs(tmp_path, "ab"),))
    parent.start()

    def there(name):
        return {path.parents[1].name for path in tmp_path.glob(f"*/seed0/{name}")}

    until = time.monotonic() + 60
    while there("begun") != {"a", "b"} and time.monotonic() < until:
        time.sleep(0.02)
    parent.kill()
    parent.join()
    while there("stopped") != {"a", "b"} and time.monotonic() < until:
        time.sleep(0.02)
    assert there("stopped") == {"a", "b"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_process_that_gave_the_runs_waits_for_what_they_save(tmp_path, name):
    """It ended at once; where its end is the job's, as in SLURM and in containers, the runs were killed before they had saved."""
    parent = multiprocessing.get_context("spawn").Process(target=studied.carry_out_for_ever, args=(jobs(tmp_path, "ab"),))
    parent.start()
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*/seed0/begun"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(parent.pid, getattr(signal, name))
    parent.join()
    assert len(list(tmp_path.glob("*/seed0/stopped"))) == 2
    assert parent.exitcode == 128 + getattr(signal, name)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_ended_before_it_could_be_stopped_is_told_as_whole(tmp_path, processes):
    seen = []
    with pytest.raises(SystemExit):
        seen += (result for result in carry_out(jobs(tmp_path, "bc"), studied.end_after_b, processes))
    assert seen[-1].stopped == 143
    assert line(1, 2, seen[-1]).startswith("[1/2] b, seed 0: 10.00 % test, ")


def test_processes_are_ended_where_nobody_follows_them_further(tmp_path):
    with closing(carry_out(jobs(tmp_path, "abc"), studied.pretend, 2)) as results:
        next(results)
    assert multiprocessing.active_children() == []
