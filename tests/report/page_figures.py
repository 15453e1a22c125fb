"""Reads a report's page as tests need it."""

from html.parser import HTMLParser


class PageFigures(HTMLParser):
    """Figures of a page and what it loads.

    Attributes:
        shown: Pointer and text of each element that names a figure.
        loaded: Addresses of pictures and links.
    """

    def __init__(self, html):
        super().__init__()
        self.shown = []
        self.loaded = []
        self._open = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._open = attributes.get("data-figure", self._open)
        for key in ("src", "srcset"):
            if attributes.get(key):
                self.loaded.append(attributes[key])
        if tag == "link":
            self.loaded.append(attributes["href"])

    def handle_data(self, text):
        if self._open:
            self.shown.append((self._open, text))
            self._open = None
