"""Labels and captions in the codings that editors and exporters leave behind."""

import json

import pytest

from curate.formats.text import decode_caption, decode_text, likeness, spell_value


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("text", ["1", "a small cat", "Käfer", "12\r\n"])
def test_a_text_is_the_same_in_every_coding(encoding, text):
    assert decode_text(text.encode(encoding)) == text.strip()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\xef\xbb\xbf", ""),
        (b"cat\0\0\0", "cat"),  # padded, as C writes it
        (b" \t1\n", "1"),
        ("\N{NO-BREAK SPACE}1".encode(), "1"),
        ("猫".encode(), "猫"),
        (b"\xff\xfe\x2b\x73", "猫"),
    ],
)
def test_marks_and_padding_are_no_text(data, text):
    assert decode_text(data) == text


@pytest.mark.parametrize("data", [b"\xff\x81", b"a\0\0b\0\0c", b"\xff\xfe\x00\xd8"])
def test_what_is_no_text_is_an_error(data):
    with pytest.raises(ValueError):
        decode_text(data)


def test_a_caption_is_read_or_refused_but_never_garbage():
    assert decode_caption(b"un caf\xe9 noir") == "un caf\N{REPLACEMENT CHARACTER} noir"
    assert decode_caption("a small cat".encode("utf-16-le")) == "a small cat"
    with pytest.raises(ValueError, match="neither UTF-8 nor UTF-16"):
        decode_caption("ぬこのしゃしん".encode("shift-jis"))


@pytest.mark.parametrize(
    ("spelled", "label"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ('"1"', "1"),
        ('" 1"', "1"),
        ("1e0", "1"),
        ("-0.0", "0"),
        ("0.5", "0.5"),
        ("true", "true"),
        ("1e300", "1e+300"),
        ('"1.10"', "1.10"),  # a text stays what it is: it may be a version
        ("NaN", None),
    ],
)
def test_equal_numbers_of_json_have_one_spelling(spelled, label):
    assert spell_value(json.loads(spelled)) == label


def test_classes_that_people_take_for_one_are_alike():
    for alike in (("1", "1.0", "01", "+1"), ("Cat", "cat", "ＣＡＴ"), ("hot  dog", "hot dog")):
        assert len(set(map(likeness, alike))) == 1
    assert len(set(map(likeness, ("1", "2", "1.10", "cat", "cats", "a1")))) == 6
