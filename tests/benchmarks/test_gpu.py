"""The programs for a GPU run to their last line without one: what they find then is wrong in themselves."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An empty folder, from which the checkout's benchmarks can be imported."""
    monkeypatch.syspath_prepend(str(CHECKOUT))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_check_runs_every_part_and_finds_nothing_wrong(monkeypatch, tmp_path, capsys):
    from benchmarks.gpu import check

    monkeypatch.setattr(check, "_quiet", lambda: None)  # for good
    monkeypatch.setattr("sys.argv", ["check", "--dry", "--out", "found.jsonl"])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert (end.value.code, capsys.readouterr().out.splitlines()[-1]) == (0, "0 defect(s)")
    found = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    assert {line["what"] for line in found} > {"machine", "command", *check.PARTS}
    assert sum(line["right"] is True for line in found) > 40
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]  # the rest went into a folder of its own


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_fails_leaves_the_others_running_and_one_without_time_is_named(monkeypatch, capsys):
    from benchmarks.gpu import check

    monkeypatch.setattr(check, "_quiet", lambda: None)
    monkeypatch.setattr(check.Checks, "graph", lambda self: 1 / 0)
    monkeypatch.setattr(check.Checks, "rates", lambda self: self.told(False, "a defect"))
    monkeypatch.setattr("sys.argv", ["check", "graph", "rates", "--dry"])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.endswith("2 defect(s)\n  graph\n  a defect\n")
    monkeypatch.setattr("sys.argv", ["check", "graph", "rates", "--dry", "--seconds", "0"])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.endswith("0 defect(s)\nleft: graph rates\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_measuring_goes_on_where_it_was_cut_off_and_ends(monkeypatch, capsys):
    from benchmarks.gpu import measure

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["measure", "--dry", "--out", "rows.jsonl"])
    recipe = measure.recipe
    monkeypatch.setattr(measure, "recipe", cut_off)
    with pytest.raises(KeyboardInterrupt):
        measure.main()
    monkeypatch.setattr(measure, "recipe", recipe)
    path = Path("rows.jsonl")
    before = path.read_text()
    assert [json.loads(line)["row"].partition(" ")[0] for line in before.splitlines()] == ["card", *["step"] * 6]
    path.write_text(before + '{"row": "cifar10_1min seed 0", "test_ac')  # cut off while it was written
    measure.main()
    assert capsys.readouterr().out.endswith("all rows stand in the file\n")
    assert path.read_text().startswith(before)  # not measured again
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in found] == [row.name for row in measure.rows("cpu", Path())]
    for line in found:
        assert "error" not in line, line
        assert line["machine"].count(", ") >= 5
        assert f"torch {torch.__version__}" in line["machine"]
        assert line["command"] == "measure --dry --out rows.jsonl"
        assert line.get("n", 1) >= 1
    measure.main()
    assert path.read_text().count("\n") == len(found)
    assert [path.name for path in Path().iterdir()] == ["rows.jsonl"]


def test_a_row_that_would_not_end_in_time_is_left_and_named(monkeypatch, capsys):
    from benchmarks.gpu import measure

    monkeypatch.setattr(measure, "rows", lambda *_: [measure.Row("quick", 1, lambda: {"n": 1}), measure.Row("slow", 9, lambda: 1 / 0)])
    monkeypatch.setattr("sys.argv", ["measure", "--out", "rows.jsonl", "--seconds", "8"])
    measure.main()
    assert capsys.readouterr().out.endswith("1 row(s) left, call again: slow\n")
    monkeypatch.setattr("sys.argv", ["measure", "--out", "rows.jsonl", "--seconds", "10"])
    measure.main()
    first, second = map(json.loads, Path("rows.jsonl").read_text().splitlines())
    assert (first["row"], first["n"], second["error"]) == ("quick", 1, "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("pieces", [("compile", "graph", "channels_last", "augment"), ("compile",)])
def test_what_is_timed_on_a_gpu_mixes_no_devices_there(gpu, monkeypatch, pieces):
    from benchmarks.gpu import measure

    def backward(loss):
        for parameter in (parameter for group in made[0].param_groups for parameter in group["params"]):
            parameter.grad = torch.empty_like(parameter)

    def optimizer(network, config):
        made.append(create_optimizer(network, config))
        network.requires_grad_(False)  # autograd would ask for a driver
        return made[-1]

    made, create_optimizer, sent = [], measure.create_optimizer, []
    monkeypatch.setattr(measure, "create_optimizer", optimizer)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **named: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: nullcontext())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    with gpu.waiting():
        measure.in_a_process(SimpleNamespace(send=sent.append), ("ours", "cct_2_3x2_32", 8, pieces), "cuda", 1)
        assert measure.card("cuda")["n"] == 5
    assert (len(sent[0][0]), sent[0][2]) == (5, 1.0)
    assert {"convolution", "_fused_adamw_", "mm"} < gpu.seen
