import csv
import json
import re
import signal

import pytest
import yaml
from cct_lightning.callbacks import StartRecord

from cct_lightning.commands.study import prepare, study_paths
from cct_lightning.run_folder import RunFolder

MINE = """
factor: model.pooling
values: {mean: {model.pooling: mean}, broken: {model.num_heads: 3}, seqpool: {model.pooling: seqpool}}
baseline: mean
seeds: 2
expected: Nothing.
fixed:
  model.embed_dim: 32
  data.per_class: 12
  data.batch_size: 20
  trainer.max_epochs: 2
  trainer.callbacks: null
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path / "studies" / "mine-digits"


def rows(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_study_compares_what_its_runs_found_and_goes_on_where_it_was_stopped(cct, mine, tmp_path, monkeypatch):
    record = StartRecord.on_train_batch_start

    def interrupted(self, trainer, pl_module, batch, batch_idx):
        record(self, trainer, pl_module, batch, batch_idx)
        if type(pl_module.model.pooling).__name__ == "SeqPool" and trainer.global_step == 1:
            signal.raise_signal(signal.SIGINT)

    elsewhere = {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": str(tmp_path / "times"), "filename": "all"}}
    (tmp_path / "profiled.yaml").write_text(yaml.safe_dump({"trainer": {"profiler": elsewhere}}))
    recipes = ("-c", "digits", "-c", "profiled.yaml", "--allow-path", tmp_path / "times", "--out", mine)
    words = ("study", "mine.yaml", *recipes)

    with monkeypatch.context() as patched:
        patched.setattr(StartRecord, "on_train_batch_start", interrupted)
        outcome = cct(*words)
    assert outcome.code == 130
    assert "[1/6] mean, seed 0: " in outcome.out
    assert "[2/6] broken, seed 0: FAILED, num_heads=3 does not divide embed_dim=32" in outcome.out
    assert "[3/6] seqpool, seed 0: stopped, it goes on from there" in outcome.out
    assert "stopped; the same command goes on" in outcome.err
    assert [row["arm"] for row in rows(mine)] == ["mean"]

    outcome = cct(*words, "--seeds", 3)
    assert outcome.code == 1  # the arm that fails, tried again
    assert "9, of which 1 are there" in outcome.out
    assert "3 of the runs failed" in outcome.err
    found = rows(mine)
    assert sorted((row["arm"], row["seed"]) for row in found) == [(arm, str(seed)) for arm in ("mean", "seqpool") for seed in range(3)]
    for row in found:
        summary = json.loads((mine / row["run_dir"] / "summary.json").read_text())
        assert (float(row["test_accuracy"]), summary["seed"]) == (summary["test_accuracy"], int(row["seed"]))
        assert summary["resumed"] == int((row["arm"], row["seed"]) == ("seqpool", "0"))
    assert "seqpool: 29 shared tensors equal at the start; the same batches; of its own pooling.score.bias" in outcome.out
    assert "Without a run that ended: broken." in outcome.out
    page, table = (mine / "report.html").read_text(), (mine / "results.md").read_text()
    assert "Expected before it was measured: Nothing." in table
    assert page.count("data:image/png") == 2  # seeds, and accuracy over the training
    assert re.search(r"\| seqpool \| [\d.]+ ± [\d.]+ % \| 3 \| [+-][\d.]+ \|", table)

    monkeypatch.setattr("cct_lightning.commands.study.PATIENCE", 0)
    with RunFolder(mine).held():
        assert "is being trained by another process on this machine" in cct(*words).err
    outcome = cct(*words, "--seeds", 3, "--model.embed_dim", 64)
    assert outcome.code == 2
    assert "holds runs of another fixed" in outcome.err


@pytest.mark.slow
def test_processes_side_by_side_find_the_same(cct, mine):
    words = ("study", "mine.yaml", "-c", "digits", "--seeds", 1)
    assert cct(*words).code == 1
    assert cct(*words, "--out", "beside", "--jobs", 2).code == 1
    ours, theirs = rows(mine), rows(mine.parents[1] / "beside")
    assert len(ours) == 2
    for name in ("arm", "seed", "test_accuracy", "val_accuracy", "num_parameters"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]


def test_a_plan_trains_nothing_and_says_how_much_there_is(cct, mine):
    outcome = cct("study", "mine.yaml", "-c", "digits", "--plan")
    assert outcome.code == 0, outcome.err
    assert "3 arms x 2 seeds x 1 comparison(s) = 6 runs; 6 are missing" in outcome.out
    assert re.search(r"about .* each, by \d+ steps of mean, validation and test left out: CPU-hours 0\.0 in all", outcome.out)
    assert not mine.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "study takes one study"),
        (("poolings", "-c", "digits", "--trainer.devices", "2"), "trainer.devices=2: a run of a study is one process on one device; --jobs N"),
        (("poolings", "x", "-c", "digits"), "and 2 words were given"),
        (("poolings",), "study needs a recipe"),
        (("pooling", "-c", "digits"), "neither a file nor a study. Did you mean poolings?"),
        (("poolings", "-c", "digits", "--seeds", "0"), "--seeds 0: it takes a whole number"),
        (("poolings", "-c", "digits", "--model.deph", "3"), "model.deph"),
        (("poolings", "-c", "digits", "--model.pooling", "mean"), "model.pooling is set by fixed and by values"),
        (
            ("poolings", "-c", "digits", "--tune", "learning_rate"),
            "--tune learning_rate: it takes a key and its values, such as --tune learning_rate=0",
        ),
        (("poolings", "-c", "digits", "--tune", "learning_rate="), "--tune learning_rate=: it takes a key and its values"),
        (("poolings", "-c", "digits", "--tune", "learning_rate=1,x"), "learning_rate: 'x' is no factor on the recipe's rate"),
        (("poolings", "-c", "digits", "--tune", "model.optim.rl=1,2"), "there is no key 'model.optim.rl'"),
        (("poolings", "-c", "digits", "--trainer.callbacks+=EMA"), "--trainer.callbacks+= can't be said of a study"),
    ],
)
def test_what_can_not_be_compared_is_refused_before_anything_is_read(cct, words, said):
    outcome = cct("study", *words, *(("--jobs", "1") if not words else ()))
    assert outcome.code == 2
    assert said in outcome.err


def test_what_is_typed_has_the_type_of_what_a_file_says():
    request = prepare(["poolings", "-c", "digits", "--model.depth", "3", "--trainer.max_epochs", "null", "--data.root=a b"])
    assert {"model.depth": 3, "trainer.max_epochs": None, "data.root": "a b"}.items() <= request.study.fixed.items()


@pytest.mark.parametrize(
    ("typed", "tune"),
    [
        ((), {"learning_rate": [0.5, 1, 2]}),
        (("--tune", "learning_rate=0.5,1,2,4"), {"learning_rate": [0.5, 1, 2, 4]}),
        (("--tune", "none"), {}),
        (("--tune", "none", "--tune", "model.optim.weight_decay=1e-3,0.1"), {"model.optim.weight_decay": [0.001, 0.1]}),
    ],
)
def test_what_is_tuned_may_be_typed(typed, tune):
    assert prepare(["poolings", "-c", "digits", *typed]).study.tune == tune


def test_an_arm_with_a_key_that_is_none_is_refused_before_the_first_run(cct, tmp_path):
    (tmp_path / "mine.yaml").write_text("factor: words\nvalues: {a: {}, b: {model.depht: 3}}\n")
    outcome = cct("study", "mine.yaml", "-c", "digits")
    assert outcome.code == 2
    assert "model.depht" in outcome.err


def test_shipped_studies_are_listed(cct):
    outcome = cct("study")
    assert outcome.code == 0
    for name in study_paths():
        assert f"\n{name} " in f"\n{outcome.out}"


@pytest.mark.slow
def test_networks_are_looked_at_on_the_same_images_once(cct, mine, monkeypatch):
    words = ("study", "mine.yaml", "-c", "digits", "--seeds", 1, "--look")
    assert cct(*words).code == 1  # the arm that fails
    with (mine / "analysis.csv").open(newline="") as file:
        found = {(row["arm"], row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert {arm for arm, _ in found} == {"mean", "seqpool"}
    assert 0.5 < found["mean", "probe"] <= 1  # tokens of an untrained tokenizer tell most digits
    assert ("mean", "entropy") not in found
    assert 0 < found["seqpool", "entropy"] <= 1
    assert 0.5 < found["seqpool", "cka"] <= 1
    assert (mine / "pictures" / "maps-all.png").stat().st_size > 5000
    assert "What the networks look at" in (mine / "report.html").read_text()
    monkeypatch.setattr("cct_lightning.studies.analysis._probe", lambda *_: pytest.fail("measured again"))
    outcome = cct(*words)
    assert "  probe " in outcome.out
