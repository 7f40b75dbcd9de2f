"""An HTML page as a reader without eyes sees it: its elements, their attributes and their text.

No test module: those that need it run this file by its path.
"""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "wbr", "hr", "input"}


class Element:
    """One element: `tag`, `attrs`, `children` (elements and text)."""

    def __init__(self, tag, attrs):
        self.tag, self.attrs, self.children = tag, attrs, []

    @property
    def text(self):
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    def all(self, tag=None, **attrs):
        """Every element below with this tag and these attributes (`class_` holds a word)."""
        for one in self.children:
            if isinstance(one, Element):
                if tag in (None, one.tag) and all(_has(one, key, value) for key, value in attrs.items()):
                    yield one
                yield from one.all(tag, **attrs)

    def one(self, tag=None, **attrs):
        found = list(self.all(tag, **attrs))
        assert len(found) == 1, f"{len(found)} of {tag} {attrs}"
        return found[0]


def _has(element, key, value):
    if key == "class_":
        return value in (element.attrs.get("class") or "").split()
    return element.attrs.get(key.replace("_", "-")) == value


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.path = [self.root]

    def handle_starttag(self, tag, attrs):
        made = Element(tag, dict(attrs))
        self.path[-1].children.append(made)
        if tag not in VOID:
            self.path.append(made)

    def handle_startendtag(self, tag, attrs):
        self.path[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.path[-1].tag == tag, f"</{tag}> closes <{self.path[-1].tag}>"
        self.path.pop()

    def handle_data(self, data):
        self.path[-1].children.append(data)


def parse(text):
    """The page's root. Raises AssertionError when an element is not closed, or closed by another's end."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.path == [parser.root], f"never closed: {[one.tag for one in parser.path[1:]]}"
    return parser.root
