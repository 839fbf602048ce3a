"""Ids equal to the official tokenizer's, on real text and on hard text."""

import functools
import random
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from reference_tokenizer import ReferenceTokenizer
from reference_tokenizer import read_texts

from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError
from bert_pruning.modeling.files import read_vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PIECES = ("want", "##want", "##ed", "wa", "un", "runn", "##ing", ",")


@functools.cache
def make_letters():
    """A vocabulary of single code points, so that [UNK] hides little."""
    codes = [
        *range(33, 0x3100),
        *range(0xA000, 0xAC00),
        *range(0xF900, 0x10000),
    ]
    codes += [*range(0x4E00, 0x4F00), *range(0x10000, 0x12000)]
    codes += [*range(0x16FE0, 0x17000), *range(0x1D000, 0x1D800)]
    letters = [chr(code) for code in codes if not chr(code).isspace()]
    letters += ["[MASK]"]
    return (*SPECIAL, *letters, *("##" + letter for letter in letters))


@functools.cache
def make_pair(vocabulary, do_lower_case):
    return (
        BertTokenizer(vocabulary, do_lower_case),
        ReferenceTokenizer(vocabulary, do_lower_case),
    )


def check_equal(texts, vocabulary, do_lower_case):
    tokenizer, official = make_pair(vocabulary, do_lower_case)
    rows = tokenizer.tokenize(texts).to_list()
    different = [
        (text, row)
        for text, row in zip(texts, rows, strict=True)
        if row != official.tokenize(text)
    ]
    assert not different, f"{len(different)} texts, first {different[0]!r}"


def show(text, vocabulary, do_lower_case):
    tokenizer, _ = make_pair(vocabulary, do_lower_case)
    [ids] = tokenizer.tokenize([text]).to_list()
    return " ".join(tokenizer.vocabulary[index] for index in ids)


@pytest.fixture(scope="module")
def vocabulary(minilm_dir):
    return read_vocabulary(f"{minilm_dir}/vocab.txt")


@pytest.fixture(scope="module")
def glue_texts(glue_dir):
    return sorted(set(read_texts(glue_dir)))


def test_equals_official_on_every_glue_text(vocabulary, glue_texts):
    check_equal(glue_texts, vocabulary, True)


def test_equals_official_on_glue_with_a_cased_vocabulary(
    vocabulary, glue_texts
):
    words = [token for token in vocabulary if token.isalpha()]
    cased = (
        *vocabulary,
        *(word.capitalize() for word in words[:5000]),
        *(prefix + chr(65 + i) for i in range(26) for prefix in ("", "##")),
    )
    check_equal(glue_texts, cased, False)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_equals_official_on_every_code_point(do_lower_case):
    # Those that are all alike by the thousand: a sample of them.
    alike = {"Cn": 199, "Co": 199, "Cs": sys.maxunicode + 1, "Lo": 5}
    codes = [
        code
        for code in range(sys.maxunicode + 1)
        if code < 0x3100
        or code % alike.get(unicodedata.category(chr(code)), 1) == 0
    ]
    rows = [
        " ".join(f"Xa{c}b{c}Σ{c}{c}" for c in map(chr, codes[i : i + 40]))
        for i in range(0, len(codes), 40)
    ]
    check_equal(rows, make_letters(), do_lower_case)


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize(
    "alphabet",
    [
        "Σ ς σ A a ' . \u0301 \u00ad \x01 \u0345 \u4e00 \u2028 İ ½".split(" "),
        # Marks of all kinds and classes, and what they attach to.
        [*"a \u0301\u0327\u034f\u302e\u302f\ua953\u1b44\U00016ff0"]
        + [chr(code) for code in range(0x1D158, 0x1D175)],
        [chr(code) for code in range(0x0000, 0x0600)],
        [chr(code) for code in range(0x2000, 0x3100)],
    ],
    ids=["sigma", "marks", "low", "symbols"],
)
def test_equals_official_on_random_texts(alphabet, do_lower_case):
    rng = random.Random(1)
    texts = [
        "".join(rng.choices([*alphabet, " "], k=rng.randint(0, 20)))
        for _ in range(2000)
    ]
    check_equal(texts, make_letters(), do_lower_case)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_skips_bytes_that_are_not_utf8(do_lower_case):
    rng = random.Random(1)
    common = (
        b"A \xc3\xa9\xe2\x80\xa6\xed\xa0\x80\xf0\x9f\x98\xf4\x90\xef\xbf\xbd"
    )
    texts = [
        bytes(rng.choices([*common, *range(256)], k=rng.randint(0, 30)))
        for _ in range(5000)
    ]
    check_equal(texts, make_letters(), do_lower_case)
    tokenizer, _ = make_pair((*SPECIAL, "ab", "é"), True)
    rows = tokenizer.tokenize([b"a\xffb", b"a\xe2b", b"\xc3a\xc3b"])
    assert rows.to_list() == [[4], [4], [4]]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("UNwant\u00e9d,running", "un ##want ##ed , runn ##ing"),
        ("", ""),
        (" \t\r\n\u00a0\u2003\u3000", ""),
        ("unwanted running", "un ##want ##ed runn ##ing"),
        ("unwantedX running", "[UNK] runn ##ing"),
        ("un\u0000want\u0005ed\ufffd", "un ##want ##ed"),
        ("un\u00adwanted \u200bwant\ufeff", "un ##want ##ed want"),
        ("un\u2028un\u2029un\x0bwant\x85ed", "un un un ##want ##ed"),
    ],
)
def test_official_examples(text, expected):
    assert show(text, (*SPECIAL, *PIECES), True) == expected


