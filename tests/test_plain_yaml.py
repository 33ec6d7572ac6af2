import time

import pytest
import yaml

from cct_lightning import InputError
from cct_lightning.commands.recipes import recipe_paths
from cct_lightning.plain_yaml import MAX_BYTES, read_yaml, read_yaml_file

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
HOSTILE = {
    "deep brackets": ("x: " + "[" * 100_000, "nested deeper than 50 levels"),
    "deep braces": ("{a: " * 100_000, "nested deeper than 50 levels"),
    "deep dashes": ("- " * 100_000 + "x", "nested deeper than 50 levels"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(1000)), "nested deeper than 50 levels"),
    "recursive": ("model: &m [*m]", r"line 1: \*m stands inside of what it names"),
    "recursive key": ("model: &m {a: {b: *m}}", r"line 1: \*m stands inside of what it names"),
    "billion laughs": (LAUGHS, "holds more than 20,000 items"),
    "many items": ("x: [" + "1," * 400_000 + "]", "holds more than 20,000 items"),
    "large": ("x: " + "y" * 50 * 10**6, "is larger than 1 MB"),
    "two million items": ("x: [" + "1," * 2 * 10**6 + "]", "is larger than 1 MB"),
    "binary": ("\0" * 100, "is no YAML"),
    "bytes": (b"\xff\xfe\xff".decode("latin-1"), "is no YAML|is no recipe"),
    "code": ("model: !!python/object/apply:os.system [id]", "line 1 is no YAML: could not determine a constructor for the tag"),
    "date": ("model: {arch: 2020-99-99}", "is no YAML: month must be in 1..12"),
    "digits": ("model: {arch: " + "1" * 5000 + "}", "is no YAML: Exceeds the limit"),
    "key": ("{[a]: b}", "line 1 is no YAML: found unhashable key"),
    "base": ("seed_everything: 1" + ":1" * 20000, "is no YAML|is no recipe|there is no key|holds more|seed_everything"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_r11b_hostile_yaml_costs_a_line_and_no_time(kind, tmp_path):
    text, message = HOSTILE[kind]
    (tmp_path / "own.yaml").write_text(text)
    began = time.process_time()
    if kind in ("base", "bytes"):  # plain text after all
        read_yaml_file(tmp_path / "own.yaml")
    else:
        with pytest.raises(InputError, match=message) as caught:
            read_yaml_file(tmp_path / "own.yaml")
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400
    assert time.process_time() - began < 1


@pytest.mark.parametrize("kind", HOSTILE)
def test_r11b_no_command_stumbles_over_it(kind, tmp_path, cct):
    text, _ = HOSTILE[kind]
    run = tmp_path / "runs" / "digits" / "x"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (run / name).write_text(text)
    (tmp_path / "own.yaml").write_text(text)
    began = time.process_time()
    for words in (("fit", "-c", "own.yaml"), ("fit", "-c", "digits", "-c", "own.yaml"), ("resume", run)):
        outcome = cct(*words)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        assert len(outcome.err.splitlines()) <= 5
    if kind != "base":  # a number of 36,000 digits, which reaches the full parser
        assert time.process_time() - began < 3


@pytest.mark.parametrize("words", [
    ("fit", "-c", "{}"), ("fit", "-c", "digits", "--data.root", "{}", "--data.dataset", "csv"), ("finetune", "{}"), ("resume", "{}"), ("test", "{}"),
    ("predict", "{}", "{}"), ("export", "{}", "--format", "onnx"), ("recipes", "{}"), ("fit", "-c", "digits", "--model.pretrained", "{}"), ("{}",),
    ("fit", "-c", "digits", "--{}", "3"), ("embed", "{}", "{}", "--out", "{}.npz"),
])  # fmt: skip
def test_r11b_a_path_of_5000_characters_costs_a_line(words, cct):
    outcome = cct(*(word.format("x" * 5000) for word in words))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) <= 5
    assert len(outcome.err) < 3000


def test_what_people_write_is_read_as_before(tmp_path):
    for path in recipe_paths().values():
        assert read_yaml_file(path) == yaml.safe_load(path.read_text())
    text = "a: &x {lr: 1.0e-3, on: [1, 2.5, null, true, text]}\nb: {<<: *x, lr: 2}\nc: [*x, *x]"
    assert read_yaml(text, "here") == yaml.safe_load(text)
    assert read_yaml("", "here") is None
    assert len(read_yaml("x: " + "y" * (MAX_BYTES - 10), "here")["x"]) == MAX_BYTES - 10


def test_a_folder_and_nothing_are_told(tmp_path):
    with pytest.raises(InputError, match=r"own\.yaml can't be read: No such file"):
        read_yaml_file(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_bytes(b"model: \xff")
    with pytest.raises(InputError, match=r"own\.yaml is no YAML: it is no text in UTF-8"):
        read_yaml_file(tmp_path / "own.yaml")
