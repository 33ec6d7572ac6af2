import csv

import numpy as np
import pytest

from cct_lightning.evaluation.wrong_labels import confident_joint, draw_wrong_labels, find_wrong_labels, list_wrong_labels, write_wrong_labels


def drawn(n=600, k=4, flipped=0.1, sure=4.0, seed=0):
    source = np.random.default_rng(seed)
    true = source.integers(0, k, n)
    given = np.where(source.random(n) < flipped, (true + source.integers(1, k, n)) % k, true)
    scores = source.normal(size=(n, k))
    scores[np.arange(n), true] += sure
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), given, true


def test_the_joint_is_that_of_a_table_worked_out_by_hand():
    # Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.7 + 0.9) / 2 = 0.8. The fourth image has neither; the third is truly of class 1.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9]])
    np.testing.assert_allclose(confident_joint(probabilities, np.array([0, 0, 0, 1, 1])), [[2, 1], [0, 2]])
    assert find_wrong_labels(probabilities, np.array([0, 0, 0, 1, 1])).tolist() == [2]


def test_each_row_of_the_joint_sums_to_its_class_also_without_an_image_that_counts():
    probabilities, given, _ = drawn()
    np.testing.assert_allclose(confident_joint(probabilities, given).sum(axis=1), np.bincount(given))
    np.testing.assert_allclose(confident_joint(probabilities[:, :3], np.zeros(600, int)).sum(axis=1), [600, 0, 0])


def test_flipped_labels_are_found():
    probabilities, given, true = drawn()
    found, wrong = find_wrong_labels(probabilities, given), np.flatnonzero(given != true)
    assert len(np.intersect1d(found, wrong)) / len(found) > 0.85
    assert len(np.intersect1d(found, wrong)) / len(wrong) > 0.85
    margins = probabilities[found].max(axis=1) - probabilities[found, given[found]]
    assert (np.diff(margins) <= 0).all()
    assert (margins > 0).all()


def test_labels_that_the_networks_agree_with_do_not_look_wrong():
    probabilities, given, _ = drawn(flipped=0, sure=20.0)
    assert not len(find_wrong_labels(probabilities, given))


def test_the_list_names_files_and_passes_over_what_could_not_be_read(tmp_path):
    probabilities, given, _ = drawn(60)
    probabilities[find_wrong_labels(probabilities, given)[0]] = np.nan
    names = ["=cat", "dog", "owl", "$"]
    rows = list_wrong_labels(probabilities, given, names, [f"{number}.png" for number in range(60)])
    assert rows
    assert all(row.file == f"{row.image}.png" and names.index(row.given) == given[row.image] for row in rows)
    assert [row.margin for row in rows] == pytest.approx([row.probability - row.given_probability for row in rows])
    write_wrong_labels(rows, tmp_path)
    with (tmp_path / "wrong_labels.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["image"] for row in found] == [row.file for row in rows]
    assert not any(cell.startswith("=") for row in found for cell in row.values())
    assert draw_wrong_labels(rows, [np.zeros((4, 6, 3), np.uint8)] * min(len(rows), 7)).axes
