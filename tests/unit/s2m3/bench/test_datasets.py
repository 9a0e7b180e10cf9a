"""Every reader on a small sample that the test writes in the published form, whole and broken."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from broker.protocol.errors import BadFile
from s2m3.bench import datasets
from s2m3.bench.datasets import Dataset, Record, classes, open_data, prompts
from tests.media import wav


def jpeg(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path, format="JPEG")


def write_wav(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(np.ones(80, ">i2"), 8000))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def cifar10(top: Path) -> None:
    write(top / "batches.meta.txt", "airplane\nautomobile\n\n")
    red_left = np.zeros((3, 32, 32), dtype=np.uint8)
    red_left[0, :, :16] = 255
    (top / "test_batch.bin").write_bytes(bytes([1]) + red_left.tobytes() + bytes([0]) + bytes(3072))


def cifar100(top: Path) -> None:
    write(top / "fine_label_names.txt", "apple\naquarium_fish\n")
    (top / "test.bin").write_bytes(bytes([9, 1]) + bytes(3072) + bytes([3, 0]) + bytes([255]) * 3072)


def food101(top: Path) -> None:
    write(top / "meta" / "classes.txt", "apple_pie\nbaby_back_ribs\n")
    write(top / "meta" / "labels.txt", "Apple pie\nBaby back ribs\n")
    write(top / "meta" / "test.txt", "baby_back_ribs/7\napple_pie/12\n")
    jpeg(top / "images" / "baby_back_ribs" / "7.jpg")
    jpeg(top / "images" / "apple_pie" / "12.jpg")


def flowers102(top: Path) -> None:
    for number in (1, 2, 3):
        jpeg(top / "jpg" / f"image_0000{number}.jpg")
    savemat(top / "imagelabels.mat", {"labels": np.array([[77, 1, 102]], dtype=np.uint8)})
    savemat(top / "setid.mat", {"trnid": np.array([[2]]), "valid": np.array([[9]]), "tstid": np.array([[3, 1]])})


def country211(top: Path) -> None:
    for split in ("train", "valid", "test"):
        for code in ("AD", "ZW"):
            jpeg(top / split / code / "1.jpg")


def flickr30k(top: Path) -> None:
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": f"caption {n}a."}, {"raw": f"caption {n}b."}]}
        for n, split in ((1, "train"), (2, "test"), (3, "test"))
    ]
    write(top / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    for n in (2, 3):
        jpeg(top / "flickr30k-images" / f"{n}.jpg")


def coco(top: Path) -> None:
    images = [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 4, "file_name": "000000000004.jpg"}]
    annotations = [
        {"id": 1, "image_id": 4, "caption": "a dog\n"},
        {"id": 2, "image_id": 9, "caption": "a cat"},
        {"id": 3, "image_id": 9, "caption": "one cat"},
    ]
    write(top / "annotations" / "captions_val2017.json", {"images": images, "annotations": annotations})
    for n in (9, 4):
        jpeg(top / "val2017" / f"00000000000{n}.jpg")


def vqav2(top: Path) -> None:
    questions = [{"question_id": 420, "image_id": 42, "question": "What colour?"}]
    answers = [{"answer": "red" if n < 7 else "blue", "answer_id": n + 1} for n in range(10)]
    write(top / "v2_OpenEndedQuestions_mscoco_val2014_questions.json", {"questions": questions})
    annotations = [{"question_id": 420, "image_id": 42, "answers": answers, "answer_type": "other"}]
    write(top / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    jpeg(top / "val2014" / "COCO_val2014_000000000042.jpg")


def textvqa(top: Path) -> None:
    entry = {
        "question_id": 34602,
        "image_id": "003a8ae2ef43b901",
        "question": "what is the brand?",
        "answers": ["nous"] * 10,
    }
    write(top / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [entry]})
    jpeg(top / "train_images" / "003a8ae2ef43b901.jpg")


def esc50(top: Path) -> None:
    rows = [("1-1-A-1.wav", 1, 1, "rooster"), ("1-2-A-0.wav", 1, 0, "dog_bark")]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("filename", "fold", "target", "category"))
    writer.writerows(rows)
    write(top / "meta" / "esc50.csv", buffer.getvalue())
    for name, *_ in rows:
        write_wav(top / "audio" / name)


def captions(top: Path) -> None:
    lines = [{"image": "b.jpg", "captions": ["a  dog", "one dog"]}, {"image": "sub/a.jpg", "captions": ["a cat"]}]
    write(top / "captions.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    jpeg(top / "b.jpg")
    jpeg(top / "sub" / "a.jpg")


def vqa(top: Path) -> None:
    line = {"image": "a.jpg", "question": "How many?", "answers": ["2"], "choices": ["1", "2"]}
    write(top / "vqa.jsonl", json.dumps(line))
    jpeg(top / "a.jpg")


def folders(top: Path) -> None:
    jpeg(top / "tabby_cat" / "2.jpg", 9)
    jpeg(top / "tabby_cat" / "1.jpeg")
    jpeg(top / "dog" / "1.jpg")
    write(top / ".hidden" / "file", "")
    write(top / "__MACOSX" / "dog" / "._1.jpg", "")
    write(top / "dog" / "._1.jpg", "")


WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar-10": cifar10,
    "cifar-100": cifar100,
    "food-101": food101,
    "flowers-102": flowers102,
    "country-211": country211,
    "flickr30k": flickr30k,
    "coco-captions": coco,
    "vqa-v2": vqav2,
    "textvqa": textvqa,
    "esc-50": esc50,
    "captions": captions,
    "vqa": vqa,
    "folders": folders,
}


def sample(name: str, top: Path) -> Dataset:
    WRITERS[name](top)
    return open_data(top, name)


def read(dataset: Dataset) -> list[Record]:
    return [dataset.read(position) for position in range(dataset.size)]


def test_there_is_a_sample_of_every_format() -> None:
    assert WRITERS.keys() == datasets.FORMATS.keys()


@pytest.mark.parametrize("name", datasets.FORMATS)
def test_every_format_is_recognised_by_its_names_and_by_no_other(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    assert datasets.detect(tmp_path) == name
    assert open_data(tmp_path).format == name


@pytest.mark.parametrize("name", datasets.FORMATS)
def test_records_come_in_the_same_order_each_time_and_from_any_position(name: str, tmp_path: Path) -> None:
    dataset = sample(name, tmp_path)
    everything = read(dataset)
    assert len(everything) == dataset.size
    assert read(open_data(tmp_path, name)) == everything
    assert [dataset.read(position) for position in reversed(range(dataset.size))] == everything[::-1]
    assert len({record.id for record in everything}) == len(everything)
    assert all(record.media.content_type.startswith(dataset.medium) for record in everything)


@pytest.mark.parametrize(
    ("name", "classes", "labels"),
    [
        ("cifar-10", ("airplane", "automobile"), [1, 0]),
        ("cifar-100", ("apple", "aquarium fish"), [1, 0]),
        ("food-101", ("apple pie", "baby back ribs"), [1, 0]),
        ("esc-50", ("dog bark", "rooster"), [1, 0]),
        ("folders", ("dog", "tabby cat"), [0, 1, 1]),
    ],
)
def test_labelled_records_have_their_classes(
    name: str, classes: tuple[str, ...], labels: list[int], tmp_path: Path
) -> None:
    dataset = sample(name, tmp_path)
    assert dataset.kind == "classification"
    assert dataset.classes == classes
    assert [record.label for record in read(dataset)] == labels


def test_cifars_planes_become_a_picture(tmp_path: Path) -> None:
    first = sample("cifar-10", tmp_path).read(0)
    pixels = np.asarray(Image.open(io.BytesIO(first.media.data)))
    assert pixels.shape == (32, 32, 3)
    assert (pixels[:, :16] == (255, 0, 0)).all()
    assert (pixels[:, 16:] == 0).all()


def test_flowers_are_named_by_their_numbers(tmp_path: Path) -> None:
    dataset = sample("flowers-102", tmp_path)
    assert len(set(dataset.classes)) == 102
    assert [dataset.classes[record.label or 0] for record in read(dataset)] == ["blackberry lily", "passion flower"]


def test_countries_are_named_by_their_codes(tmp_path: Path) -> None:
    dataset = sample("country-211", tmp_path)
    assert len(set(dataset.classes)) == 211
    assert [dataset.classes[record.label or 0] for record in read(dataset)] == ["Andorra", "Zimbabwe"]


def test_captioned_records_have_all_their_captions(tmp_path: Path) -> None:
    dataset = sample("flickr30k", tmp_path / "flickr")
    assert dataset.texts == (("caption 2a.", "caption 2b."), ("caption 3a.", "caption 3b."))
    assert tuple(record.captions for record in read(dataset)) == dataset.texts
    assert sample("coco-captions", tmp_path / "coco").texts == (("a cat", "one cat"), ("a dog",))
    assert sample("captions", tmp_path / "own").texts == (("a dog", "one dog"), ("a cat",))


def test_a_line_separator_inside_a_caption_ends_no_line_of_json(tmp_path: Path) -> None:
    sample("captions", tmp_path)
    lines = [
        {"image": "b.jpg", "captions": ["a house\u2028by the sea"]},
        {"image": "sub/a.jpg", "captions": ["a\x85cat"]},
    ]
    write(tmp_path / "captions.jsonl", "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert open_data(tmp_path, "captions").texts == (("a house by the sea",), ("a cat",))


def test_questions_have_all_answers(tmp_path: Path) -> None:
    (record,) = read(sample("vqa-v2", tmp_path / "v2"))
    assert (record.id, record.question, record.answers) == ("420", "What colour?", ("red",) * 7 + ("blue",) * 3)
    (record,) = read(sample("textvqa", tmp_path / "text"))
    assert record.answers == ("nous",) * 10
    (record,) = read(sample("vqa", tmp_path / "own"))
    assert (record.choices, record.answers) == (("1", "2"), ("2",))


def test_a_jpeg_whose_name_says_png_is_sent_as_a_jpeg(tmp_path: Path) -> None:
    folders(tmp_path)
    jpeg(tmp_path / "dog" / "1.jpg")
    (tmp_path / "dog" / "1.jpg").rename(tmp_path / "dog" / "1.png")
    assert open_data(tmp_path).read(0).media.content_type == "image/jpeg"


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def break_(top: Path) -> None:
        text = (top / path).read_text()
        assert old in text
        (top / path).write_text(text.replace(old, new))

    return break_


def removed(path: str) -> Callable[[Path], None]:
    return lambda top: (top / path).unlink()


def cut(path: str, by: int) -> Callable[[Path], None]:
    def break_(top: Path) -> None:
        (top / path).write_bytes((top / path).read_bytes()[:-by])

    return break_


def label(path: str, at: int, value: int) -> Callable[[Path], None]:
    def break_(top: Path) -> None:
        data = bytearray((top / path).read_bytes())
        data[at] = value
        (top / path).write_bytes(data)

    return break_


def mat(path: str, **arrays: Any) -> Callable[[Path], None]:
    return lambda top: savemat(top / path, arrays)


def garbage(path: str) -> Callable[[Path], None]:
    def break_(top: Path) -> None:
        (top / path).write_bytes(b"\xff\xfe garbage \x00" * 20)

    return break_


_V2 = "v2_OpenEndedQuestions_mscoco_val2014_questions.json"
_V2_ANSWERS = "v2_mscoco_val2014_annotations.json"
_COCO = "annotations/captions_val2017.json"
_FLICKR = "dataset_flickr30k.json"
BROKEN = [
    ("cifar-10", cut("test_batch.bin", 5), r"test_batch\.bin: has 6141 bytes.*truncated; unpack"),
    ("cifar-10", label("test_batch.bin", 0, 2), r"test_batch\.bin: record 0: has label 2, and batches"),
    ("cifar-10", removed("batches.meta.txt"), r"batches\.meta\.txt: No such file"),
    ("cifar-100", cut("test.bin", 3074 * 2), r"test\.bin: has 0 bytes"),
    ("cifar-100", label("test.bin", 1, 100), r"test\.bin: record 0: has label 100"),
    ("food-101", replaced("meta/test.txt", "apple_pie/12", "pie/12"), r"test\.txt:2: 'pie/12' is not a picture"),
    ("food-101", replaced("meta/labels.txt", "Baby back ribs\n", ""), r"labels\.txt: has 1 names, and classes\.txt 2"),
    ("food-101", removed("images/apple_pie/12.jpg"), r"12\.jpg: No such file"),
    ("food-101", garbage("meta/test.txt"), r"test\.txt: is not UTF-8"),
    ("flowers-102", garbage("setid.mat"), r"setid\.mat: can't be read as a MATLAB file"),
    ("flowers-102", mat("setid.mat", trnid=[[1]]), r"setid\.mat: tstid: is missing"),
    ("flowers-102", mat("setid.mat", tstid=[[4]]), r"setid\.mat: tstid: names picture 4, and imagelabels\.mat has 3"),
    ("flowers-102", mat("imagelabels.mat", labels=[[1, 103, 2]]), r"imagelabels\.mat: labels: holds 103"),
    ("flowers-102", removed("jpg/image_00003.jpg"), r"image_00003\.jpg: No such file"),
    ("country-211", lambda top: (top / "test" / "QQ").mkdir(), r"QQ: is not a country code"),
    ("country-211", removed("test/AD/1.jpg"), r"AD: is an empty class"),
    ("flickr30k", replaced(_FLICKR, '"raw"', '"text"'), r"images\.1\.sentences\.0\.raw: is missing"),
    ("flickr30k", replaced(_FLICKR, '"test"', '"val"'), r"images: has none of the split test"),
    ("flickr30k", cut(_FLICKR, 3), r"dataset_flickr30k\.json:1: is not JSON"),
    ("flickr30k", replaced(_FLICKR, "3.jpg", "../3.jpg"), r"images\.2\.filename: leads outside"),
    ("flickr30k", removed("flickr30k-images/2.jpg"), r"2\.jpg: No such file"),
    ("coco-captions", replaced(_COCO, '"image_id": 4', '"image_id": 5'), r"annotations\.0\.image_id: names picture 5"),
    ("coco-captions", replaced(_COCO, '"id": 4,', '"id": "4",'), r"images\.1\.id: is not a whole number: '4'"),
    ("coco-captions", replaced(_COCO, '"image_id": 4', '"image_id": 9'), r"captions of picture 4: is empty"),
    ("coco-captions", replaced(_COCO, '"annotations"', '"notes"'), r"annotations: is missing"),
    ("vqa-v2", replaced(_V2, "420", "421"), r"questions\.0\.question_id: 421 is not in"),
    (
        "vqa-v2",
        replaced(_V2_ANSWERS, '{"answer": "blue", "answer_id": 10}', "3"),
        r"annotations\.0\.answers\.9\.answer: is missing",
    ),
    ("vqa-v2", replaced(_V2_ANSWERS, ', {"answer": "blue", "answer_id": 10}', ""), r"holds 9 answers, not 10"),
    ("vqa-v2", removed(_V2_ANSWERS), r"annotations\.json: No such file"),
    ("textvqa", replaced("TextVQA_0.5.1_val.json", '"nous", ', ""), r"data\.0\.answers: is not 10 texts"),
    ("textvqa", replaced("TextVQA_0.5.1_val.json", '"003a', '"../003a'), r"data\.0\.image_id: leads outside"),
    ("textvqa", lambda top: write(top / "TextVQA_0.5.1_val.json", "[1]"), r"is not a JSON object"),
    ("esc-50", replaced("meta/esc50.csv", "target", "label"), r"esc50\.csv:1: target: is not a column"),
    ("esc-50", replaced("meta/esc50.csv", ",0,", ",dog,"), r"esc50\.csv:3: target: 'dog' is not the number of a class"),
    ("esc-50", replaced("meta/esc50.csv", ",0,", ",1,"), r"esc50\.csv:3: category: 'dog_bark' for class 1"),
    ("esc-50", replaced("meta/esc50.csv", "1-2-A-0", "/1-2-A-0"), r"esc50\.csv:3: filename: leads outside"),
    ("esc-50", garbage("audio/1-1-A-1.wav"), r"1-1-A-1\.wav: is not audio/wav"),
    (
        "captions",
        replaced("captions.jsonl", '"captions": ["a cat"]', '"caption": "a cat"'),
        r"captions\.jsonl:2: caption: is not a known field",
    ),
    ("captions", replaced("captions.jsonl", '["a cat"]', "[]"), r"captions\.jsonl:2: captions: is empty"),
    ("captions", replaced("captions.jsonl", '["a cat"]', "[7]"), r"captions\.jsonl:2: captions: holds 7"),
    ("captions", replaced("captions.jsonl", "sub/a.jpg", "/etc/a.jpg"), r"captions\.jsonl:2: image: leads outside"),
    ("captions", lambda top: write(top / "captions.jsonl", "{\n"), r"captions\.jsonl:1: is not JSON"),
    ("captions", lambda top: write(top / "captions.jsonl", "\n"), r"captions\.jsonl: is empty"),
    ("vqa", replaced("vqa.jsonl", '"How many?"', '" "'), r"vqa\.jsonl:1: question: holds ' '"),
    ("vqa", replaced("vqa.jsonl", '["1", "2"]', '["2", "2"]'), r"vqa\.jsonl:1: choices: names one twice"),
    ("vqa", replaced("vqa.jsonl", '"answers": ["2"], ', ""), r"vqa\.jsonl:1: answers: is missing"),
    ("vqa", replaced("vqa.jsonl", '{"image"', '[{"image"'), r"vqa\.jsonl:1: is not JSON"),
    ("folders", lambda top: write(top / "dog" / "notes.txt", ""), r"notes\.txt: has no name of a JPEG"),
    ("folders", lambda top: (top / "empty").mkdir(), r"empty: is an empty class"),
    ("folders", lambda top: write_wav(top / "dog" / "bark.wav"), r"both pictures and sounds"),
    ("folders", lambda top: write(top / "dog" / "1.jpg", ""), r"1\.jpg: is empty"),
    ("folders", lambda top: write(top / "dog" / "1.jpg", "<html>"), r"1\.jpg: is not image/jpeg"),
]


@pytest.mark.parametrize(("name", "break_", "says"), BROKEN)
def test_malformed_data_is_one_line_with_place_problem_and_fix(
    name: str, break_: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    assert read(open_data(tmp_path, name))
    break_(tmp_path)
    with pytest.raises(BadFile) as caught:
        read(open_data(tmp_path, name))
    sentence = str(caught.value)
    assert re.search(says, sentence), sentence
    assert sentence.startswith(str(tmp_path))
    assert sentence.count("; ") >= 1
    assert "\n" not in sentence


def test_a_record_before_the_broken_one_is_still_read(tmp_path: Path) -> None:
    food101(tmp_path)
    (tmp_path / "images" / "apple_pie" / "12.jpg").unlink()
    dataset = open_data(tmp_path)
    assert dataset.read(0).id == "baby_back_ribs/7"
    with pytest.raises(BadFile):
        dataset.read(1)


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is not a directory"):
        open_data(tmp_path / "none")
    with pytest.raises(BadFile, match=r"looks like no known format; .*cifar-10, .*folders"):
        open_data(tmp_path)
    with pytest.raises(BadFile, match=r"--format: 'imagenet' is not a format"):
        open_data(tmp_path, "imagenet")
    with pytest.raises(BadFile, match="holds no benchmark"):
        datasets.find(tmp_path)


def test_benchmarks_are_found_below_a_directory(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        if name != "folders":
            writer(tmp_path / name)
    folders(tmp_path / "own" / "animals")
    found = datasets.find(tmp_path)
    assert {name: form for name, (_, form) in found.items()} == {
        **{name: name for name in WRITERS if name != "folders"},
        "own/animals": "folders",
    }


def test_the_digits_of_scikit_learn_are_labelled_pictures() -> None:
    dataset = classes.digits()
    assert dataset.size == 1797
    record = dataset.read(0)
    assert record.label == 0
    pixels = np.asarray(Image.open(io.BytesIO(record.media.data)))
    assert pixels.shape == (10, 10)
    assert pixels.max() <= 255
    assert pixels[1:9, 1:9].any()
    assert not pixels[0].any()


def test_prompts_have_one_place_for_the_class() -> None:
    assert len(set(prompts.templates("cifar-10", "image"))) == 18
    for name in datasets.FORMATS:
        for medium in ("image", "audio"):
            assert all(template.count("{}") == 1 for template in prompts.templates(name, medium))
