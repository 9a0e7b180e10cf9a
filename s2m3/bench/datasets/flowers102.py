"""Oxford Flowers-102 (Nilsback & Zisserman 2008), of which the 6,149 test pictures are read.

    setid.mat          ``tstid``: numbers of the test pictures (``trnid`` and ``valid`` are the others)
    imagelabels.mat    ``labels``: the class of each picture, 1 to 102
    jpg/image_NNNNN.jpg

The files have numbers and no names. The names are the list that everybody uses, in the order of the numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk

_NAMES = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon
orchid; bird of paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle;
yellow iris; globe flower; purple coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily;
pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of wales feathers; stemless
gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly;
ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword
lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia;
wild pansy; primula; sunflower; pelargonium; bishop of llandaff; gaura; geranium; orange dahlia; pink and
yellow dahlia; cautleya spicata; japanese anemone; black-eyed susan; silverbush; californian poppy;
osteospermum; spring crocus; bearded iris; windflower; tree poppy; gazania; azalea; water lily; rose; thorn
apple; morning glory; passion flower; lotus; toad lily; anthurium; frangipani; clematis; hibiscus; columbine;
desert-rose; tree mallow; magnolia; cyclamen; watercress; canna lily; hippeastrum; bee balm; air plant;
foxglove; bougainvillea; camellia; mallow; mexican petunia; bromelia; blanket flower; trumpet creeper;
blackberry lily
"""
CLASSES = tuple(" ".join(name.split()) for name in _NAMES.split(";"))


def recognises(directory: Path) -> bool:
    """Whether its two indexes are there."""
    return (directory / "setid.mat").is_file() and (directory / "imagelabels.mat").is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the test pictures.

    Raises:
        BadFile: an index is missing, damaged, or out of range.
    """
    labels = _array(directory / "imagelabels.mat", "labels")
    chosen = _array(directory / "setid.mat", "tstid")
    if wrong := [int(label) for label in labels if not 1 <= label <= len(CLASSES)]:
        problem = f"holds {wrong[0]}, and the classes are 1 to {len(CLASSES)}"
        raise BadFile(file=str(directory / "imagelabels.mat"), field="labels", problem=problem, fix=disk.AGAIN)
    if wrong := [int(number) for number in chosen if not 1 <= number <= len(labels)]:
        problem = f"names picture {wrong[0]}, and imagelabels.mat has {len(labels)}"
        raise BadFile(file=str(directory / "setid.mat"), field="tstid", problem=problem, fix=disk.AGAIN)

    def read(position: int) -> Record:
        number = int(chosen[position])
        name = f"image_{number:05}.jpg"
        return Record(name, disk.media(directory / "jpg" / name), int(labels[number - 1]) - 1)

    return Dataset("flowers-102", "classification", "image", len(chosen), read, CLASSES)


def _array(path: Path, name: str) -> NDArray[np.int64]:
    """The numbers of one MATLAB array, as one row; a MATLAB file holds arrays and runs nothing."""
    disk.contents(path)  # a missing file is told as such
    try:
        found = np.asarray(loadmat(path, variable_names=[name])[name]).ravel().astype(np.int64)
    except KeyError as error:
        raise BadFile(file=str(path), field=name, problem="is missing", fix=disk.AGAIN) from error
    except Exception as error:  # a damaged file makes its reader raise anything
        raise BadFile(file=str(path), problem="can't be read as a MATLAB file", fix=disk.AGAIN) from error
    if not len(found):
        raise BadFile(file=str(path), field=name, problem="is empty", fix=disk.AGAIN)
    return found