def test_official_examples_ids():
    vocabulary = ("[UNK]", "[CLS]", "[SEP]", *PIECES, "[PAD]")
    tokenizer = BertTokenizer(vocabulary, True)
    rows = tokenizer.tokenize(["UNwant\u00e9d,running", "unwanted running"])
    assert rows.to_list() == [[7, 4, 5, 10, 8, 9], [7, 4, 5, 8, 9]]


@pytest.mark.parametrize(
    "text, lower, kept",
    [
        (
            " \tHeLLo!how  \n Are yoU?  ",
            "h ##e ##l ##l ##o ! h ##o ##w a ##r ##e y ##o ##u ?",
            "H ##e ##L ##L ##o ! h ##o ##w A ##r ##e y ##o ##U ?",
        ),
        ("H\u00e9", "h ##e", "H ##\u00e9"),
        ("e\u0301a", "e ##a", "e ##\u0301 ##a"),
        ("\u4e00\u4e01z", "\u4e00 \u4e01 z", "\u4e00 \u4e01 z"),
        ("\u30a2\u30ac", "\u30a2 ##\u30ab", "\u30a2 ##\u30ac"),
        ("\uac00", "\u1100 ##\u1161", "[UNK]"),
        ("[SEP]", "[ s ##e ##p ]", "[ S ##E ##P ]"),
        ("a[MASK]", "a [ m ##a ##s ##k ]", "a [ M ##A ##S ##K ]"),
        ("ΑΣ ΑΣ.Α Σ ΑΣ'", "α ##ς α ##σ . α σ α ##ς '", None),
        ("Α\u0001Σ\u0301", "α ##ς", "Α ##Σ ##\u0301"),
        ("İx", "i ##x", "İ ##x"),
        ("ß½™", "ß ##½ ##™", "ß ##½ ##™"),
        ("a…b´c", "a … b ##´ ##c", "a … b ##´ ##c"),
        ("$1`a", "$ 1 ` a", "$ 1 ` a"),
        ("\u037e\u1fef", "; `", "\u037e \u1fef"),
    ],
)
def test_hard_characters(text, lower, kept):
    assert show(text, make_letters(), True) == lower
    if kept is not None:
        assert show(text, make_letters(), False) == kept


