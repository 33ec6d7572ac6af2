"""What other processes do in tests, in functions of a module since they import them: runs of a study that train nothing, and more."""

import json
import os
import signal
import sys
import time


def pretend(job):
    """Writes what a run leaves behind; its accuracy follows from arm and seed."""
    print(f"trained {job.title} with {os.environ.get('OMP_NUM_THREADS')} threads")
    write(job, {"finished": True, "test_accuracy": len(job.arm) / 10 + job.seed / 100, "val_accuracy": job.keys.get("model.optim.lr", 0.5)})


def write(job, summary):
    run = job.folder / "recipe" / "20260101-000000"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    (run / "summary.json").write_text(json.dumps(summary))


def fail_at_b(job):
    if job.arm == "b":
        raise ValueError("b is what it can't do\nand more")
    pretend(job)


def die_at_b(job):
    if job.arm == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    pretend(job)


def stop_at_b(job):
    if job.arm == "b":
        raise KeyboardInterrupt
    pretend(job)


def end_at_b(job):
    if job.arm == "b":
        raise SystemExit(143)
    pretend(job)


def end_after_b(job):
    pretend(job)
    end_at_b(job)


def wait_at_b(job):
    """Trains b until it is asked to end, as a run does."""
    if job.arm == "b":
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
        write(job, {"finished": False})
        time.sleep(60)
    while not list((job.folder.parents[1] / "b").glob("**/summary.json")):
        time.sleep(0.05)
    raise SystemExit(130) if job.arm == "a" else AssertionError


def stay(job):
    """Trains until it is asked to end."""

    def stopped(*_):
        time.sleep(0.3)  # as a checkpoint takes to be written
        (job.folder / "stopped").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stopped)
    (job.folder / "begun").touch()
    time.sleep(60)


def carry_out_for_ever(jobs):
    """What a process does that is killed."""
    from cct_lightning.studies.running import carry_out

    list(carry_out(jobs, stay, 2))


def read_for_ever(begun):
    """What a process does that is killed while others read images for it."""
    import numpy as np

    from cct_lightning.data.check import FEW, examine_all

    for _ in examine_all([np.zeros((8, 8, 3), np.uint8)] * (2 * FEW), 2):
        begun.touch()
        time.sleep(60)
