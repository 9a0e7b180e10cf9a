"""Metrics of answers: accuracy, recall, and the VQA rule. Pure: numbers in, numbers out.

Owns the definitions. Knows no model, no data format and no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RECALLS = (1, 5, 10)
_ENOUGH = 3  # people who must agree for a score of 1

_DIGITS = enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
_NUMBERS = {word: str(number) for number, word in _DIGITS} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official code passes a flag of this value as a count
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTED += " somebody'd've somebody'll somebody's"  # phrase ok


def _misspelt(word: str) -> list[str]:
    """A contraction with one of its apostrophes forgotten."""
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {wrong: right for right in _CONTRACTED.split() for wrong in _misspelt(right)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # as in the official table; phrase ok


def accuracy(predicted: Sequence[object], right: Sequence[object]) -> float:
    """Top-1 accuracy: the share of n > 0 answers that are right, from 0 to 1."""
    return sum(one == other for one, other in zip(predicted, right, strict=True)) / len(right)


def recall_of_captions(scores: NDArray[np.floating], captions: Sequence[Sequence[int]]) -> dict[int, float]:
    """Image-to-text recall by k = 1, 5, 10: the share of pictures with one of their own captions among the k best.

    ``scores`` are of each picture with each caption (n, m). ``captions`` are for each picture the columns of its own
    captions, at least one. Ties count against: another caption with the same score ranks first.
    """
    ranks = []
    for row, own in zip(scores, captions, strict=True):
        foreign = np.delete(row, list(own))
        ranks.append(int((foreign >= row[list(own)].max()).sum()))
    return {k: sum(rank < k for rank in ranks) / len(ranks) for k in RECALLS}


def recall_of_pictures(scores: NDArray[np.floating], captions: Sequence[Sequence[int]]) -> dict[int, float]:
    """Text-to-image recall: the share of captions with their own picture among the k best.

    Arguments, result and ties are as for ``recall_of_captions``.
    """
    pairs = [(picture, caption) for picture, own in enumerate(captions) for caption in own]
    columns = scores[:, [caption for _, caption in pairs]]
    return recall_of_captions(columns.T, [[picture] for picture, _ in pairs])


def vqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """The official VQA accuracy of one answer (Antol et al. 2015; the rule of VQA v2's evaluation code).

    It leaves each person out once, and takes the mean of min(others who agree / 3, 1). Answers are normalised if people
    differ. If all gave the same words, the answer must have those words. A single person's answer is compared alone.
    """
    given = [_spaces(answer) for answer in answers]
    said = _spaces(predicted)
    if len(set(given)) > 1 or len(given) == 1:
        said, given = normalised(said), [normalised(answer) for answer in given]
    if len(given) == 1:
        return float(said == given[0])
    agree = sum(answer == said for answer in given)
    return sum(min((agree - (answer == said)) / _ENOUGH, 1.0) for answer in given) / len(given)


def normalised(answer: str) -> str:
    """An answer without punctuation, articles and capitals, with digits for number words and apostrophes restored."""
    text = _spaces(answer)
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_blank or has_number else " ")
    plain = _PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _spaces(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
