"""Commands as processes of their own that cost no import: a server that has Lightning loaded forks for each.

As a script it is the server: it reads requests, one JSON a line, and answers each with one.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path


class Server:
    """Starts and waits for commands in forks of one interpreter."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        environment.pop("CCT_RUN_DIR", None)
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[1], text=True
        )

    def _ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *words, cwd, **environment) -> "Command":
        """Starts ``cct WORDS``; what it writes goes to files in its folder."""
        out = Path(cwd, f"out-{len(list(Path(cwd).glob('out-*')))}")
        out.touch()
        return Command(self, self._ask(words=list(map(str, words)), cwd=str(cwd), out=str(out), environment=environment), out)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Command:
    """A command that runs."""

    def __init__(self, server: Server, pid: int, out: Path) -> None:
        self.server, self.pid, self.path, self.began = server, pid, out, time.monotonic()

    @property
    def out(self) -> str:
        return self.path.read_text()

    def wait(self, seconds: float = 60.0) -> int | None:
        """Returns its exit code, negative where a signal ended it; None where it goes on for longer."""
        return self.server._ask(wait=self.pid, seconds=seconds)

    def children(self) -> list[int]:
        """Returns the processes that it launched."""
        return [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


class Forked:
    """What Lightning's launcher takes for a Popen."""

    def __init__(self, command, env, cwd=None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.clear()
            os.environ.update(env)
            _become(command[2:])

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("cct", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(words) -> None:
    """Runs a command to its end, and ends with it."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from cct_lightning.__main__ import main

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    rank_zero_only.rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    sys.argv = ["cct", *words]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _start(request) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    sys.path.insert(0, request["cwd"])
    file = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of a process that is killed
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _become(request["words"])
    return 0


def _wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            return None
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(found[1])


def _serve() -> None:
    from types import SimpleNamespace

    from cct_lightning.runs.postponed import COMPILER, postpone, run

    postpone()  # as ``cct`` does
    from lightning.pytorch.strategies.launchers import subprocess_script

    import cct_lightning.commands.running  # noqa: F401
    from cct_lightning.tasks.classification import LitClassifier  # noqa: F401

    run(sys.modules[COMPILER])  # which trainings on several devices need
    subprocess_script.subprocess = SimpleNamespace(Popen=Forked)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _wait(request["wait"], request["seconds"]) if "wait" in request else _start(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    _serve()
