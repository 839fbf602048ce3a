"""Text normalisation as the official BERT tokenizer does it, code point by code
point, in TensorFlow ops.

The official code asks Python's `unicodedata`, so the table here is made from
it when a tokenizer is built. The normalisers that come with tokenizer
libraries give other results: NFKC case folding turns "½" into "1⁄2", "ß" into
"ss", "™" into "tm", "…" into "...".
"""

import functools
import itertools
import sys
import unicodedata

import numpy as np
import tensorflow as tf

_CHINESE = frozenset(
    itertools.chain(
        range(0x4E00, 0xA000),
        range(0x3400, 0x4DC0),
        range(0x20000, 0x2A6E0),
        range(0x2A700, 0x2B740),
        range(0x2B740, 0x2B820),
        range(0x2B820, 0x2CEB0),
        range(0xF900, 0xFB00),
        range(0x2F800, 0x2FA20),
    )
)
_ASCII_PUNCTUATION = frozenset(
    map(chr, [*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)])
)
_UNCHANGED_CATEGORIES = ("Cn", "Co", "Cs")  # unassigned, private, surrogates
# Planes 4 to 13 are unassigned, 15 and 16 for private use.
_TABLE_CODES = (*range(0x40000), *range(0xE0000, 0xF0000))

# What a code point is to a capital sigma near it.
_UNCASED, _CASED, _IGNORABLE = range(3)
_SIGMA, _FINAL_SIGMA = ord("Σ"), ord("ς")

# A replacement is an integer: the code point, or 0 for the one that it
# replaces; its combining class; and whether it is an accent (category Mn).
_CODE_BITS = 21
_CODE_MASK = (1 << _CODE_BITS) - 1
_ACCENT = 1 << 29
_NOTHING = -1
_LONGEST_REPLACEMENT = 4
_BLOCK = 256


def is_punctuation(character: str) -> bool:
    """Whether the official tokenizer makes it a token of its own."""
    return character in _ASCII_PUNCTUATION or unicodedata.category(
        character
    ).startswith("P")


