"""Answers to questions, found in TensorFlow ops: what a served model does.

`squad_answers` does the same for whole data sets, and more: here a context is
one window, as much of it as fits.
"""

import tensorflow as tf

from bert_pruning.training.step import INPUT_NAMES

# Tokens, as the official code has them.
_MAX_QUERY_LENGTH = 64
_MAX_ANSWER_LENGTH = 30


def answer(run, tokenizer, questions, contexts, max_seq_length):
    """Finds the likeliest part of each context.

    Args:
        run: function of a dict of `INPUT_NAMES` that returns logits
            `(batch, length, 2)`.
        tokenizer: BertTokenizer.
        questions: string tensor `(batch,)`.
        contexts: string tensor `(batch,)`. What is beyond `max_seq_length` is
            not read.
        max_seq_length: int. Tokens of question and context together.

    Returns:
        A dict: "answer", the part as the context spells it, empty without a
        context; "score", its logits less those of there being no answer.
    """
    tokens, begins, ends = tokenizer.tokenize_with_offsets(contexts)
    queries = tokenizer.tokenize_tensor(questions)
    queries = queries[:, : min(_MAX_QUERY_LENGTH, max_seq_length // 2)]
    rooms = max_seq_length - 3 - queries.row_lengths()
    tokens, begins, ends = (
        _shorten(each, rooms) for each in (tokens, begins, ends)
    )
    logits = run(_pack(tokenizer, queries, tokens))
    # The logits of each context's tokens alone, padded at the end.
    first = queries.row_lengths() + 2
    places = first[:, tf.newaxis] + tf.range(tf.reduce_max(rooms))
    places = tf.minimum(places, tf.shape(logits, tf.int64)[1] - 1)
    places = tf.maximum(places, 0)
    found = tf.gather(logits, places, batch_dims=1)
    lengths = tokens.row_lengths()[:, tf.newaxis]
    is_token = tf.range(tf.reduce_max(rooms)) < lengths
    least = logits.dtype.min / 4
    starts = tf.where(is_token, found[:, :, 0], least)
    stops = tf.where(is_token, found[:, :, 1], least)
    best, start, stop = _best_span(starts, stops)
    has_answer = lengths[:, 0] > 0
    begin = _look_up(begins, start)
    text = tf.strings.substr(contexts, begin, _look_up(ends, stop) - begin)
    null = logits[:, 0, 0] + logits[:, 0, 1]
    return {
        "answer": tf.where(has_answer, text, ""),
        "score": tf.where(has_answer, best - null, 0.0),
    }


def _shorten(rows, lengths):
    """Keeps the beginning of each row."""
    places = tf.ragged.range(rows.row_lengths())
    is_kept = places.values < tf.repeat(lengths, rows.row_lengths())
    return tf.ragged.boolean_mask(rows, places.with_values(is_kept))


def _pack(tokenizer, queries, tokens):
    column = tf.ones([queries.nrows(), 1], tf.int32)
    cls, sep = column * tokenizer.cls_id, column * tokenizer.sep_id
    ids = tf.concat([cls, queries, sep, tokens, sep], 1)
    types = [tf.zeros_like(x) for x in (cls, queries, sep)]
    types = tf.concat([*types, tf.ones_like(tokens), column], 1)
    packed = tokenizer.pack(ids, types)
    return {name: packed[name] for name in INPUT_NAMES}


def _best_span(starts, stops):
    """Returns the greatest sum of each row, and the places of its two parts."""
    width = tf.shape(starts)[1]
    places = tf.range(width)
    length = places - places[:, tf.newaxis] + 1
    is_span = (length > 0) & (length <= _MAX_ANSWER_LENGTH)
    sums = starts[:, :, tf.newaxis] + stops[:, tf.newaxis]
    sums = tf.where(is_span, sums, sums.dtype.min)
    flat = tf.reshape(sums, [tf.shape(sums)[0], width * width])
    best = tf.argmax(flat, -1, tf.int32)
    return tf.reduce_max(flat, -1), best // width, best % width


def _look_up(offsets, places):
    padded = offsets.to_tensor()
    padded = tf.pad(padded, [[0, 0], [0, 1]])  # Rows without a token.
    places = tf.minimum(places, tf.shape(padded)[1] - 1)
    return tf.gather(padded, places, batch_dims=1)
