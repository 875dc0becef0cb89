"""Pictures that stages have drawn, put into the page so that they read in dark and light and by ear.

Beside the blocks. An SVG of matplotlib becomes part of the page: its greys become tints of the page's ink (black all of it,
white none; the pictures' own grey for words becomes the page's for small print), so that they follow the page's colours; its
identifiers get a prefix, since several pictures stand on one page.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup, escape

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DROPPED = (
    "metadata",
    "style",
    "script",
    "title",
    "desc",
)  # matplotlib's style holds for `*`: the page's own text too
_GREY = re.compile(r"\b(fill|stroke): #([0-9a-fA-F]{2})\2\2(?![0-9a-fA-F])")
_POINTS_PER_PIXEL = 0.75


def inline_picture(svg: str, *, name: str, title: str, description: str) -> Markup:
    """An SVG file's content as an element of the page.

    Args:
        svg: The file.
        name: Unique on the page; begins the picture's identifiers.
        title: What a reader who does not see it is told first.
        description: And then.
    """
    from lape_ds.analysis.style import INK  # with matplotlib, which takes a second

    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(f"{{{_SVG}}}") in _DROPPED:
                parent.remove(child)
    for element in root.iter():
        _adapt(element, name, INK)
    drawing = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    drawing = re.sub(r"<(/?)\w+:", r"<\1", drawing)  # elements by their own names, as HTML has them
    drawing = re.sub(r' xmlns:\w+="[^"]*"', "", drawing)
    drawing = re.sub(r"\b\w+:href=", "href=", drawing)
    width = float(root.get("width", "720pt").removesuffix("pt")) / _POINTS_PER_PIXEL
    return Markup(
        f'<svg class="picture" viewBox="{escape(root.get("viewBox"))}" style="max-width: {width:.0f}px" role="img" '
        f'aria-labelledby="{name}-title {name}-description"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{drawing}</svg>'
    )


def _adapt(element: ElementTree.Element, name: str, soft: str) -> None:
    def tint(match: re.Match[str]) -> str:
        if f"#{match[2] * 3}" == soft:
            return f"{match[1]}: var(--soft)"
        ink = 1 - int(match[2], 16) / 255
        return f"{match[1]}: color-mix(in srgb, currentColor {100 * ink:.0f}%, var(--page))"

    for key, value in element.attrib.items():
        if key == "id":
            value = f"{name}-{value}"
        elif key in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
            value = f"#{name}-{value[1:]}"
        elif key == "style":
            value = _GREY.sub(tint, value)
        elif key in ("fill", "stroke"):
            value = _GREY.sub(tint, f"{key}: {value}").partition(": ")[2]
        element.set(key, value.replace("url(#", f"url(#{name}-"))
