"""Text to token ids, equal to the official BERT FullTokenizer, in TensorFlow.

The official tokenizer is Python code that walks over characters. Here the same
rules run as TensorFlow ops, so that they work in `tf.data`, on several threads
and inside an exported graph:

*   Rows of printable ASCII, nearly all of English, take the fast road:
    lower-casing, then one op that splits words and punctuation and cuts words
    into pieces. On ASCII that op's rules are the official ones.
*   All other rows are normalised code point by code point (`codepoints.py`),
    split at spaces, and their words cut into pieces.

There is no list of words that are never split: a literal "[SEP]" in a text
becomes "[", "sep", "]", as in the official code.
"""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_text as tf_text

from bert_pruning.data.codepoints import CodePointNormalizer
from bert_pruning.data.codepoints import is_punctuation
from bert_pruning.errors import UserError

MAX_WORD_LENGTH = 200  # in code points; a longer word is one [UNK]
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class BertTokenizer(tf.Module):
    """Cuts texts into the ids that the official BERT tokenizer gives.

    Cleaning, spaces around Chinese characters, optional lower-casing with
    accents removed, punctuation splitting and greedy WordPiece, in TensorFlow
    ops only: the methods work eagerly, in `tf.data` and in a SavedModel, which
    then carries the vocabulary inside. For the highest speed give batches of a
    thousand rows or more, on parallel calls:

        dataset.batch(1024).map(tokenizer.tokenize, num_parallel_calls=2)

    Args:
        vocabulary: sequence of tokens; a token's id is its index. Of equal
            tokens the last counts.
        do_lower_case: bool. True for uncased models: lower-case and strip
            accents. False leaves letters as they are.

    Attributes:
        vocabulary: tuple of str.
        do_lower_case: bool.
        cls_id, sep_id, pad_id, unk_id: int, ids of the special tokens.
        mask_id: int, or None when the vocabulary has no "[MASK]".

    Raises:
        UserError: the vocabulary lacks a special token, or has a token of more
            than 256 bytes.

    Example:

    ```python
    tokenizer = BertTokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##want", "##ed", ","],
        do_lower_case=True,
    )
    tokenizer.tokenize(["UNwant\u00e9d,"])  # [[4, 5, 6, 7]]
    ids, type_ids = tokenizer.encode(["unwanted"], [","], max_seq_length=8)
    tokenizer.pack(ids, type_ids)["input_word_ids"]
    # [[2, 4, 5, 6, 3, 7, 3]]
    ```

    Reference:
        - [Devlin et al., 2018](https://arxiv.org/abs/1810.04805)
        - [Song et al., 2020](https://arxiv.org/abs/2012.15524), the algorithm
            of the WordPiece op
    """

    def __init__(self, vocabulary: Sequence[str], do_lower_case: bool):
        super().__init__()
        if do_lower_case not in (True, False):
            raise UserError(
                "do_lower_case must be true or false. "
                f"Received: {do_lower_case!r}"
            )
        vocabulary = tuple(vocabulary)
        _check_special_tokens(vocabulary, f"{len(vocabulary)} tokens")
        ids = {token: index for index, token in enumerate(vocabulary)}
        self.do_lower_case = bool(do_lower_case)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            ids[token] for token in SPECIAL_TOKENS
        )
        self.mask_id = ids.get("[MASK]")
        # A tuple would be wrapped and walked through by tf.Module.
        self._get_vocabulary = lambda: vocabulary
        self._normalizer = CodePointNormalizer(self.do_lower_case)
        options = {
            "vocab": _make_reachable_tokens(vocabulary, ids),
            "token_out_type": tf.int32,
        }
        # ASCII: as many bytes as code points.
        self._ascii_pieces = tf_text.FastWordpieceTokenizer(
            max_bytes_per_word=MAX_WORD_LENGTH, **options
        )
        self._word_pieces = tf_text.FastWordpieceTokenizer(
            max_bytes_per_word=4 * MAX_WORD_LENGTH,
            no_pretokenization=True,
            **options,
        )

    @property
    def vocabulary(self):
        return self._get_vocabulary()

    def tokenize(self, texts) -> tf.RaggedTensor:
        """Cuts each text into token ids, without special tokens.

        Args:
            texts: texts [N]: string tensor, array or list of str or bytes.
                Bytes that are not UTF-8 are skipped.

        Returns:
            int32 `tf.RaggedTensor` [N, None].

        Raises:
            UserError: `texts` is not a batch of texts.
        """
        texts = _make_string_tensor(texts, "texts")
        with tf.device("CPU:0"):  # strings live there
            return self.tokenize_tensor(texts)

    def split_words(self, texts) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Cuts each text into words, and each word into its pieces.

        Args:
            texts: texts [N]: string tensor, array or list of str or bytes.

        Returns:
            The words, cleaned and lower-cased as the model sees them, string
            `tf.RaggedTensor` [N, None], and the ids of their pieces, int32
            `tf.RaggedTensor` [N, None, None].

        Raises:
            UserError: `texts` is not a batch of texts.
        """
        texts = _make_string_tensor(texts, "texts")
        with tf.device("CPU:0"):
            return self._split_words(texts)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    def tokenize_with_offsets(self, texts):
        """Cuts texts into ids, and says where in a text each comes from.

        Args:
            texts: string tensor [N].

        Returns:
            Three `tf.RaggedTensor` [N, None]: int32 ids, and int32 offsets in
            bytes, where each begins and ends. A word that is not all ASCII is
            not cut: each of its pieces is all of it.
        """
        # It would stop at a NUL; another control character is dropped alike.
        texts = tf.strings.regex_replace(texts, r"\x00", "\x01")
        words, begins, _ = tf_text.regex_split_with_offsets(
            texts, r"[\t\n\r\pZ]+"
        )
        is_ascii = tf.strings.regex_full_match(words.values, "[ -~]*")
        found = [
            tf.gather(tf.concat([plain, other], 0), _order_of(is_ascii))
            for plain, other in zip(
                self._cut_ascii(tf.boolean_mask(words.values, is_ascii)),
                self._cut_unicode(tf.boolean_mask(words.values, ~is_ascii)),
                strict=True,
            )
        ]
        shifts = tf.cast(begins.values, tf.int32)[:, tf.newaxis]
        ids, starts, stops = found[0], found[1] + shifts, found[2] + shifts
        return tuple(
            words.with_values(each).merge_dims(1, 2)
            for each in (ids, starts, stops)
        )

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    def tokenize_tensor(self, texts):
        """`tokenize` for a string tensor [N]; the function to export."""
        is_ascii = tf.strings.regex_full_match(texts, r"[\t\n\r -~]*")
        return tf.cond(
            tf.reduce_all(is_ascii),
            lambda: self._tokenize_ascii(texts),
            lambda: self._tokenize_mixed(texts, is_ascii),
        )

    def encode(
        self, text_a, text_b=None, max_seq_length: int = 128
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Makes the rows a BERT reads: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

        Rows longer than `max_seq_length` are cut as the official code does: a
        pair loses tokens from the end of its longer text, of the second when
        they are equally long. A second text without tokens makes the row a
        single one.

        Args:
            text_a: texts [N]: string tensor, array or list of str or bytes.
            text_b: the second texts [N], or None.
            max_seq_length: int, the longest row, special tokens included.

        Returns:
            Tuple `(ids, type_ids)` of int32 `tf.RaggedTensor` [N, None]. Type 1
            is the second text and its [SEP].

        Raises:
            UserError: `max_seq_length` is less than 3, or the texts are not
                batches of equal size.
        """
        if max_seq_length < 3:
            raise UserError(
                "max_seq_length must be at least 3: [CLS], a token, [SEP]. "
                f"Received: {max_seq_length}"
            )
        text_a = _make_string_tensor(text_a, "text_a")
        if text_b is not None:
            text_b = _make_string_tensor(text_b, "text_b")
            if not text_a.shape.is_compatible_with(text_b.shape):
                raise UserError(
                    "text_a and text_b must have the same number of rows. "
                    f"Received: {text_a.shape[0]} and {text_b.shape[0]}"
                )
        with tf.device("CPU:0"):
            max_seq_length = tf.constant(max_seq_length, tf.int64)
            return self._encode(text_a, text_b, max_seq_length)

    def pack(
        self, ids: tf.RaggedTensor, type_ids: tf.RaggedTensor
    ) -> dict[str, tf.Tensor]:
        """Pads encoded rows with 0 to the longest row of the batch.

        Args:
            ids: int32 `tf.RaggedTensor` [N, None] from `encode`.
            type_ids: the same shape.

        Returns:
            Dict of int32 tensors [N, longest row]: `input_word_ids`,
            `input_mask` (1 for tokens, 0 for padding), `input_type_ids`.
        """
        return {
            "input_word_ids": ids.to_tensor(),
            "input_mask": tf.ones_like(ids).to_tensor(),
            "input_type_ids": type_ids.to_tensor(),
        }

    @tf.function(reduce_retracing=True, autograph=False)
    def _encode(self, text_a, text_b, max_seq_length):
        is_single = text_b is None
        texts = text_a if is_single else tf.concat([text_a, text_b], 0)
        tokens = self.tokenize_tensor(texts)
        num_rows = tf.size(text_a, tf.int64)
        lengths, starts = tokens.row_lengths(), tokens.row_starts()
        length_a, start_a = lengths[:num_rows], starts[:num_rows]
        length_b = tf.zeros_like(length_a) if is_single else lengths[num_rows:]
        start_b = length_b if is_single else starts[num_rows:]
        length_a, length_b = _truncate(length_a, length_b, max_seq_length)

        # Rows are made of slices of one pool: tokens, [CLS], [SEP], [SEP].
        special_ids = [self.cls_id, self.sep_id, self.sep_id]
        pool = tf.concat([tokens.values, special_ids], 0)
        cls = tf.size(tokens.values, tf.int64)
        one, has_b = tf.ones_like(length_a), tf.cast(length_b > 0, tf.int64)
        starts = [one * cls, start_a, one * (cls + 1), start_b, one * (cls + 2)]
        lengths = [one, length_a, one, length_b, has_b]
        starts = tf.reshape(tf.stack(starts, axis=1), [-1])
        ends = starts + tf.reshape(tf.stack(lengths, axis=1), [-1])
        places = tf.ragged.range(starts, ends).values
        ids = tf.gather(pool, places)

        type_ids = tf.zeros_like(ids)
        if not is_single:
            is_b = (places >= tokens.row_splits[num_rows]) & (places < cls)
            type_ids = tf.cast(is_b | (places == cls + 2), tf.int32)
        row_splits = tf.concat([[0], tf.cumsum(tf.add_n(lengths))], 0)
        return tuple(
            tf.RaggedTensor.from_row_splits(values, row_splits, validate=False)
            for values in (ids, type_ids)
        )

    def _tokenize_ascii(self, texts):
        if self.do_lower_case:
            texts = tf.strings.lower(texts)
        return self._ascii_pieces.tokenize(texts)

    def _cut_ascii(self, words):
        if self.do_lower_case:
            words = tf.strings.lower(words)
        ids, *offsets = self._ascii_pieces.tokenize_with_offsets(words)
        return ids, *(tf.cast(each, tf.int32) for each in offsets)

    def _cut_unicode(self, words):
        ids = self._tokenize_unicode(words)
        ends = tf.ones_like(ids) * tf.strings.length(words)[:, tf.newaxis]
        return ids, tf.zeros_like(ids), ends

    def _tokenize_mixed(self, texts, is_ascii):
        ascii_rows = tf.where(is_ascii)[:, 0]
        other_rows = tf.where(~is_ascii)[:, 0]
        tokens = tf.concat(
            [
                self._tokenize_ascii(tf.gather(texts, ascii_rows)),
                self._tokenize_unicode(tf.gather(texts, other_rows)),
            ],
            axis=0,
        )
        return tf.gather(tokens, _order_of(is_ascii))

    def _tokenize_unicode(self, texts):
        _, pieces = self._split_words(texts)
        return pieces.merge_dims(1, 2)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    def _split_words(self, texts):
        words = tf.strings.split(self._normalizer(texts))
        is_long = tf.strings.length(words.values, "UTF8_CHAR") > MAX_WORD_LENGTH
        known = words.with_values(tf.where(is_long, "[UNK]", words.values))
        return words, self._word_pieces.tokenize(known)


