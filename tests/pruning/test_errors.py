import pytest

from prunegym.pruning.errors import PruningError, one_line, printable


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer1.0", "layer1.0"),
        ("größe 層", "größe 層"),
        ("[/red]", "[/red]"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\r\0\t", r"a\nb\r\x00\t"),
        ("left\u202eright", r"left\u202eright"),  # would turn the rest of the line around
        ("\udcff", r"\udcff"),  # a byte of a path that is no text
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


def test_a_message_is_on_one_line_and_escaped():
    assert one_line(PruningError("no  file\n\x1b[2Jhere")) == r"no file \x1b[2Jhere"


def test_an_error_that_cannot_say_its_message_has_one_all_the_same():
    assert one_line(Mute()) == "it has no message that can be shown"
