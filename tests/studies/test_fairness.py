import json

from cct_lightning.studies.fairness import compare_starts
from cct_lightning.studies.plan import START, Job


def job(tmp_path, arm, tensors, batches, seed=0):
    folder = tmp_path / arm / f"seed{seed}"
    run = folder / "recipe" / "20260101-000000"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    if tensors is not None:
        (run / START).write_text(json.dumps({"tensors": tensors, "batches": batches}))
    return Job(arm, {}, seed, {}, folder)


def batch(images="i", targets="t", indices="n"):
    return {"images": images, "targets": targets, "indices": indices}


def test_what_arms_share_is_told_apart_from_what_is_their_own(tmp_path):
    base = job(tmp_path, "base", {"model.a": [[2], "x"], "model.b": [[3], "y"]}, [batch(), batch()])
    same = job(tmp_path, "same", {"model.a": [[2], "x"], "model.c": [[4], "z"], "model.b": [[5], "y"]}, [batch(), batch()])
    (start,) = compare_starts([base, same], "base")
    assert start.is_equal
    assert (start.shared, start.own, start.lacking, start.seeds) == (1, ("model.b", "model.c"), ("model.b",), 1)
    assert start.told() == "same: 1 shared tensors equal at the start; the same batches; with another b; of its own c"


def test_a_table_of_sines_is_not_taken_for_the_positions_that_are_learned(tmp_path):
    base = job(tmp_path, "learned", {"model.a": [[2], "x", True], "model.b": [[2], "y", True], "model.c": [[2], "z", True]}, [batch()])
    sine = job(tmp_path, "sine", {"model.a": [[2], "x", True], "model.b": [[2], "z", False]}, [batch()])
    old = job(tmp_path, "old", {"model.a": [[2], "x"], "model.b": [[2], "y"], "model.c": [[2], "z"]}, [batch()])
    told = [start.told() for start in compare_starts([base, sine, old], "learned")]
    assert told[0] == "sine: 1 shared tensors equal at the start; the same batches; with another b; without c"
    assert told[1] == "old: 3 shared tensors equal at the start; the same batches"


def test_unequal_starts_and_batches_are_named(tmp_path):
    base = job(tmp_path, "base", {"model.a": [[2], "x"]}, [batch(), batch()])
    other = job(tmp_path, "other", {"model.a": [[2], "y"]}, [batch(), batch(images="j")])
    (start,) = compare_starts([base, other], "base")
    assert not start.is_equal
    assert start.told() == "other: UNEQUAL at the start: a; other images in the first batches"


def test_each_seed_is_held_against_its_own(tmp_path):
    runs = [job(tmp_path, arm, {"model.a": [[2], f"x{seed}"]}, [batch(indices=seed)], seed) for arm in ("base", "arm") for seed in (0, 1)]
    (start,) = compare_starts(runs, "base")
    assert start.is_equal
    assert start.seeds == 2


def test_batches_that_no_run_wrote_down_are_not_the_same(tmp_path):
    runs = [
        job(tmp_path, arm, {"model.a": [[2], "x"]}, [batch()] if seed and arm == "base" else [], seed) for arm in ("base", "arm") for seed in (0, 1)
    ]
    (start,) = compare_starts(runs, "base")
    assert start.told() == "arm: 1 shared tensors equal at the start; no images known in the first batches"
    (again,) = compare_starts([*runs, *(job(tmp_path, arm, {"model.a": [[2], "x"]}, [batch()], 2) for arm in ("base", "arm"))], "base")
    assert again.is_equal


def test_a_run_without_a_record_is_not_taken_for_an_equal_one(tmp_path):
    (start,) = compare_starts([job(tmp_path, "base", {"model.a": [[2], "x"]}, []), job(tmp_path, "arm", None, [])], "base")
    assert start.told() == "arm: not known, no run wrote down what it began with"
