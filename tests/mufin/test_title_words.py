"""Title words: weights as defined, postings equal to plain cosines, nothing made of unknown words."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pytest

from mufin.candidate_arithmetic import arithmetic
from mufin.compilation import KERNELS
from mufin.title_words import Postings, SparseRow, TitleWords, fit_title_words, terms

TITLES = ["Red cotton shirt", "red shirt", "Blue shirt for men", "blue  SHIRT, for women", "", "Größe ß red"]


@pytest.fixture(scope="module")
def words() -> TitleWords:
    """Terms that stand in two titles or more."""
    return fit_title_words(TITLES)


def test_terms_are_lower_case_words_and_pairs() -> None:
    """Punctuation parts words, and a pair is two neighbours."""
    assert terms("Blue  SHIRT, for") == ["blue", "shirt", "for", "blue shirt", "shirt for"]
    assert terms("") == []


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Größe élan naïve Ærø", ["größe", "élan", "naïve", "ærø"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("كِتَابٌ عربي", ["كِتَابٌ", "عربي"]),
        ("נִקּוּד", ["נִקּוּד"]),
        ("தமிழ் நூல்", ["தமிழ்", "நூல்"]),
        ("红色陶瓷 iPhone15手机壳", ["红", "色", "陶", "瓷", "iphone15", "手", "机", "壳"]),
        ("コーヒーカップ", ["コ", "ー", "ヒ", "ー", "カ", "ッ", "プ"]),
        ("กาแฟ", ["ก", "า", "แ", "ฟ"]),
        ("한국어 컵", ["한국어", "컵"]),
        ("love ❤️ 1️⃣ café®", ["love", "1", "café"]),
        ("Red shirt – größer", ["red", "shirt", "größer"]),
    ],
)
def test_words_of_any_script_stay_whole(title: str, words: list[str]) -> None:
    """Vowel signs belong to their word; where no spaces are written, a character is a word, and pairs tell more."""
    found = terms(title)
    expected = [unicodedata.normalize("NFKC", word) for word in words]
    assert found[: len(words)] == expected
    assert found[len(words) :] == [f"{a} {b}" for a, b in itertools.pairwise(expected)]


def test_titles_without_spaces_share_what_they_have_in_common() -> None:
    """Two Chinese titles need not be equal to be alike."""
    words = fit_title_words(["红色陶瓷马克杯", "红色陶瓷碗", "蓝色玻璃杯", "绿色玻璃碗"])
    one, other, unlike = (words.row(title) for title in ("红色陶瓷马克杯", "红色陶瓷碗", "绿色玻璃碗"))

    def cosine(a: SparseRow, b: SparseRow) -> float:
        both, mine, theirs = np.intersect1d(a.ids, b.ids, return_indices=True)
        return float(a.weights[mine] @ b.weights[theirs]) if len(both) else 0.0

    assert cosine(one, other) > 0.7
    assert cosine(one, other) > 2 * cosine(one, unlike)


def test_the_vocabulary_holds_what_two_titles_share(words: TitleWords) -> None:
    """Sorted; a word of one title alone tells nothing about others."""
    assert words.words == ("blue", "blue shirt", "for", "red", "shirt", "shirt for")


def test_the_most_frequent_terms_are_kept_when_there_are_too_many() -> None:
    """Ties go by the alphabet."""
    assert fit_title_words(TITLES, most=2).words == ("red", "shirt")


def test_weights_are_tf_idf_of_unit_length(words: TitleWords) -> None:
    """Against the formula, written out."""
    row = words.row("shirt shirt red")
    idf = {"red": 1 + np.log(7 / 4), "shirt": 1 + np.log(7 / 5)}
    expected = np.array([idf["red"], (1 + np.log(2)) * idf["shirt"]])
    np.testing.assert_array_equal(row.ids, [3, 4])
    np.testing.assert_allclose(row.weights, expected / np.linalg.norm(expected), rtol=1e-6)


def test_a_title_of_unknown_words_is_empty(words: TitleWords) -> None:
    """And so is no title; neither divides by zero."""
    for title in ("", "unheard of"):
        row = words.row(title)
        assert len(row.ids) == len(row.weights) == 0


def test_postings_give_the_cosine_with_every_title(words: TitleWords) -> None:
    """Equal to dense vectors multiplied."""
    rows = words.rows(TITLES)
    dense = np.zeros((len(TITLES), len(words)), np.float32)
    for i in range(len(TITLES)):
        dense[i, rows.row(i).ids] = rows.row(i).weights
    postings = Postings.of(rows, len(words))
    for i in range(len(TITLES)):
        for kernel in KERNELS:
            found = arithmetic(kernel).word_cosines(rows.row(i), postings)
            np.testing.assert_allclose(found, dense @ dense[i], atol=1e-6)


def test_packing_keeps_every_word(words: TitleWords) -> None:
    """Bytes and back; another number of weights is refused."""
    assert TitleWords.unpack(words.pack(), words.idf).words == words.words
    assert TitleWords.unpack(np.zeros(0, np.uint8), np.zeros(0, np.float32)).words == ()
    with pytest.raises(ValueError, match="6 words have 5 weights"):
        TitleWords.unpack(words.pack(), words.idf[:5])
