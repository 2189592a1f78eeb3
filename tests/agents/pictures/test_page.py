import base64
import io
import re

import numpy as np
from PIL import Image

from prunegym.agents.pictures.page import bullets, element, page, picture, table

NASTY = "<b>\"&'</b>"
SAFE = "&lt;b&gt;&quot;&amp;&#x27;&lt;/b&gt;"


def test_whatever_is_text_is_escaped():
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pieces = [
        element("p", NASTY),
        bullets([NASTY]),
        table([NASTY], [[NASTY]]),
        picture(pixels, NASTY, NASTY, scale=1.0, invertible=True),
    ]
    for piece in pieces:
        assert SAFE in piece
        assert "<b>" not in piece
    assert f"<title>{SAFE}</title>" in page(NASTY, pieces)


def test_a_picture_is_within_the_page():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    text = picture(pixels, "noise", "what it shows", scale=0.5, invertible=False)
    data = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    assert data
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1])))), pixels)
    assert 'width="30"' in text
    assert 'alt="noise"' in text


def test_colours_that_are_values_stay_what_they_are_on_a_dark_page():
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    fixed, other = (picture(pixels, "", "", scale=1.0, invertible=each) for each in (False, True))
    dark = page("", []).partition("prefers-color-scheme: dark")[2]
    assert "invert" in re.search(r"\bimg \{([^}]*)", dark)[1]
    assert "invert" not in re.search(r"\bimg\.fixed \{([^}]*)", dark)[1]
    assert 'class="fixed"' in fixed
    assert 'class="fixed"' not in other
