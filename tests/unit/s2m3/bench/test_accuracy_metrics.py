"""Metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from s2m3.bench import accuracy_metrics


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy_metrics.accuracy(["cat", "dog", "cat", "cow"], ["cat", "cat", "cat", "cow"]) == 0.75


# Three pictures with two captions each; a row a picture, its own captions marked by hand:
SCORES = np.array(
    [
        [0.9, 0.1, 0.5, 0.2, 0.3, 0.4],  # own 0, 1: the best of all is its own -> rank 0
        [0.8, 0.1, 0.7, 0.6, 0.2, 0.3],  # own 2, 3: one foreign is better -> rank 1
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # own 4, 5: four foreign are better -> rank 4
    ],
    dtype=np.float32,
)
OWN = [(0, 1), (2, 3), (4, 5)]


def test_image_to_text_recall_counts_the_best_of_a_pictures_own_captions() -> None:
    assert accuracy_metrics.recall_of_captions(SCORES, OWN) == {1: 1 / 3, 5: 1.0, 10: 1.0}


def test_text_to_image_recall_counts_every_caption() -> None:
    # Columns: 0: .9 .8 .9 own 0, tied with 2 -> rank 1; 1: .1 .1 .8 own 0 -> rank 2; 2: .5 .7 .7 own 1, tied -> 1;
    # 3: .2 .6 .6 own 1, tied -> 1; 4: own 2 is best -> 0; 5: .4 .3 .4 own 2, tied with 0 -> 1.
    assert accuracy_metrics.recall_of_pictures(SCORES, OWN) == {1: 1 / 6, 5: 1.0, 10: 1.0}


def test_equal_scores_everywhere_earn_nothing() -> None:
    scores = np.zeros((20, 20), dtype=np.float32)
    own = [(index,) for index in range(20)]
    assert accuracy_metrics.recall_of_captions(scores, own) == {1: 0, 5: 0, 10: 0}
    assert accuracy_metrics.recall_of_pictures(scores, own) == {1: 0, 5: 0, 10: 0}


@pytest.mark.parametrize(
    ("predicted", "answers", "expected"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("Yes", ["yes"] * 10, 0.0),  # all gave the same words: the answer must have those, as in the official code
        ("Yes!", ["yes"] * 9 + ["no"], 1.0),
        # 3 of 10 agree: each of the 3 left out leaves 2 (2/3), each of the 7 others leaves 3 (1): (3 * 2/3 + 7) / 10
        ("two", ["2"] * 3 + ["3"] * 7, 0.9),
        # 2 agree: (2 * 1/3 + 8 * 2/3) / 10
        ("2", ["two"] * 2 + ["3"] * 8, 0.6),
        # 1 agrees: (0 + 9 * 1/3) / 10
        ("2", ["2"] + ["3"] * 9, 0.3),
        ("4", ["2"] * 5 + ["3"] * 5, 0.0),
        ("The Cat.", ["cat"], 1.0),
        ("dog", ["cat"], 0.0),
    ],
)
def test_vqa_accuracy_by_the_official_rule(predicted: str, answers: list[str], expected: float) -> None:
    assert accuracy_metrics.vqa_accuracy(predicted, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog", "dog"),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("it's", "it's"),
        ("t-shirt", "t shirt"),
        ("what?!", "what"),
        (" new\nyork\t", "new york"),
    ],
)
def test_answers_are_normalised_as_the_official_code_does(answer: str, expected: str) -> None:
    assert accuracy_metrics.normalised(answer) == expected
