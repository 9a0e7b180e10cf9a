"""Mutations of messages: of their JSON, of safetensors headers and the JSON in their metadata, of bytes and of topics.

Owns the operators. Equal seeds make equal mutants. A mutant is a whole delivery: topic, properties and payload.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from broker.transport.port import Delivery
from tests.fuzz.corpus import PREFIX

HUGE_DIGITS = "9" * 4_300
RAW_NUMBERS = (HUGE_DIGITS, "1e999", "-1e999", "NaN", "Infinity", "1e-400", "0.1e1", "-0", "9007199254740993")
INTERESTING: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.0, -0.5, 1e21, 1e308, 2**31, 2**53 - 1, 2**53, 2**60, 2**63, 2**64, 10**30,
    "", " ", "0", "1", "true", "null", "\x00", "\x1b[2J", "[/red]", "\u202e", "\ud800", "a" * 64, "a" * 5_000, "../..",
    "gw-a", "gw-b", "zero-shot", "ready", "float16", "sometimes", "+", "#", "$SYS", "a/b",
    [], {}, [[]], [None], {"": None}, [0] * 300,
)  # fmt: skip
LEVELS = ("gw-a", "gw-b", "gw-x", "classify", "zero-shot", "nobody", "orchestrator", "A", "a b", "", "é", "x" * 70)
MAX_BYTES = 64 * 1024  # of a mutant: beyond it, it takes the time of many others
_RAW = re.compile(r'"<<raw (\d+)>>"')


def json_of(message: Delivery) -> Any:
    """The JSON of a message: its own, or a header's with the JSON in its metadata; None if it has none."""
    payload = message.payload
    if payload[8:9] == b"{":
        payload = payload[8 : 8 + int.from_bytes(payload[:8], "little")]
    try:
        document = json.loads(payload)
        if isinstance(document, dict) and isinstance(metadata := document.get("__metadata__"), dict):
            texts = {key: text for key, text in metadata.items() if text[:1] in {"{", "["}}
            return document | {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError):
        return None
    return document


