"""What Lightning's Trainer is given, for machines that are not here: no GPU, no cluster."""

import os
import socket

import pytest

from cct_lightning.commands import parser
from cct_lightning.commands.main import prepare
from cct_lightning.runs.trainer import check_devices


def given(*words):
    """Returns the group ``trainer`` of a command line as it is parsed."""
    request = prepare(["fit", "-c", "digits", *words])
    return parser.CLI(request, list(request.words)).config.trainer


def test_a_run_takes_one_device_unless_it_is_told_otherwise():
    assert (given().devices, given().strategy) == (1, "auto")
    for overlay in ("ddp", "fsdp"):
        assert given("-c", overlay).devices == "auto"
    assert given("--trainer.devices", "4").devices == "4"


def test_r19_more_devices_than_cores_are_refused_on_a_cpu(cct, tmp_path):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    outcome = cct("fit", "-c", "digits", "--trainer.accelerator", "cpu", "--trainer.devices", 99)
    assert outcome.code == 2
    assert f"error: trainer.devices=99 on a CPU with {cores} core(s): each device is a process of its own." in outcome.err
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize("devices", ["many", "-3", "[0,0]"])
def test_devices_that_are_no_number_are_refused(cct, devices):
    outcome = cct("fit", "-c", "digits", "-c", "smoke", "--trainer.accelerator", "cpu", "--trainer.devices", devices)
    assert outcome.code == 2
    assert "error: trainer.devices=" in outcome.err
    assert "It takes a number, or auto" in outcome.err


@pytest.mark.parametrize(("devices", "refused"), [(1, False), (2, False), (3, True)])
def test_as_many_devices_as_cores_are_taken(monkeypatch, devices, refused):
    from lightning.pytorch import Trainer

    from cct_lightning import InputError

    trainer = Trainer(accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    if refused:
        with pytest.raises(InputError, match="Give at most 2"):
            check_devices(trainer)
    else:
        check_devices(trainer)


def test_a_signal_of_slurms_requeues_nothing(cct, monkeypatch):
    """A job that Lightning puts back into the queue starts its command anew, in another folder."""
    import lightning.pytorch as lightning

    seen = []
    fit = lightning.Trainer.fit

    def look(self, *args, **named):
        seen.append(self.strategy.cluster_environment)
        return fit(self, *args, **named)

    monkeypatch.setattr(lightning.Trainer, "fit", look)
    variables = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7, "JOB_NAME": "train", "NNODES": 1}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with socket.create_server(("127.0.0.1", 0)) as server:  # else it takes 15007, and leaves that to what comes after
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    words = ("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false")
    try:
        assert cct("fit", "-c", "digits", *words).code == 0
    finally:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert type(seen[0]).__name__ == "SLURMEnvironment"
    assert not seen[0].auto_requeue
