"""Splitting of the input of `greendrop produce`."""

import io

from hypothesis import given
from hypothesis import strategies as st

from greendrop.cli._input import Input

LIMIT = 10


class Chunks(io.BytesIO):
    """A stream that returns at most so many bytes of a read."""

    def __init__(self, data, size):
        """Take the bytes and the size of a chunk."""
        super().__init__(data)
        self._size = size

    def read1(self, _=-1):
        """Return the next chunk."""
        return super().read1(self._size)


@given(
    data=st.text("ab\n\r", max_size=80).map(str.encode),
    delimiter=st.sampled_from([b"\n", b"a", b"ab", b"aba"]),
    size=st.integers(1, 9),
)
def test_lines_do_not_depend_on_chunks(data, delimiter, size):
    """Lines are the parts between delimiters; parts that are too long become None."""
    reader = Input(
        delimiter=delimiter,
        key_delimiter=None,
        empty_is_null=False,
        as_json=False,
        defaults={},
        limit=LIMIT,
    )
    parts = data.split(delimiter)
    if not parts[-1]:
        parts.pop()
    texts = [None if len(part) > LIMIT + 1 else part for part in parts]
    if delimiter == b"\n":
        texts = [text and text.removesuffix(b"\r") for text in texts]
    expected = [(text, number) for number, text in enumerate(texts, 1) if text != b""]

    lines = list(reader.lines(Chunks(data, size), "file"))

    assert [(line.text, line.number) for line in lines] == expected