@pytest.mark.parametrize("letter", ["a", "é", "\u0915", "\U00010400"])
def test_words_over_200_code_points_are_unknown(letter):
    letters = make_letters()
    for do_lower_case in (True, False):
        texts = [
            f"b {letter * length}{tail}"
            for length in (199, 200, 201, 799, 801)
            for tail in ("", ".", " b", "\u0301", "…")
        ]
        check_equal(texts, letters, do_lower_case)
    assert show(letter * 201, letters, False) == "[UNK]"
    assert show(letter * 200, letters, False).count(" ") == 199


def test_the_last_of_equal_tokens_counts():
    vocabulary = (*SPECIAL, "a", "", "##b", "##", "a", "##b", "")
    assert BertTokenizer(vocabulary, True).tokenize(["ab"]).to_list() == [
        [8, 9]
    ]


def test_tokens_that_no_word_can_be_are_never_matched():
    odd = ("a b", "don't", "##.", "[5]", "\u4e00\u4e01", "##\u4e00", "[CLS]")
    letters = tuple("abdont.'[]5CLS\u4e00\u4e01")
    vocabulary = (*SPECIAL, *odd, *letters, *("##" + c for c in letters))
    texts = ["a b", "don't", "a. b.", "[5] [CLS]", "a\u4e00\u4e01", "...", "##"]
    check_equal(texts, vocabulary, False)


def test_rows_keep_their_order_when_mixed(vocabulary):
    texts = ["plain", "caf\u00e9", "", "words", "\u4e00\u4e01", "end \u2026"]
    check_equal(texts, vocabulary, True)
    check_equal(texts[1::3], vocabulary, True)


@pytest.mark.parametrize(
    "texts",
    [
        ["want un", b"\xc3\xa9"],
        ("want un", "é"),
        np.array(["want un", "é"]),
        np.array(["want un", "é"], object),
        tf.constant(["want un", "é"]),
    ],
    ids=["list", "tuple", "array", "objects", "tensor"],
)
def test_takes_any_batch_of_texts(texts):
    tokenizer, _ = make_pair((*SPECIAL, *PIECES), False)
    rows = tokenizer.tokenize(texts)
    assert rows.dtype == tf.int32
    assert rows.to_list() == [[4, 8], [1]]


def test_takes_an_empty_batch():
    tokenizer, _ = make_pair((*SPECIAL, *PIECES), True)
    assert tokenizer.tokenize([]).to_list() == []
    ids, type_ids = tokenizer.encode([], [], 8)
    assert ids.to_list() == type_ids.to_list() == []


@pytest.mark.parametrize("texts", ["text", [1, 2], [None], [["a"], ["b"]]])
def test_refuses_what_is_not_a_batch_of_texts(texts):
    tokenizer, _ = make_pair((*SPECIAL, *PIECES), True)
    with pytest.raises(UserError, match="must be a batch.*Received"):
        tokenizer.tokenize(texts)


def test_encodes_and_truncates_as_the_official_code():
    tokenizer, official = make_pair(make_letters(), True)
    sizes = (0, 1, 2, 3, 4, 5, 9)
    pairs = [("ab" * i + "é" * (j % 2), "c" * j) for i in sizes for j in sizes]
    text_a, text_b = zip(*pairs, strict=True)
    for max_seq_length in range(3, 16):
        for second in (text_b, None):
            ids, type_ids = tokenizer.encode(text_a, second, max_seq_length)
            rows = zip(text_a, second or [None] * len(text_a), strict=True)
            expected = [official.encode(a, b, max_seq_length) for a, b in rows]
            assert ids.to_list() == [row for row, _ in expected]
            assert type_ids.to_list() == [types for _, types in expected]
            assert ids.dtype == type_ids.dtype == tf.int32


def test_a_second_text_without_tokens_makes_a_single_row():
    tokenizer, _ = make_pair((*SPECIAL, *PIECES), True)
    ids, type_ids = tokenizer.encode(["un un un", "un"], [" \u200b", "un"], 5)
    assert ids.to_list() == [[2, 8, 8, 8, 3], [2, 8, 3, 8, 3]]
    assert type_ids.to_list() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]


