import pytest

from cct_lightning.commands.study import study_paths
from cct_lightning.errors import InputError
from cct_lightning.studies.options import check_once, read_study, slug, told, with_rates


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_list_of_values_is_an_arm_each_and_the_first_the_baseline(tmp_path):
    study = read_study(write(tmp_path, "factor: model.residual_norm\nvalues: [true, false]\n"))
    assert study.arms == {"true": {"model.residual_norm": True}, "false": {"model.residual_norm": False}}
    assert (study.name, study.baseline, study.seeds, study.cells, study.trials) == ("mine", "true", 3, [{}], [])


def test_every_combination_is_a_comparison_or_a_trial(tmp_path):
    text = "factor: depth\nvalues: {a: {}, b: {model.depth: 3}}\nacross: {x: [1, 2], y: [3]}\ntune: {u: [4, 5], v: [6, 7]}\n"
    study = read_study(write(tmp_path, text))
    assert study.cells == [{"x": 1, "y": 3}, {"x": 2, "y": 3}]
    assert [told(trial) for trial in study.trials] == ["u 4, v 6", "u 4, v 7", "u 5, v 6", "u 5, v 7"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "is no study: it should hold factor and values"),
        ("factor: a.b\nvalues: [1]\n", "values has two of its values or more"),
        ("factor: a.b\nvalues: [1, 2]\nseed: 3\n", "'seed' is no part of a study. Did you mean seeds?"),
        ("factor: a.b\nvalues: [1, 2]\nbaseline: 3\n", "baseline='3' is none of the arms. Known: 1, 2."),
        ("factor: words\nvalues: [1, 2]\n", "factor='words' is no key"),
        ("factor: words\nvalues: {a: {}, b: 3}\n", "values: b holds keys"),
        ("factor: words\nvalues: {a b: {}, a-b: {x: 1}}\n", "two of the arms a b, a-b would have the same folder"),
        ("factor: a.b\nvalues: [1, 2]\ntune: {c.d: 3}\n", "tune holds keys with a list of values each"),
        ("factor: a.b\nvalues: [1, 2]\nfixed: [3]\n", "fixed holds keys with a value each"),
        ("factor: a.b\nvalues: [1, 2]\nfixed: {a.b: 3}\n", "a.b is set by fixed and by values: say it in one place"),
        ("factor: words\nvalues: {a: {seed_everything: 1}, b: {}}\n", "seed_everything is set by the seeds and by values"),
        ("factor: a.b\nvalues: [1, 2]\nseeds: 0\n", "seeds=0 is out of range"),
    ],
)
def test_what_is_no_study_is_refused_with_the_way_out(tmp_path, text, said):
    with pytest.raises(InputError) as error:
        read_study(write(tmp_path, text))
    assert said in str(error.value)


@pytest.mark.parametrize("name", study_paths())
def test_the_shipped_studies_are_studies_and_say_what_was_expected(name):
    path = study_paths()[name]
    study = read_study(path)
    assert study.expected
    assert study.seeds >= 5
    lines = path.read_text().splitlines()
    assert lines[1].startswith(f"#   cct study {name} -c ")
    assert lines[0].startswith("# ")
    assert lines[0].endswith(".")


@pytest.mark.parametrize(
    ("keys", "doubled"),
    [
        (
            {"model.optim.name": "muon", "model.optim.muon_lr": 0.024, "model.optim.lr": 0.011},
            {"model.optim.lr": 0.022, "model.optim.muon_lr": 0.048},
        ),
        ({"model.optim.name": "muon"}, {"model.optim.lr": 0.0011, "model.optim.muon_lr": 0.04}),
        ({"model.optim.lr": 0.003}, {"model.optim.lr": 0.006}),
    ],
)
def test_a_factor_is_on_all_rates_that_the_recipes_optimizer_takes(tmp_path, keys, doubled):
    study = with_rates(read_study(write(tmp_path, "factor: a.b\nvalues: [1, 2]\ntune: {learning_rate: [1, 2], c.d: [3]}\n")), keys)
    assert study.trials == [{"learning_rate": 1, "c.d": 3}, {"learning_rate": 2, "c.d": 3}]
    assert study.keys_of(study.trials[1]) == {**doubled, "c.d": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tune: {learning_rate: [1, x]}", "learning_rate: 'x' is no factor on the recipe's rate"),
        ("tune: {learning_rate: [0]}", "learning_rate: 0 is no factor"),
        ("tune: {learning_rate: [1]}\nacross: {model.optim.name: [sgd, lamb]}", "and the study compares model.optim.name"),
        ("tune: {model.optim.muon_lr: [0.1]}", "is the rate of muon, and the recipe's optimizer is adamw"),
    ],
)
def test_a_rate_without_effect_is_not_tuned(tmp_path, text, said):
    with pytest.raises(InputError) as error:
        with_rates(read_study(write(tmp_path, f"factor: a.b\nvalues: [1, 2]\n{text}\n")), {})
    assert said in str(error.value)


def test_a_rate_that_an_arm_sets_is_not_tuned_as_well(tmp_path):
    study = read_study(
        write(tmp_path, "factor: model.optim.lr\nvalues: [0.1, 0.2]\ntune: {learning_rate: [1, 2]}\nfixed: {model.optim.muon_lr: 0.1}\n")
    )
    with pytest.raises(InputError, match=r"model\.optim\.lr is set by tune and by values"):
        check_once(with_rates(study, {"model.optim.name": "muon"}), "here")


def test_a_name_becomes_a_folder_that_every_system_takes():
    assert slug("fraction 0.1, a/b: c") == "fraction-0.1-a-b-c"
    assert slug("***") == "-"