class CodePointNormalizer(tf.Module):
    """Cleans texts, and puts a space wherever they are to be split.

    Control characters go, every whitespace becomes a space, Chinese
    characters and punctuation get a space on both sides, and if asked for,
    letters are lower-cased, decomposed (NFD) and lose their accents. Two of
    these steps look at the neighbours of a code point and therefore are not
    part of the table: a capital sigma at the end of a word, and the canonical
    order of combining marks.

    Args:
        do_lower_case: bool. Lower-case and strip accents.

    Example:

    ```python
    normalizer = CodePointNormalizer(do_lower_case=True)
    normalizer(tf.constant(["H\u00c9LLO\u2026\u00bd"]))  # "hello … ½"
    ```
    """

    def __init__(self, do_lower_case: bool):
        super().__init__()
        self.do_lower_case = do_lower_case
        block_ids, blocks = _make_blocks(do_lower_case)
        self._block_ids = tf.constant(block_ids)
        self._blocks = tf.constant(blocks)

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="ignore")
        codes, row_splits = decoded.values, decoded.row_splits
        block = tf.gather(self._block_ids, codes // _BLOCK)
        found = tf.gather(self._blocks, block * _BLOCK + codes % _BLOCK)
        role, replacement = found[:, 0], found[:, 1:]  # [codes, longest]
        replacement = tf.where(
            (replacement & _CODE_MASK) == 0,
            replacement + codes[:, None],
            replacement,
        )
        if self.do_lower_case:
            replacement = tf.cond(
                tf.reduce_any(codes == _SIGMA),
                lambda: _lower_final_sigmas(
                    codes, row_splits, role, replacement
                ),
                lambda: replacement,
            )
            has_spacing_marks = (replacement > _CODE_MASK) & (
                replacement < _ACCENT
            )
            codes, row_splits = tf.cond(
                tf.reduce_any(has_spacing_marks),
                lambda: _strip_accents(
                    *_sort_marks(*_flatten(replacement, row_splits))
                ),
                lambda: _strip_accents(replacement, row_splits),
            )
        else:
            codes, row_splits = _flatten(replacement, row_splits)
        normalized = tf.RaggedTensor.from_row_splits(
            codes & _CODE_MASK, row_splits, validate=False
        )
        return tf.strings.unicode_encode(normalized, "UTF-8")


def _select(condition, values, row_splits):
    """The values [n] or [n, width] for which a condition holds, row by row."""
    counts = tf.cast(condition, tf.int64)
    if counts.shape.rank == 2:
        counts = tf.reduce_sum(counts, axis=1)
    ends = tf.concat([[0], tf.cumsum(counts)], 0)
    return tf.boolean_mask(values, condition), tf.gather(ends, row_splits)


def _find_rows(places, row_splits):
    """The rows, counted from 1, that the places in the values belong to."""
    return tf.searchsorted(row_splits, places, "right", tf.int64)


def _flatten(replacement, row_splits):
    return _select(replacement != _NOTHING, replacement, row_splits)


def _strip_accents(replacement, row_splits):
    is_kept = (replacement != _NOTHING) & (replacement < _ACCENT)
    return _select(is_kept, replacement, row_splits)


def _sort_marks(replacement, row_splits):
    """Canonical order: by class within each run; a starter begins a run."""
    combining = (replacement % _ACCENT) // (_CODE_MASK + 1)
    row = _find_rows(tf.range(tf.size(combining, tf.int64)), row_splits)
    run = tf.cumsum(tf.cast(combining == 0, tf.int64)) + row
    order = tf.argsort(run * 256 + tf.cast(combining, tf.int64), stable=True)
    return tf.gather(replacement, order), row_splits


def _lower_final_sigmas(codes, row_splits, role, replacement):
    """Python's rule: cased before, and not cased after, ignorables aside."""
    places = tf.where(role != _IGNORABLE)[:, 0]
    row = tf.pad(_find_rows(places, row_splits), [[1, 1]])
    is_cased = tf.pad(tf.gather(role, places) == _CASED, [[1, 1]])
    before = is_cased[:-2] & (row[:-2] == row[1:-1])
    after = is_cased[2:] & (row[2:] == row[1:-1])
    is_final = (tf.gather(codes, places) == _SIGMA) & before & ~after
    places = tf.boolean_mask(places, is_final)[:, None]
    return tf.tensor_scatter_nd_update(
        replacement,
        tf.pad(places, [[0, 0], [0, 1]]),
        tf.fill(tf.shape(places)[:1], _FINAL_SIGMA),
    )


@functools.cache
def _make_blocks(do_lower_case):
    """The table in blocks of code points, equal blocks stored once.

    A row of the table holds the role and the replacement, filled up with
    `_NOTHING`.
    """
    table = np.full(
        [sys.maxunicode + 1, 1 + _LONGEST_REPLACEMENT], _NOTHING, np.int32
    )
    table[:, 0] = _UNCASED
    table[:, 1] = 0
    for code in _TABLE_CODES:
        character = chr(code)
        category = unicodedata.category(character)
        if category in _UNCHANGED_CATEGORIES and code not in _CHINESE:
            continue
        text = _replace(character, category, do_lower_case)
        table[code, 0] = _find_role(character) if text else _IGNORABLE
        table[code, 1] = _NOTHING
        table[code, 1 : 1 + len(text)] = [_pack(c, character) for c in text]
    blocks, block_ids = {}, []
    for block in table.reshape(-1, _BLOCK, table.shape[1]):
        number, _ = blocks.setdefault(block.tobytes(), (len(blocks), block))
        block_ids.append(number)
    blocks = np.concatenate([block for _, block in blocks.values()])
    return np.array(block_ids, np.int32), blocks


def _replace(character, category, do_lower_case):
    if character in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return " "
    if category in ("Cc", "Cf") or character == "\ufffd":
        return ""
    text = character
    if do_lower_case:
        text = unicodedata.normalize("NFD", text.lower())
    if ord(character) in _CHINESE or is_punctuation(text[0]):
        text = f" {text} "
    return text


def _pack(new, replaced):
    code = 0 if new == replaced else ord(new)
    is_accent = unicodedata.category(new) == "Mn"
    combining = unicodedata.combining(new) << _CODE_BITS
    return code + combining + is_accent * _ACCENT


def _find_role(character):
    # Which characters count is not in `unicodedata`: try them.
    if (character + "Σ").lower().endswith("ς"):
        return _CASED
    if ("a" + character + "Σ").lower().endswith("ς"):
        return _IGNORABLE
    return _UNCASED