def test_encode_refuses_bad_lengths():
    tokenizer, _ = make_pair((*SPECIAL, *PIECES), True)
    with pytest.raises(UserError, match="at least 3.*Received: 2"):
        tokenizer.encode(["un"], None, 2)
    with pytest.raises(UserError, match="same number.*Received: 1 and 2"):
        tokenizer.encode(["un"], ["un", "un"], 8)


def test_pack_pads_to_the_longest_row():
    tokenizer, _ = make_pair(("a", *SPECIAL, *PIECES), True)
    packed = tokenizer.pack(*tokenizer.encode(["un", "a"], ["want un", ""], 9))
    packed = {name: value.numpy().tolist() for name, value in packed.items()}
    assert packed == {
        "input_word_ids": [[3, 9, 4, 5, 9, 4], [3, 0, 4, 0, 0, 0]],
        "input_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
        "input_type_ids": [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
    }


def test_works_in_tf_data(vocabulary):
    tokenizer, official = make_pair(vocabulary, True)
    texts = ["A caf\u00e9.", "plain", "\u4e00", ""] * 3
    dataset = tf.data.Dataset.from_tensor_slices((texts, texts[::-1])).batch(5)
    dataset = dataset.map(
        lambda a, b: tokenizer.pack(*tokenizer.encode(a, b, 12)),
        num_parallel_calls=2,
    )
    rows = []
    for batch in dataset:
        ids, mask = batch["input_word_ids"], batch["input_mask"]
        rows += tf.ragged.boolean_mask(ids, mask == 1).to_list()
    assert rows == [
        official.encode(a, b, 12)[0]
        for a, b in zip(texts, texts[::-1], strict=True)
    ]


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_works_in_a_saved_model(tmp_path, vocabulary, do_lower_case):
    tokenizer, _ = make_pair(vocabulary, do_lower_case)
    module = tf.Module()
    module.tokenizer = tokenizer
    module.serve = tf.function(
        lambda texts: tokenizer.pack(*tokenizer.encode(texts, None, 16)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    texts = ["A caf\u00e9, ΑΣ.", "plain text", "\u4e00\u4e01 \U0001d15e\u302e"]
    expected = tokenizer.pack(*tokenizer.encode(texts, None, 16))
    for name, value in loaded.serve(tf.constant(texts)).items():
        np.testing.assert_array_equal(value, expected[name])
    rows = loaded.tokenizer.tokenize_tensor(tf.constant(texts))
    assert rows.to_list() == tokenizer.tokenize(texts).to_list()


def test_knows_its_special_tokens():
    tokenizer, _ = make_pair(("a", *SPECIAL, "[MASK]"), False)
    assert tokenizer.vocabulary == ("a", *SPECIAL, "[MASK]")
    assert tokenizer.do_lower_case is False
    assert (tokenizer.pad_id, tokenizer.unk_id) == (1, 2)
    assert (tokenizer.cls_id, tokenizer.sep_id) == (3, 4)
    assert tokenizer.mask_id == 5
    assert make_pair((*SPECIAL, *PIECES), True)[0].mask_id is None


@pytest.mark.parametrize("do_lower_case", [None, "false", 2])
def test_refuses_an_undecided_casing(do_lower_case):
    with pytest.raises(UserError, match="do_lower_case.*Received"):
        BertTokenizer((*SPECIAL, *PIECES), do_lower_case)


def test_refuses_a_vocabulary_without_special_tokens():
    with pytest.raises(UserError, match=r"lacks \[PAD\], \[SEP\]"):
        BertTokenizer(("[UNK]", "[CLS]", "a"), True)


def test_vocabulary_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(
        "[PAD]\r\n[UNK]\n[CLS]\n[SEP]\na\u2028b\n\n  c \nc\nd".encode()
    )
    assert read_vocabulary(path) == (*SPECIAL, "a\u2028b", "", "c", "c", "d")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "Cannot read .*vocab.txt: No such file"),
        (b"", "is empty"),
        (b"[PAD]\n\xff", "vocab.txt is not a vocabulary in UTF-8"),
    ],
)
def test_bad_vocabulary_file_is_named(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){message}.*"):
        read_vocabulary(path)
