"""The official BERT FullTokenizer, restated in plain Python from its rules.

Slow and obvious on purpose, and independent of `bert_pruning`: the tests and
`benchmarks/tokenization.py` hold the TensorFlow tokenizer against it.
"""

import functools
import pathlib
import unicodedata

CHINESE_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class ReferenceTokenizer:
    """Turns one text at a time into ids.

    Args:
        vocabulary: sequence of tokens; the last of equal tokens counts.
        do_lower_case: bool. Lower-case and strip accents.
    """

    def __init__(self, vocabulary, do_lower_case):
        self.ids = {token: index for index, token in enumerate(vocabulary)}
        self.do_lower_case = do_lower_case
        self.ids_of_word = {}

    def tokenize(self, text):
        if isinstance(text, bytes):
            text = text.decode("utf-8", "ignore")
        ids = []
        for word in "".join(map(clean, text)).split():
            if word not in self.ids_of_word:
                self.ids_of_word[word] = self.tokenize_word(word)
            ids.extend(self.ids_of_word[word])
        return ids

    def tokenize_word(self, word):
        ids = []
        for part in space_chinese(word).split():
            if self.do_lower_case:
                part = strip_accents(part.lower())
            for token in space_punctuation(part).split():
                pieces = split_word_pieces(token, self.ids)
                ids.extend(self.ids[piece] for piece in pieces)
        return ids

    def encode(self, text_a, text_b, max_seq_length):
        """Returns ids and type ids with [CLS] and [SEP], at most that long."""
        tokens_a = self.tokenize(text_a)
        tokens_b = self.tokenize(text_b) if text_b is not None else []
        if tokens_b:
            while len(tokens_a) + len(tokens_b) > max_seq_length - 3:
                longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
                longer.pop()
        else:
            tokens_a = tokens_a[: max_seq_length - 2]
        cls, sep = self.ids["[CLS]"], self.ids["[SEP]"]
        first = [cls, *tokens_a, sep]
        second = [*tokens_b, sep] if tokens_b else []
        return first + second, [0] * len(first) + [1] * len(second)


@functools.cache
def clean(character):
    category = unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return " "
    if category in ("Cc", "Cf") or character == "\ufffd":
        return ""
    return character


def space_chinese(text):
    return "".join(
        f" {character} "
        if any(low <= ord(character) <= high for low, high in CHINESE_RANGES)
        else character
        for character in text
    )


def strip_accents(word):
    return "".join(
        character
        for character in unicodedata.normalize("NFD", word)
        if unicodedata.category(character) != "Mn"
    )


def space_punctuation(word):
    return "".join(
        f" {character} " if is_punctuation(character) else character
        for character in word
    )


def is_punctuation(character):
    code = ord(character)
    return (
        33 <= code <= 47
        or 58 <= code <= 64
        or 91 <= code <= 96
        or 123 <= code <= 126
        or unicodedata.category(character).startswith("P")
    )


def split_word_pieces(word, vocabulary):
    if len(word) > 200:
        return ["[UNK]"]
    pieces = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        for end in range(len(word), start, -1):
            piece = prefix + word[start:end]
            if piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        pieces.append(piece)
        start = end
    return pieces


def read_texts(data_dir):
    """All fields with a space in all files of the GLUE tasks in a folder."""
    folder = pathlib.Path(data_dir)
    texts = []
    for path in sorted([*folder.glob("*/*.tsv"), *folder.glob("*/msr*.txt")]):
        for line in path.read_text("utf-8-sig").split("\n"):
            fields = line.rstrip("\r").split("\t")
            texts.extend(field for field in fields if " " in field)
    return texts
