"""A run that random faults hit every few seconds, resumed by itself, must end like the run that nothing befell: same weights, same rows.

    python -m benchmarks.chaos [--seconds 180] [--every 2 6] [--seed 0]

Faults, from outside: SIGKILL, SIGTERM, SIGINT (once, and twice at once), SIGHUP, SIGSTOP for a while, a disk that is full (a limit on the size of
files, `ulimit -f`, put on the process while it runs). Each sitting is a process of its own, forked from one that has Lightning loaded, so that it
trains after a second.
"""

import argparse
import csv
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine

WORDS = (
    "-c", "digits", "--data.per_class", "40", "--data.batch_size", "32", "--model.attn_drop", "0.1", "--trainer.log_every_n_steps", "5",
    "--trainer.callbacks", "null", "--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.99", "--trainer.enable_progress_bar", "false",
    "--wandb.mode", "disabled",
)  # fmt: skip
FAULTS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice", "SIGHUP", "SIGSTOP", "disk full")


def start(words: list[str], folder: Path) -> int:
    """Runs ``cct WORDS`` in a fork; returns its process id. What it says goes to log.txt."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    code = 1
    try:
        from cct_lightning.__main__ import main

        sys.argv = ["cct", *words]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """Returns the exit code of a process, None where it has not ended after some seconds."""
    until = time.monotonic() + seconds
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            return None
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(found[1])


def strike(pid: int, fault: str, dice: random.Random) -> None:
    """Has something befall a process."""
    if fault == "disk full":
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (dice.choice((0, 10_000, 500_000)), resource.RLIM_INFINITY))
        return
    number = getattr(signal, fault.split()[0])
    os.kill(pid, number)
    if fault == "SIGINT twice":
        time.sleep(dice.random() / 5)
        os.kill(pid, number)
    elif fault == "SIGSTOP":
        time.sleep(dice.uniform(0.5, 3))
        os.kill(pid, signal.SIGCONT)


def rows(run: Path) -> list[dict[str, str]]:
    """Returns metrics.csv without what the clock says."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if not name.startswith("perf/")} for row in csv.DictReader(file)]


def content(run: Path, name: str) -> dict[str, Any]:
    """Returns the weights, the average and the optimizer's state in a checkpoint."""
    found = torch.load(run / "checkpoints" / name, weights_only=True)
    return {key: found[key] for key in ("state_dict", "ema", "optimizer_states", "global_step")}


def equal(one: Any, two: Any) -> bool:
    """Tells whether two values are the same, tensors to the bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if torch.is_tensor(one) else bool(one == two)


def ordeal(folder: Path, words: list[str], seconds: float, every: tuple[float, float], dice: random.Random) -> tuple[Path, Counter[str], list[str]]:
    """Runs under faults for some seconds, then to the end; returns the run, what befell it, and what was not as it should be."""
    faults: Counter[str] = Counter()
    wrong: list[str] = []
    until, run = time.monotonic() + seconds, None
    while True:
        resumable = run is not None and (run / "checkpoints" / "last.ckpt").is_file()
        if run is not None and not resumable:
            run.rename(folder / f"begun-{sum(faults.values())}")  # killed before its first epoch ended: it starts anew
        pid = start(["resume", str(run)] if resumable else ["fit", *words], folder)
        code = None
        while code is None and time.monotonic() < until:
            code = ended(pid, dice.uniform(*every))
            if code is None:
                fault = dice.choice(FAULTS)
                faults[fault] += 1
                strike(pid, fault, dice)
                code = ended(pid, 30) if fault not in ("SIGSTOP", "disk full") else ended(pid, 3)
                if code is None and fault not in ("SIGSTOP", "disk full"):
                    wrong.append(f"{fault}: not ended after 30 s")
        if code is None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            code = ended(pid, 900)
        found = sorted((folder / "runs" / "digits").glob("*"))
        run = found[-1] if found else None
        if code == 0:
            assert run is not None
            return run, faults, wrong
        if code is None or code not in (1, 129, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT):
            wrong.append(f"exit code {code}")
        if time.monotonic() > until + 900:
            raise SystemExit(f"the run does not end: exit code {code}, see {folder}/log.txt")


def main() -> None:
    """Prints the faults, and whether both runs came to the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--every", type=float, nargs=2, default=(2.0, 6.0), help="seconds between two faults, least and most")
    parser.add_argument("--epochs", type=int, default=300, help="of the run, about as long as the faults last")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    import lightning

    import cct_lightning.commands.running  # loaded once, for all sittings
    import cct_lightning.tasks.classification  # noqa: F401

    words = [*WORDS, "--trainer.max_epochs", str(options.epochs)]
    with tempfile.TemporaryDirectory() as quiet, tempfile.TemporaryDirectory() as stormy:
        began = time.monotonic()
        run, faults, wrong = ordeal(Path(stormy), words, options.seconds, tuple(options.every), random.Random(options.seed))
        took = time.monotonic() - began
        began = time.monotonic()
        assert ended(start(["fit", *words], Path(quiet)), 3600) == 0, Path(quiet, "log.txt").read_text()[-2000:]
        alone = time.monotonic() - began
        (reference,) = Path(quiet, "runs", "digits").glob("*")
        said = Path(stormy, "log.txt").read_text()
        same_rows = rows(run) == rows(reference)
        files = {name: equal(content(run, name), content(reference, name)) for name in ("last.ckpt", "best.ckpt")}
        print(f"\n{machine('cpu', 1, lightning)}; seed {options.seed}")
        print(f"{sum(faults.values())} faults in {options.seconds:g} s: {', '.join(f'{n} {fault}' for fault, n in faults.most_common())}")
        print(f"{len(rows(run))} rows of metrics.csv equal to those of a run without faults: {same_rows}")
        for name, same in files.items():
            print(f"{name}: weights, average and optimizer equal to the bit: {same}")
        print(f"tracebacks: {said.count('Traceback (most')}; otherwise wrong: {', '.join(wrong) or 'nothing'}")
        print(f"{took:.0f} s with faults, {alone:.0f} s without")
        if "Traceback (most" in said:
            print(said[said.index("Traceback (most") :][:3000])
    sys.exit(0 if all(files.values()) and same_rows else 1)


if __name__ == "__main__":
    main()
