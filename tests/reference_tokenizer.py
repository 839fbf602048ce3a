"""The official BERT FullTokenizer, restated in plain Python from its rules.

Slow and obvious on purpose, and independent of `bert_pruning`: the tests and
`benchmarks/tokenization.py` hold the TensorFlow tokenizer against it.
"""

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
        self.known_words = {}

    def tokenize(self, text):
        if isinstance(text, bytes):
            text = text.decode("utf-8", "ignore")
        ids = []
        for word in split_words(text, self.do_lower_case):
            if word not in self.known_words:
                pieces = split_word_pieces(word, self.ids)
                self.known_words[word] = [self.ids[piece] for piece in pieces]
            ids.extend(self.known_words[word])
        return ids

    def encode(self, text_a, text_b, max_seq_length):
        """Returns ids and type ids with [CLS] and [SEP], at most that long."""
        tokens_a = self.tokenize(text_a)
        tokens_b = self.tokenize(text_b) if text_b is not None else []
        if tokens_b:
            while len(tokens_a) + len(tokens_b) > max_seq_length - 3:
                longer = (
                    tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
                )
                longer.pop()
        else:
            tokens_a = tokens_a[: max_seq_length - 2]
        cls, sep = self.ids["[CLS]"], self.ids["[SEP]"]
        first = [cls, *tokens_a, sep]
        second = [*tokens_b, sep] if tokens_b else []
        return first + second, [0] * len(first) + [1] * len(second)


def split_words(text, do_lower_case):
    words = []
    for word in space_chinese(clean(text)).split():
        if do_lower_case:
            word = strip_accents(word.lower())
        words.extend(space_punctuation(word).split())
    return words


def clean(text):
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            kept.append(" ")
        elif category not in ("Cc", "Cf") and character not in "\0\ufffd":
            kept.append(character)
    return "".join(kept)


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
