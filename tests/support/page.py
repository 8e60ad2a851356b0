"""An HTML page as tests look at it."""

from html.parser import HTMLParser

VOID = {"meta", "img", "path", "circle", "input"}


class Page(HTMLParser):
    """The tags of a page, checked to be closed where they must be, and its text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data

    def find(self, name):
        """The attributes of every tag of that name."""
        return [attributes for tag, attributes in self.tags if tag == name]
