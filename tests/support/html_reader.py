"""A small HTML parser: elements with attributes, children and text."""

from __future__ import annotations

from html.parser import HTMLParser

VOID_TAGS = {"meta", "link", "br", "img", "wbr", "hr", "input"}


class Element:
    """One element: `tag`, `attrs`, `children` (elements and text)."""

    def __init__(self, tag, attrs):
        self.tag, self.attrs, self.children = tag, attrs, []

    @property
    def text(self):
        """The text of the element and of all elements in it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def find_all(self, tag=None, **attrs):
        """Yield every descendant with this tag and these attributes; `class_` matches one class."""
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and all(_has(child, key, value) for key, value in attrs.items()):
                    yield child
                yield from child.find_all(tag, **attrs)

    def find(self, tag=None, **attrs):
        """Return the only matching descendant."""
        matches = list(self.find_all(tag, **attrs))
        assert len(matches) == 1, f"{len(matches)} of {tag} {attrs}"
        return matches[0]


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
        element = Element(tag, dict(attrs))
        self.path[-1].children.append(element)
        if tag not in VOID_TAGS:
            self.path.append(element)

    def handle_startendtag(self, tag, attrs):
        self.path[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.path[-1].tag == tag, f"</{tag}> closes <{self.path[-1].tag}>"
        self.path.pop()

    def handle_data(self, data):
        self.path[-1].children.append(data)


def parse_html(text):
    """Return the root of a page.

    Raises:
        AssertionError: If an element is not closed, or closed by the end of another one.
    """
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.path == [parser.root], f"never closed: {[element.tag for element in parser.path[1:]]}"
    return parser.root