def _order_of(is_first):
    """Where each row is once those that are first come first."""
    rows = [tf.where(is_first)[:, 0], tf.where(~is_first)[:, 0]]
    return tf.math.invert_permutation(tf.concat(rows, 0))


def _truncate(length_a, length_b, max_seq_length):
    """The lengths that are left after popping from the longer, b on ties."""
    num_special = tf.where(length_b > 0, tf.constant(3, tf.int64), 2)
    budget = max_seq_length - num_special
    kept_b = tf.minimum(length_b, tf.maximum(budget - length_a, budget // 2))
    return tf.minimum(length_a, budget - kept_b), kept_b


def _check_special_tokens(vocabulary, received):
    missing = [t for t in SPECIAL_TOKENS if t not in vocabulary]
    if missing:
        raise UserError(
            f"The vocabulary lacks {', '.join(missing)}. Is it the vocab.txt "
            f"of a BERT checkpoint? Received: {received}"
        )


def _make_string_tensor(texts, name):
    try:
        texts = tf.convert_to_tensor(texts, tf.string)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} must be a batch of str or bytes. "
            f"Received: {type(texts).__name__} ({error})"
        ) from error
    if texts.shape.rank not in (1, None):
        raise UserError(
            f"{name} must be a batch of texts, shape [N]. "
            f"Received: shape {texts.shape}"
        )
    return texts


def _make_reachable_tokens(vocabulary, ids):
    """The vocabulary with what no text can give replaced by "[index]".

    The WordPiece op wants different tokens, and would match tokens that hold
    a space, which the official code never does.
    """
    tokens = []
    for index, token in enumerate(vocabulary):
        body = token.removeprefix("##")
        is_word = body and not any(
            c.isspace() or (is_punctuation(c) and len(token) > 1) for c in body
        )
        if ids[token] != index or not (is_word or token == "[UNK]"):
            token = f"[{index}]"
        elif len(body.encode()) > 256:
            raise UserError(
                "A token of the vocabulary has more than 256 bytes. "
                f"Received: {token}, id {index}"
            )
        tokens.append(token)
    return tokens
