"""Answers to questions, found in TensorFlow ops: what a served model does.

Contexts are cut into windows, and of all spans the likeliest is chosen, as
`data.squad_windows` and `data.squad_answers` do for whole data sets.
"""

import tensorflow as tf

from bert_pruning.training.step import INPUT_NAMES

# Tokens, as the official code has them.
_MAX_QUERY_LENGTH = 64
_MAX_ANSWER_LENGTH = 30


def answer(run, tokenizer, questions, contexts, max_seq_length, doc_stride=128):
    """Finds the likeliest part of each context.

    Args:
        run: function of a dict of `INPUT_NAMES` that returns logits
            `(batch, length, 2)`.
        tokenizer: BertTokenizer.
        questions: string tensor `(batch,)`.
        contexts: string tensor `(batch,)`. A long one is read in several
            windows, each a row of a batch.
        max_seq_length: int. Tokens of a question and a window together.
        doc_stride: int. Tokens from window to window.

    Returns:
        A dict: "answer", the part as the context spells it, empty without a
        context; "score", its logits less those of there being no answer.
    """
    tokens, begins, ends = tokenizer.tokenize_with_offsets(contexts)
    queries = tokenizer.tokenize_tensor(questions)
    longest = min(_MAX_QUERY_LENGTH, max_seq_length // 2, max_seq_length - 4)
    queries = queries[:, :longest]
    rooms = max_seq_length - 3 - queries.row_lengths()
    rows, firsts, places = _cut(tokens, rooms, doc_stride)
    queries = tf.gather(queries, rows)
    pieces = places.with_values(tf.gather(tokens.values, places.values))
    logits = run(_pack(tokenizer, queries, pieces))
    # The logits of the windows' tokens alone.
    offsets = tf.gather(queries.row_lengths() + 2, pieces.value_rowids())
    offsets += tf.ragged.range(pieces.row_lengths()).values
    starts, stops = tf.unstack(
        tf.gather_nd(logits, tf.stack([pieces.value_rowids(), offsets], 1)),
        axis=1,
    )
    is_start = _sees_most(places, tf.size(tokens.values, tf.int64))
    starts = tf.where(is_start, starts, logits.dtype.min / 4)
    best, start, stop = _best_span(
        pieces.with_values(starts), pieces.with_values(stops)
    )
    # The likeliest window of each context, and the unlikeliest null.
    best = tf.RaggedTensor.from_value_rowids(best, rows, tokens.nrows())
    null = best.with_values(logits[:, 0, 0] + logits[:, 0, 1])
    window = best.row_starts() + tf.argmax(best.to_tensor(best.dtype.min), -1)
    first = tf.gather(firsts, window)
    begin = _look_up(begins, first + tf.gather(start, window))
    end = _look_up(ends, first + tf.gather(stop, window))
    score = tf.reduce_max(best, -1) - tf.reduce_min(null, -1)
    has_answer = tokens.row_lengths() > 0
    return {
        "answer": tf.where(
            has_answer, tf.strings.substr(contexts, begin, end - begin), ""
        ),
        "score": tf.where(has_answer, score, 0.0),
    }


def _cut(tokens, rooms, doc_stride):
    """Cuts contexts into windows, at least one each.

    Args:
        tokens: ragged tensor of two dimensions.
        rooms: int64 tensor `(batch,)`. Tokens of the longest window.
        doc_stride: int. Tokens from window to window, if there is room.

    Returns:
        Of each window the context and its first token there, and, ragged, the
        places of its tokens among those of all contexts.
    """
    lengths = tokens.row_lengths()
    steps = tf.minimum(rooms, doc_stride)
    counts = 1 + tf.maximum(lengths - rooms + steps - 1, 0) // steps
    windows = tf.ragged.range(counts)
    rows = windows.value_rowids()
    firsts = windows.values * tf.gather(steps, rows)
    lengths = tf.minimum(
        tf.gather(rooms, rows), tf.gather(lengths, rows) - firsts
    )
    begins = firsts + tf.gather(tokens.row_starts(), rows)
    return rows, firsts, tf.ragged.range(begins, begins + lengths)


def _sees_most(places, num_tokens):
    """Returns of each token of each window whether no other sees more of it.

    What a window sees is the context on the poorer side of the token, and a
    little for the length of the window; of equal ones the first counts.
    """
    windows = places.value_rowids()
    lengths = tf.gather(places.row_lengths(), windows)
    left = tf.ragged.range(places.row_lengths()).values
    seen = 100 * tf.minimum(left, lengths - 1 - left) + lengths
    most = tf.math.unsorted_segment_max(seen, places.values, num_tokens)
    is_most = seen == tf.gather(most, places.values)
    best = tf.math.unsorted_segment_min(
        tf.where(is_most, windows, windows.dtype.max),
        *(places.values, num_tokens),
    )
    return windows == tf.gather(best, places.values)


def _pack(tokenizer, queries, tokens):
    column = tf.ones([queries.nrows(), 1], tf.int32)
    cls, sep = column * tokenizer.cls_id, column * tokenizer.sep_id
    ids = tf.concat([cls, queries, sep, tokens, sep], 1)
    types = [tf.zeros_like(x) for x in (cls, queries, sep)]
    types = tf.concat([*types, tf.ones_like(tokens), column], 1)
    packed = tokenizer.pack(ids, types)
    return {name: packed[name] for name in INPUT_NAMES}


def _best_span(starts, stops):
    """Returns the greatest sum of each row, and the places of its two parts.

    Args:
        starts: ragged tensor `(windows, None)`. Logits.
        stops: the same.
    """
    least = starts.dtype.min / 4
    # A column more, for windows of nothing.
    starts, stops = (
        tf.pad(each.to_tensor(least), [[0, 0], [0, 1]], constant_values=least)
        for each in (starts, stops)
    )
    width = tf.shape(starts)[1]
    places = tf.range(width)
    length = places - places[:, tf.newaxis] + 1
    is_span = (length > 0) & (length <= _MAX_ANSWER_LENGTH)
    sums = starts[:, :, tf.newaxis] + stops[:, tf.newaxis]
    sums = tf.where(is_span, sums, sums.dtype.min)
    flat = tf.reshape(sums, [-1, width * width])
    best = tf.argmax(flat, -1)
    width = tf.cast(width, tf.int64)
    return tf.reduce_max(flat, -1), best // width, best % width


def _look_up(offsets, places):
    """Returns one offset of each row, 0 of a row without a token."""
    padded = tf.pad(offsets.to_tensor(), [[0, 0], [0, 1]])
    return tf.gather(padded, places, batch_dims=1)
