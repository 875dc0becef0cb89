"""An independent reading of a report: every number on the page is looked up in its file, or computed anew from its formula.

Nothing of lape_ds/report is used here.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, median
from typing import Any
from urllib.parse import unquote

FREE_OF_NUMBERS = (
    "style",
    "code",
    "svg",
    "title",
    "h1",
)  # code: commands, paths, names; svg: drawn; the others: names
VOID = ("meta", "link", "br", "img", "input", "hr")
UNITS = {"": 1.0, "%": 0.01, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass
class Element:
    """A `<data>` or another element that has a source."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    behind: str = ""  # the text that follows, where units stand


@dataclass
class PageReader(HTMLParser):
    """Collects what has sources, numbers without one, and elements as such."""

    sourced: list[Element] = field(default_factory=list)
    loose_numbers: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside: list[Element] = []
        self._last: Element | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes))
        self._last = None
        if tag in VOID:
            return
        self.open_tags.append(tag)
        if "data-source" in attributes:
            self._inside.append(Element(tag, attributes))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open_tags, f"</{tag}> closes nothing"
        assert self.open_tags.pop() == tag, f"</{tag}> closes another element"
        if self._inside and self._inside[-1].tag == tag:
            self._last = self._inside.pop()
            self.sourced.append(self._last)

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._inside:
            self._inside[-1].text += data
        elif self._last is not None and not self._last.behind:
            self._last.behind = data
            self._check_loose(data)
        else:
            self._check_loose(data)

    def _check_loose(self, data: str) -> None:
        if re.search(r"\d", data) and not set(self.open_tags) & set(FREE_OF_NUMBERS):
            self.loose_numbers.append(data.strip())


def read_page(path: Path) -> PageReader:
    reader = PageReader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open_tags, f"never closed: {reader.open_tags}"
    return reader


def untraceable(path: Path) -> list[str]:
    """A line for everything on the page that its files do not say."""
    page = read_page(path)
    wrong = [f"a number without a source: {text}" for text in page.loose_numbers]
    for element in page.sourced:
        if element.tag == "data":
            wrong += _check_number(element, path.parent)
        else:
            (said,) = list(look_up(element.attributes["data-source"], path.parent))
            if str(said) != element.text:
                wrong.append(f"{element.attributes['data-source']} says {said}, the page {element.text}")
    return wrong


def _check_number(element: Element, folder: Path) -> Iterator[str]:
    formula, value = element.attributes["data-source"], float(element.attributes["value"])
    expected = compute(formula, folder)
    is_read = "{" not in formula
    same = value == expected if is_read else math.isclose(value, expected, rel_tol=1e-12, abs_tol=1e-15)
    if not same:
        yield f"{formula} is {expected!r}, the page has {value!r}"
    shown, precision = _shown(element)
    if abs(shown - value) > 0.5 * precision * (1 + 1e-9) + 1e-12 * abs(value):
        yield f"{formula} is {value!r}, the page shows {element.text}{element.behind[:6]}"


def _shown(element: Element) -> tuple[float, float]:
    """The number that a reader sees, and the value of one in its last digit."""
    text = element.text.replace("−", "-").replace(",", "")
    digits, _, power = text.partition("e")
    unit = 1.0
    if element.behind.startswith("\xa0"):
        name = re.split(r"[\s,;.)]", element.behind[1:], maxsplit=1)[0]
        unit = UNITS.get(name) or PREFIXES[re.sub(r"(B|tokens/s)$", "", name)]
    last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return float(text) * unit, last * unit


def compute(formula: str, folder: Path) -> float:
    """A source, or a formula with sources in braces."""
    if "{" not in formula:
        (value,) = list(look_up(formula, folder)) if "#" in formula else [ast.literal_eval(formula)]
        return value
    names: dict[str, list[Any]] = {}

    def name(match: re.Match[str]) -> str:
        names[f"_{len(names)}"] = list(look_up(match[1], folder))
        return f"_{len(names) - 1}"

    tree = ast.parse(re.sub(r"\{([^{}]*)\}", name, formula), mode="eval")
    (value,) = _values(tree.body, names)
    return value


def _values(node: ast.AST, names: dict[str, list[Any]]) -> list[Any]:
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Constant):
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        given = [value for argument in node.args for value in _values(argument, names)]
        if node.func.id == "count":
            wanted = node.args[0]
            is_of = isinstance(wanted, ast.Constant)
            return [given[1:].count(given[0]) if is_of else len(given)]
        functions: dict[str, Any] = {"sum": sum, "mean": fmean, "median": median}
        return [functions[node.func.id](given)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return [-value for value in _values(node.operand, names)]
    assert isinstance(node, ast.BinOp), ast.dump(node)
    (left,), (right,) = _values(node.left, names), _values(node.right, names)
    if isinstance(node.op, ast.Add):
        return [left + right]
    if isinstance(node.op, ast.Sub):
        return [left - right]
    assert isinstance(node.op, ast.Div)
    return [left / right]


def look_up(source: str, folder: Path) -> Iterator[Any]:
    """What stands at `file#/pointer`; of JSON lines at `file#line/pointer`."""
    name, _, pointer = source.partition("#")
    text = (folder / unquote(name)).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        whole = text[: text.rfind("\n") + 1].splitlines()  # the last line may be half a line
        content: Any = {str(number): json.loads(line) for number, line in enumerate(whole, start=1)}
    else:
        content = json.loads(text)
        assert pointer[:1] in ("", "/"), source
        pointer = pointer.removeprefix("/")
    keys = [key.replace("~1", "/").replace("~0", "~") for key in unquote(pointer).split("/")]
    yield from _follow(content, keys)


def _follow(content: Any, keys: list[str]) -> Iterator[Any]:
    if not keys:
        yield content
    elif keys[0] == "*":
        for item in content.values() if isinstance(content, dict) else content:
            if len(keys) == 1 or not isinstance(item, dict) or keys[1] in (*item, "*"):
                yield from _follow(item, keys[1:])
    else:
        yield from _follow(content[int(keys[0])] if isinstance(content, list) else content[keys[0]], keys[1:])
