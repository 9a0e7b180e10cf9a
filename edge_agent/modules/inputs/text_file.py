"""The bytes of a text to its characters.

Owns the encodings that are taken, and the error sentences about them. The mark at the beginning tells the encoding,
else the content type's ``charset``; a text without either is UTF-8. Nothing is guessed.

Invariant: no text that leaves has a NUL. Those at the end are dropped: they end a string of C, or fill a buffer.
"""

from __future__ import annotations

import codecs
import encodings
import pkgutil
import re
from encodings.aliases import aliases

from broker.protocol.codec import RawInput
from edge_agent.modules.inputs.file_kinds import kind_of

UTF_8 = "utf-8"
_MARKS = (  # the mark of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([A-Za-z0-9_.:-]{1,40})', re.IGNORECASE)
# Of Python's encodings, those of texts that take time in proportion to their bytes.
_TAKEN = re.compile(
    r"utf-(8|16|32)(-le|-be)?|iso8859-\d+|cp(125\d|437|850|852|866|874|932|949|950)|koi8-[rtu]|mac-roman"
    r"|gb2312|gbk|gb18030|big5|shift_jis|euc_(jp|kr)"
)


# The encodings of Python, by all their names. It remembers each other name that is looked up, for ever.
_NAMES = {*aliases, *aliases.values()} | {each.name for each in pkgutil.iter_modules(encodings.__path__)}


class NotText(ValueError):
    """The bytes aren't a text in an encoding that they or their content type tell; the reason in a few words."""


def charset(content_type: str) -> str:
    """Python's name of the encoding that a content type states; UTF-8 where it states none, or ASCII, a part of it."""
    stated = _CHARSET.search(content_type)
    if not stated:
        return UTF_8
    name = encodings.normalize_encoding(stated[1]).lower()
    if name not in _NAMES and name.replace(".", "_") not in aliases:
        return stated[1].lower()
    try:
        found = codecs.lookup(name).name
    except LookupError:  # of another system
        return name
    return UTF_8 if found == "ascii" else found


def characters(sent: RawInput) -> str:
    """The characters of a text, without a mark and without NULs.

    Raises:
        NotText: it has another encoding than it says, or one that isn't taken, or a NUL before its end.
    """
    mark, encoding = next((each for each in _MARKS if sent.data.startswith(each[0])), (b"", charset(sent.content_type)))
    if not _TAKEN.fullmatch(encoding):
        raise NotText(f"its content type says charset={encoding}, which isn't taken")
    try:
        text = sent.data[len(mark) :].decode(encoding).removeprefix("\ufeff").rstrip("\0")
    except UnicodeDecodeError as error:
        raise NotText(_why_not(sent.data, encoding, error.start + len(mark), is_marked=bool(mark))) from error
    if "\0" in text:
        raise NotText(_why_not(sent.data, encoding, None, is_marked=bool(mark)))
    return text


def _why_not(data: bytes, encoding: str, at: int | None, *, is_marked: bool) -> str:
    """The kind that the bytes seem to have; ``at`` is the first byte that the encoding doesn't have, None a NUL."""
    if (kind := kind_of(data)) is not None:
        return f"it is {kind}"
    if is_marked and encoding != UTF_8:
        says = f"it begins with the mark of {encoding[:6].upper()}"
        return f"{says} and has a NUL in it" if at is None else f"{says} and isn't that: byte {at + 1} is wrong"
    if at is None:
        wide = next((each for each in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be") if _is_wide(data, each)), "")
        return f"it looks like {wide[:6].upper()} without its mark" if wide else f"byte {data.index(0) + 1} is a NUL"
    if encoding != UTF_8:
        return f"its content type says charset={encoding}, and byte {at + 1} isn't that"
    return f"byte {at + 1} is 0x{data[at]:02X}; it may be Latin-1 or Windows-1252"


def _is_wide(data: bytes, encoding: str) -> bool:
    """Whether a text decodes to characters that people write, and each takes several bytes."""
    try:
        text = data.decode(encoding).rstrip("\0")
    except UnicodeDecodeError:
        return False
    return bool(text) and "\0" not in text and sum(each.isprintable() or each.isspace() for each in text) == len(text)
