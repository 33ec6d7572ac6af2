"""The processes of a run: whether each still lives, which one failed and how, and that the others do not wait for it for ever."""

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cct_lightning.errors import InputError, RunError
from cct_lightning.run_folder import PARENT, VARIABLE, RunFolder
from cct_lightning.runs.lightning_private import put_launcher

# Seconds without a sign of life after which a rank is given up; one that swaps, or imports what holds the interpreter, may need many.
SILENCE = 120.0
SILENCE_VARIABLE = "CCT_RANK_TIMEOUT"  # sets others
BEAT = 1.0  # seconds between two signs of life
GRACE = 4.0  # for the main thread to find out by itself, since a process that ends closes its connections
LEAVE = 60.0  # for it to clean up, once it has
JOIN = 60.0  # for all to connect, once all are there
# What is raised where another rank is gone, in the words of gloo, NCCL and torch.
COMMUNICATION = ("onnection closed", "onnection reset", "Broken pipe", "gloo", "NCCL", "ProcessGroup", "TCPStore", "Timed out")


@dataclass
class _Peer:
    """Another rank, as far as it is connected."""

    rank: int
    process: str
    link: socket.socket
    heard: float
    text: bytes = b""
    left: bool = False  # said that it ends


class _Watch(threading.Thread):
    """Hears and gives signs of life; finds out who is lost, and ends the process where the main thread waits for it.

    Args:
        folder: The run's.
        silence: Seconds after which a rank is given up.
        parent: Process id of rank zero where that launched this process.
    """

    def __init__(self, folder: RunFolder, silence: float, parent: int | None) -> None:
        super().__init__(daemon=True, name="ranks")
        self.folder, self.silence, self.parent = folder, silence, parent
        self.rank, self.size = int(parent is not None), 2  # until they are known
        self.launched: Mapping[int, subprocess.Popen[bytes]] = {}
        self.arriving: list[_Peer] = []
        self.lost: tuple[int, str] | None = None  # the first rank that failed, and how
        self.leaves = self.joined = False  # whether the main thread knows; whether the ranks have been connected
        self._peers: dict[int, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._found = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        spoke = looked = time.monotonic()
        while not self._over.is_set():
            while self.arriving:
                peer = self.arriving.pop()
                self._peers[peer.rank] = peer
                self._selector.register(peer.link, selectors.EVENT_READ, peer)
            if not self._selector.get_map():
                time.sleep(BEAT / 4)
            for key, _ in self._selector.select(BEAT / 4) if self._selector.get_map() else ():
                self._hear(key.data)
            now = time.monotonic()
            if now - looked > 5 * BEAT:  # this process itself was stopped, or its machine slept
                for peer in self._peers.values():
                    peer.heard = now
            looked = now
            if now - spoke >= BEAT:
                spoke = now
                self.say(".")
            self._look(now)
            if self.lost is not None and now - self._found > (LEAVE if self.leaves else GRACE):
                self._leave()
        for peer in self._peers.values():
            peer.link.close()
        self._selector.close()
        while any(process.poll() is None for process in self.launched.values()):  # else they stay as zombies, in a process that goes on
            time.sleep(BEAT)

    def close(self) -> None:
        """Says goodbye, and watches no more."""
        if not self._over.is_set():
            self.say("bye")
            self._over.set()

    def say(self, line: str) -> None:
        """Tells the ranks that are connected."""
        for peer in list(self._peers.values()):
            with suppress(OSError):
                peer.link.sendall(f"{line}\n".encode())

    def lose(self, rank: int, how: str) -> None:
        """Keeps which rank failed first; rank zero tells the others."""
        if self.lost is None and not self._over.is_set():
            self._found = time.monotonic()
            self.lost = rank, how
            if self.rank == 0:
                self.say(f"lost {rank} {json.dumps(how)}")

    @property
    def speaks(self) -> bool:
        """Whether it is this rank that says what became of the lost one."""
        return self.lost is not None and self.rank == (1 if self.lost[0] == 0 else 0)

    @property
    def line(self) -> str:
        """What became of the lost rank."""
        assert self.lost is not None
        rank, how = self.lost
        ways = f"\n  `cct resume {self.folder.path}` goes on from the last checkpoint." if self.folder.last.is_file() else ""
        return f"rank {rank} of {self.size} {how}{ways}"

    def _hear(self, peer: _Peer) -> None:
        try:
            data = peer.link.recv(4096)
        except OSError:
            data = b""
        peer.heard = time.monotonic()
        *lines, peer.text = (peer.text + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "bye":
                peer.left = True
            elif word == "failed":
                self.lose(peer.rank, json.loads(rest))
            elif word == "lost":
                rank, _, how = rest.partition(" ")
                self.lose(int(rank), json.loads(how))
        if not data:
            self._selector.unregister(peer.link)
            peer.link.close()
            del self._peers[peer.rank]
            if not peer.left:
                self.lose(peer.rank, self._end_of(peer.rank, peer.process))

    def _end_of(self, rank: int, process: str) -> str:
        """Says how a process ended that said no goodbye."""
        code = None
        if rank in self.launched:
            with suppress(subprocess.TimeoutExpired):
                code = self.launched[rank].wait(2)
        if code is None:
            return f"({process}) ended without a word: it was killed, or its machine is gone."
        if code > 128 and code - 128 in list(signal.Signals):
            return f"({process}) was stopped by {signal.Signals(code - 128).name} before its first step."
        return f"({process}) " + (f"was killed by {signal.Signals(-code).name}." if code < 0 else f"ended with code {code}.")

    def _look(self, now: float) -> None:
        for rank, process in self.launched.items():
            if not self.joined and process.poll() is not None:
                self.lose(rank, self._end_of(rank, f"process {process.pid}"))
        if self.parent is not None and not self.joined and os.getppid() != self.parent:
            self.lose(0, f"(process {self.parent}) ended without a word: it was killed.")
        for peer in self._peers.values():
            if not peer.left and now - peer.heard > self.silence:
                self.lose(peer.rank, f"({peer.process}) has said nothing for {self.silence:g} s: it is stopped, or its machine is gone.")

    def join_ranks(self, rank: int, size: int, peers: list[_Peer]) -> None:
        """Takes over the connections."""
        self.arriving += peers
        self.rank, self.size, self.joined = rank, size, True

    def end_launched(self) -> None:
        """Ends the processes that this one launched, and rank zero where it is the one that is stopped: it would hold the run's folder."""
        until = time.monotonic() + GRACE + 1
        for rank, process in self.launched.items():
            with suppress(subprocess.TimeoutExpired):  # they know, and may have something to say
                process.wait(0 if self.lost is not None and self.lost[0] == rank else max(until - time.monotonic(), 0))
            process.kill()
        if self.lost is not None and self.lost[0] == 0 and self.parent is not None and os.getppid() == self.parent:
            with suppress(OSError):
                os.kill(self.parent, signal.SIGKILL)

    def _leave(self) -> None:
        if self.speaks:
            with suppress(OSError):
                os.write(2, f"\nerror: {self.line}\n".encode())
        self.end_launched()
        if self.rank == 0:
            self.folder.discard_unless_begun()
        os._exit(1)


def _silence() -> float:
    given = os.environ.get(SILENCE_VARIABLE, str(SILENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 2 * BEAT:
        raise InputError(f"{SILENCE_VARIABLE}={given}: give the seconds after which a rank that is not heard of is given up, more than {2 * BEAT:g}.")
    return seconds


class Ranks(Callback):
    """Watches over the processes of a run: rank zero hears from all once a second, and all from rank zero.

    A rank that is killed, that raises, or that says nothing for ``SILENCE`` seconds ends the run: a line says which and why, the others leave with
    code 1. A rank that says that it lives but hangs is left to the process group's own timeout (30 minutes). One process alone needs none of it.

    Args:
        folder: The run's; all ranks take that of rank zero.
        trainer: Of the run.

    Raises:
        InputError: CCT_RANK_TIMEOUT is no number of seconds.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._watch: _Watch | None = None
        self._verdict: tuple[BaseException, BaseException] | None = None

    def attach(self, trainer: Trainer) -> None:
        """Begins to watch, first of all the processes that the trainer launches."""
        launcher = put_launcher(trainer)
        if trainer.strategy.launcher is not launcher or trainer.num_devices * trainer.num_nodes == 1:
            return  # processes that multiprocessing starts, as in notebooks, or none
        launched = VARIABLE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
        self._watch = watch = _Watch(self.folder, _silence(), int(os.environ.get(PARENT, os.getppid())) if launched else None)

        def begin() -> None:
            assert launcher is not None
            watch.launched = dict(enumerate(launcher.procs, 1 + trainer.strategy.node_rank * trainer.num_devices))  # type: ignore[attr-defined]
            watch.size = trainer.num_devices * trainer.num_nodes
            watch.start()

        if launcher is not None:
            launcher.on_launch = begin
        if launched:
            watch.start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects the ranks, and has all take the folder of rank zero."""
        if trainer.world_size == 1 or stage != "fit":
            return
        told: str = trainer.strategy.broadcast(str(self.folder.path))
        self.folder.settle(Path(told))
        if self._watch is None:
            return
        if not self._watch.is_alive():
            self._watch.start()
        try:
            peers, problem = self._connect(trainer), None
        except OSError as error:
            peers, problem = [], error
        if trainer.strategy.reduce_boolean_decision(problem is None, all=True):
            self._watch.join_ranks(trainer.global_rank, trainer.world_size, peers)
            return
        if problem is not None:
            print(f"rank {trainer.global_rank} can't watch the others ({problem}): one that is stopped is found after 30 min.", file=sys.stderr)
        self._watch.close()

    def _connect(self, trainer: Trainer) -> list[_Peer]:
        """Returns the connections of this rank: all at rank zero, one elsewhere.

        Raises:
            OSError: Some rank does not get through.
        """
        alone = trainer.num_nodes == 1
        process = f"process {os.getpid()}" + ("" if alone else f" on {socket.gethostname()}")
        if trainer.global_rank:
            told: Any = trainer.strategy.broadcast(None)
            host, port, word, first = told
            link = socket.create_connection((host, port), timeout=JOIN)
            link.sendall(f"{word} {trainer.global_rank} {process}\n".encode())
            return [_Peer(0, first, link, time.monotonic())]
        host = "127.0.0.1" if alone else trainer.strategy.cluster_environment.main_address  # type: ignore[attr-defined]
        peers: dict[int, _Peer] = {}
        with socket.create_server(("127.0.0.1" if alone else "", 0), backlog=trainer.world_size) as server:
            word, until = secrets.token_hex(16), time.monotonic() + JOIN
            trainer.strategy.broadcast((host, server.getsockname()[1], word, process))
            while len(peers) < trainer.world_size - 1:
                server.settimeout(max(until - time.monotonic(), 0.1))
                link, _ = server.accept()
                link.settimeout(max(until - time.monotonic(), 0.1))
                with link.makefile() as lines:
                    said = lines.readline().split(maxsplit=2)
                if len(said) == 3 and secrets.compare_digest(said[0].encode(), word.encode()):
                    peers[int(said[1])] = _Peer(int(said[1]), said[2].strip(), link, time.monotonic())
                else:
                    link.close()
        return list(peers.values())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception):
            self.blame(exception)

    def blame(self, error: Exception) -> BaseException:
        """Returns what this rank shall raise for an error: the error itself, one that names the rank that caused it, or a quiet end."""
        watch = self._watch
        if watch is None or not watch.is_alive():
            return error
        if self._verdict is None or self._verdict[0] is not error:
            self._verdict = error, self._judge(watch, error)
        return self._verdict[1]

    def _judge(self, watch: _Watch, error: Exception) -> BaseException:
        watch.leaves = True
        if any(word in str(error) for word in COMMUNICATION):
            until = time.monotonic() + GRACE
            while watch.lost is None and time.monotonic() < until:
                time.sleep(0.05)
            if watch.lost is not None:
                return RunError(watch.line) if watch.speaks else SystemExit(1)
        if watch.rank == 0:
            watch.lose(0, f"raised {type(error).__name__}")
            return error
        lines = str(error).rsplit("InputError: ", 1)[-1].strip().splitlines() or [""]  # without the traceback of a DataLoader's worker
        if not isinstance(error, InputError):
            watch.say("failed " + json.dumps(f"raised {type(error).__name__}: {lines[0][:300]}"))
        elif watch.joined:
            watch.say("failed " + json.dumps("\n".join([f"found: {lines[0]}", *lines[1:4]])))
            return SystemExit(2)  # rank zero says it
        else:
            time.sleep(2 * GRACE)  # it is most likely what rank zero finds as well, says, and ends this process for
        error.add_note(f"on rank {watch.rank} of {watch.size}")
        return error

    def close(self, failed: bool = False, stopped_by: int = 0) -> None:
        """Ends the watch; where the run has failed, or a signal stopped it before its first step, its launched processes with it."""
        if (watch := self._watch) is None:
            return
        if stopped_by:  # the others are told, since they would wait for this one
            watch.leaves, how = True, f"was stopped by {signal.Signals(stopped_by).name} before its first step."
            if watch.rank:
                watch.say("failed " + json.dumps(how))
            elif len(watch.launched) < watch.size - 1:
                watch.lose(0, how)
        if failed or stopped_by:
            watch.end_launched()
        watch.close()
