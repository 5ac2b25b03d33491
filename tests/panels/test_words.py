"""Content words and their overlap."""

from vdengine.panels.words import content_words, overlap


def test_overlap():
    """Function words must not make two questions look alike, nor case and punctuation make them look different."""
    assert content_words("Should the government do more about PARKS, please?") == {"parks", "please"}
    assert overlap(content_words("Is the park good?"), content_words("Should a PARK be?")) == 1.0
    assert overlap(frozenset(), frozenset()) == 0.0