class Mutator:
    """Makes mutants of some messages."""

    def __init__(self, messages: Sequence[Delivery], seed: int) -> None:
        self._messages = [each for each in messages if len(each.payload) <= MAX_BYTES]
        self._random = random.Random(seed)  # noqa: S311 - the same each time
        self._raw_json: list[str] = []
        self._known: dict[str, list[Any]] = {}  # the values that the messages have, by their key
        for message in self._messages:
            self._learn(json_of(message))

    def mutant(self) -> Delivery:
        """The next mutant."""
        message: Delivery = self._pick(self._messages)
        if self._random.random() < 0.05:
            return message  # what mutants have changed goes on as before
        for _ in range(self._pick((1, 1, 1, 2, 3))):
            message = self._pick(self._ways_of(message))(message)
        return message if len(message.payload) <= MAX_BYTES else replace(message, payload=message.payload[:MAX_BYTES])

    def _ways_of(self, message: Delivery) -> Sequence[Callable[[Delivery], Delivery]]:
        if message.payload[:1] == b"{":
            return (self._json, self._json, self._json, self._json, self._json, self._bytes, self._address)
        if message.payload[8:9] == b"{":
            return (self._header, self._header, self._header, self._header, self._bytes, self._address)
        return (self._bytes, self._bytes, self._address)

    def _pick(self, choices: Sequence[Any]) -> Any:
        return choices[self._random.randrange(len(choices))]

    # --- JSON ---

    def _json(self, message: Delivery) -> Delivery:
        try:
            document = json.loads(message.payload)
        except (ValueError, RecursionError):
            return self._bytes(message)
        return replace(message, payload=self._written(self._changed(document)))

    def _learn(self, document: Any) -> None:
        for holder, key in self._places(document):
            if isinstance(holder, dict):
                self._known.setdefault(key, []).append(holder[key])

    def _plausible(self, key: Any, before: Any) -> Any:
        """Another value that a reader probably takes: it should come as far as the rules."""
        known = self._known.get(key, [before])
        if isinstance(before, bool):
            return not before
        if isinstance(before, int):
            return self._pick((before + 1, max(0, before - 1), 0, 1, 2, 1_000, 10**6, 2**53 - 1, self._pick(known)))
        if isinstance(before, float):
            return self._pick((0.0, before * 2, before / 2, 1e-9, 1e9, 1e21, self._pick(known)))
        if isinstance(before, list):
            return self._pick((before[::-1], before * 2, before[:1], before[1:], self._pick(known)))
        if isinstance(before, dict) and before:
            items = [*before.items()]
            name, value = self._pick(items)
            others = self._pick((dict(items[::-1]), {**before, "gw-b": value}, {n: v for n, v in items if n != name}))
            return self._pick((others, self._pick(known), {**before, name: items[0][1]}))
        return self._pick(known)

    def _changed(self, document: Any) -> Any:
        """The document with one of its values changed."""
        places = self._places(document)
        if places and self._random.random() < 0.5:
            holder, key = self._pick(places)
            text = holder[key]
            is_json = isinstance(text, str) and text[:1] in {"{", "["}
            holder[key] = self._inner(text) if is_json else self._plausible(key, text)
            return document
        holder, key = self._pick(places) if places else (None, None)
        if holder is None:
            return self._value(document)
        way = self._random.randrange(9)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[self._pick((*holder, "unknown", "", "a" * 600, "\x00"))] = self._value(holder[key])
        elif way == 2 and isinstance(holder, list):
            holder *= self._pick((2, 10, 100))
        elif way == 3 and isinstance(holder[key], str) and holder[key][:1] in "{[":
            holder[key] = self._inner(holder[key])
        elif way == 4:
            holder[key] = self._nested()
        elif way == 5 and isinstance(holder[key], dict) and holder[key]:
            holder[key] = self._many(holder[key])
        else:
            holder[key] = self._value(holder[key])
        return document

    def _places(self, document: Any) -> list[tuple[Any, Any]]:
        places: list[tuple[Any, Any]] = []
        waiting = [document]
        while waiting:
            holder = waiting.pop()
            keys = [*holder] if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
            for key in keys:
                places.append((holder, key))
                waiting.append(holder[key])
        return places

    def _value(self, before: Any) -> Any:
        way = self._random.randrange(6)
        if way == 0:
            return self._raw(self._pick(RAW_NUMBERS))
        if way == 1 and isinstance(before, (int, float)) and not isinstance(before, bool) and abs(before) < 1e300:
            return self._pick((before + 1, before - 1, -before, str(before), float(before) * 10, [before]))
        if way == 2:
            return self._part_of_another()
        if way == 3 and isinstance(before, str) and before:
            place = self._random.randrange(len(before))
            return self._pick((before[:place], before * 2, before.upper(), before[:place] + "\x00" + before[place:]))
        return self._pick(INTERESTING)

    def _part_of_another(self) -> Any:
        other = self._pick(self._messages)
        try:
            document = json.loads(other.payload)
        except (ValueError, RecursionError):
            return other.topic
        places = self._places(document)
        if not places:
            return document
        holder, key = self._pick(places)
        return holder[key]

    def _inner(self, text: str) -> str:
        """A metadata's JSON text, changed."""
        try:
            return self._written(self._changed(json.loads(text))).decode()
        except (ValueError, RecursionError):
            return text[: self._random.randrange(len(text) + 1)]

    def _nested(self) -> str:
        depth = self._pick((5, 100, 5_000))
        opening, closing = self._pick((("[", "]"), ('{"a":', "}")))
        return self._raw(opening * depth + "0" + closing * depth)

    def _many(self, items: dict[str, Any]) -> dict[str, Any]:
        """Many items like the last one; nodes of a graph need the ones before them, or all of them, or themselves."""
        name, value = next(reversed(items.items()))
        count = self._pick((3, 20, 300))
        names = [f"{name[:40]}-{number}" for number in range(count)]
        way = self._random.randrange(4)
        made: dict[str, Any] = {}
        for number, other in enumerate(names):
            made[other] = dict(value) if isinstance(value, dict) else value
            if isinstance(value, dict) and "needs" in value:
                before = names[number - 1 : number] or value["needs"]
                made[other]["needs"] = (before, names[:number] or value["needs"], names, [name] * count)[way]
        if self._random.random() < 0.5:
            made = dict(reversed(made.items()))
        return {**items, **made}

    def _written(self, document: Any) -> bytes:
        try:
            text = json.dumps(document)
        except ValueError:  # one more than the largest number that Python writes
            text = HUGE_DIGITS + "0"
        text = _RAW.sub(lambda mark: self._raw_json[int(mark[1])], text)
        self._raw_json.clear()
        if self._random.random() < 0.03 and text.startswith("{"):
            text = "{" + text[1:-1] + ("," + text[1:-1] if len(text) > 2 else "") + "}"  # every key twice
        return text.encode(errors="surrogatepass")

    def _raw(self, text: str) -> str:
        """A mark that ``_written`` replaces with this JSON, which no Python value gives."""
        self._raw_json.append(text)
        return f"<<raw {len(self._raw_json) - 1}>>"

    # --- safetensors ---

    def _header(self, message: Delivery) -> Delivery:
        length = int.from_bytes(message.payload[:8], "little")
        try:
            header = json.loads(message.payload[8 : 8 + length])
        except (ValueError, RecursionError):
            return self._bytes(message)
        if isinstance(header, dict) and self._random.random() < 0.7 and isinstance(header.get("__metadata__"), dict):
            header["__metadata__"] = self._metadata(header["__metadata__"])
        else:
            header = self._changed(header)
        text = self._written(header)
        told = self._pick((len(text),) * 8 + (0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
        return replace(message, payload=told.to_bytes(8, "little") + text + message.payload[8 + length :])

    def _metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        if not metadata:
            return {"kind": "inputs"}
        key = self._pick([*metadata])
        text = metadata[key]
        if self._random.random() < 0.3:
            return {**metadata, key: self._pick([text, *self._known.get(key, ())])}
        if isinstance(text, str) and text[:1] in {"{", "["}:
            return {**metadata, key: self._inner(text)}
        others: tuple[Any, ...] = ("", "0", "-1", "1", "9" * 17, HUGE_DIGITS, "true", "nan", "1e999", "inputs", "done")
        others += ("failed", "gw-a", "gw-b", "\x00", "null", "[" * 9_000, 1, None, {}, f"{PREFIX}/clients/+/results/1")
        changed = {**metadata, self._pick((key, key, key, "unknown")): self._pick(others)}
        if self._random.random() < 0.2:
            del changed[key]
        return changed

    # --- bytes, topics and properties ---

    def _bytes(self, message: Delivery) -> Delivery:
        payload = bytearray(message.payload)
        for _ in range(self._pick((1, 1, 3, 20))):
            place = self._random.randrange(len(payload) + 1)
            way = self._random.randrange(6)
            if way == 0 and place < len(payload):
                payload[place] ^= 1 << self._random.randrange(8)
            elif way == 1:
                payload[place:place] = self._random.randbytes(self._pick((1, 4, 100)))
            elif way == 2:
                del payload[place : place + self._pick((1, 8, 1_000))]
            elif way == 3:
                other = self._pick(self._messages).payload
                begin = self._random.randrange(len(other) + 1)
                payload[place:] = other[begin:]
            elif way == 4:
                payload[place:place] = payload[place : place + self._pick((1, 100, 5_000))]
            elif place < len(payload):
                payload[place] = self._pick(b'\x00\xff"{}[]:,0')
        return replace(message, payload=bytes(payload))

    def _address(self, message: Delivery) -> Delivery:
        way = self._random.randrange(7)
        if way <= 1:
            return replace(message, topic=self._pick(self._messages).topic)
        if way == 2:
            levels = message.topic.split("/")
            levels[self._random.randrange(2, len(levels))] = self._pick(LEVELS)
            return replace(message, topic="/".join(levels))
        if way == 3:
            return replace(message, retain=not message.retain)
        if way == 4:
            replies = (None, "", f"{PREFIX}/clients/a/results/b", f"{PREFIX}/devices/gw-a/state", f"{PREFIX}/clients/#")
            return replace(message, response_topic=self._pick((*replies, f"{PREFIX}/clients/" + "a/" * 600)))
        if way == 5:
            types = (None, "", "text/plain", "image/png", "application/vnd.safetensors", "x" * 5_000, "a/b; c=d\x00")
            return replace(message, content_type=self._pick(types))
        correlation = self._random.randbytes(self._pick((0, 1, 60_000)))
        return replace(message, correlation=correlation, expiry_s=self._pick((None, 0, 1, 2**32 - 1)))
