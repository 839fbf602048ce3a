"""SQuAD: from questions to rows of token ids.

A context may be longer than what a BERT reads at once. It is cut into windows
that overlap, and every window makes a row, [CLS] question [SEP] window [SEP].
The rules are those of the official `run_squad.py`.

    questions = read_squad("train-v1.1.json", needs_answers=True)
    windows = encode_questions(questions, tokenizer, with_labels=True)
    for batch in TrainBatches(windows.dataset, batch_size=32, seed=42).epoch(0):
        ...

A context is tokenised once, however many questions there are about it.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from absl import logging

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.squad import Question
from bert_pruning.errors import UserError

# Answers that no window holds.
_IMPOSSIBLE, _NOT_FOUND = -1, -2


@dataclasses.dataclass(frozen=True)
class Windows:
    """The rows of all questions, and where they come from.

    Position `p` of row `r` holds a piece of the word
    `piece_words[first_piece[r] + p - dataset.type_boundaries[r]]` of its
    question's context.

    Args:
        dataset: EncodedDataset. The second text of a row is the window.
            Labels are int32 [rows, 2], the positions in the row of the
            answer's first and last token; 0, that is [CLS], where the window
            does not hold the whole answer.
        question_index: int32 array [rows]. Which question, in rising order.
        first_piece: int32 array [rows]. The first piece of the window, in
            `piece_words`.
        piece_words: int32 array [pieces]. For the pieces of all contexts, end
            to end, the number of the word in its context.
        max_context: int32 array [rows, 2]. Begin and end (exclusive) of the
            positions that see more context in this row than in any other: an
            answer may begin only there.
        skipped: int. Questions without rows, because their answer is not
            where the file says.
    """

    dataset: EncodedDataset
    question_index: np.ndarray
    first_piece: np.ndarray
    piece_words: np.ndarray
    max_context: np.ndarray
    skipped: int


def encode_questions(
    questions: Sequence[Question],
    tokenizer,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    *,
    with_labels: bool,
) -> Windows:
    """Tokenises questions and cuts their contexts into windows.

    With labels, the first answer of a question counts. Questions whose answer
    is not found where the file says are left out and counted. An answer may be
    a part of a word: of "(1895-1943)." the pieces of "1895" alone.

    Args:
        questions: sequence of `Question`.
        tokenizer: `BertTokenizer`.
        max_seq_length: int. Tokens of the longest row.
        doc_stride: int. Pieces from the beginning of one window to that of
            the next: a step, as in Google's code, while Hugging Face gives
            this name to the overlap.
        max_query_length: int. Longer questions are cut, in pieces.
        with_labels: bool. False for prediction: no question is left out.

    Returns:
        `Windows`.

    Raises:
        UserError: the lengths leave no room for a context, before any work;
            or no question makes a row.

    Example:

    ```python
    questions = read_squad("squad/dev-v1.1.json", needs_answers=False)
    windows = encode_questions(questions, tokenizer, with_labels=False)
    print(len(windows.dataset), "rows of", len(questions), "questions")
    ```

    Reference:
        - [Devlin et al., 2018](https://arxiv.org/abs/1810.04805)
    """
    _check_lengths(max_seq_length, doc_stride, max_query_length)
    contexts = _tokenize_contexts(questions, tokenizer)
    ids, splits = _tokenize([q.question for q in questions], tokenizer)
    queries = [
        ids[begin : min(begin + max_query_length, end)]
        for begin, end in itertools.pairwise(splits.tolist())
    ]
    answers, skipped = None, ()
    if with_labels:
        answers = _find_answers(questions, contexts, tokenizer)
        skipped = np.flatnonzero(answers[:, 0] == _NOT_FOUND)
        _report_skipped(questions, skipped)
    rooms = [max_seq_length - len(query) - 3 for query in queries]
    windows = _cut_contexts(questions, contexts, rooms, doc_stride, skipped)
    index, begins, ends = windows[:, 0], windows[:, 1], windows[:, 2]
    boundaries = np.int32([len(query) + 2 for query in queries])[index]
    shifts = (boundaries - begins)[:, np.newaxis]  # From pieces to positions.
    labels = None
    if with_labels:
        spans = answers[index]
        is_inside = (spans[:, 0] >= begins) & (spans[:, 1] <= ends)
        labels = (spans - (0, 1) + shifts) * is_inside[:, np.newaxis]
        labels = labels.astype(np.int32)
    cls, sep = np.int32([tokenizer.cls_id]), np.int32([tokenizer.sep_id])
    parts = []
    for question, begin, end in windows[:, :3].tolist():
        window = contexts.pieces[begin:end]
        parts += (cls, queries[question], sep, window, sep)
    dataset = EncodedDataset(
        token_ids=np.concatenate(parts),
        offsets=_find_splits(boundaries + ends - begins + 1),
        type_boundaries=boundaries,
        labels=labels,
        max_seq_length=max_seq_length,
    )
    return Windows(
        dataset=dataset,
        question_index=index,
        first_piece=begins,
        piece_words=contexts.piece_words,
        max_context=windows[:, 3:] + shifts,
        skipped=len(skipped),
    )


@dataclasses.dataclass(frozen=True)
class _Contexts:
    """The pieces of all contexts, each tokenised once, end to end.

    Args:
        numbers: dict from contexts to their numbers.
        word_splits: int64 array [contexts + 1]. First word of each context.
        piece_splits: int64 array [words + 1]. First piece of each word.
        pieces: int32 array [pieces].
        piece_words: int32 array [pieces]. See `Windows`.
    """

    numbers: dict[str, int]
    word_splits: np.ndarray
    piece_splits: np.ndarray
    pieces: np.ndarray
    piece_words: np.ndarray


def _check_lengths(max_seq_length, doc_stride, max_query_length):
    if min(doc_stride, max_query_length) < 1:
        raise UserError(
            "--doc_stride and --max_query_length must be at least 1. "
            f"Received: {doc_stride} and {max_query_length}"
        )
    if max_seq_length <= max_query_length + 3:
        raise UserError(
            "--max_seq_length must be more than --max_query_length + 3, so "
            "that a row has room for a context. "
            f"Received: {max_seq_length} and {max_query_length}"
        )


def _tokenize(texts: Sequence[str], tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of all texts, end to end, and where each begins."""
    ids = tokenizer.tokenize(texts)
    return ids.values.numpy(), ids.row_splits.numpy()


def _find_splits(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _tokenize_contexts(questions, tokenizer) -> _Contexts:
    words_of = {q.context: q.words for q in questions}
    # Most words come many times: each is tokenised once.
    ids = {}
    word_ids = np.array(
        [
            ids.setdefault(word, len(ids))
            for words in words_of.values()
            for word in words
        ],
        np.int64,
    )
    pieces, splits = _tokenize(list(ids), tokenizer)
    counts = np.diff(splits)[word_ids]
    piece_splits = _find_splits(counts)
    places = np.repeat(splits[word_ids] - piece_splits[:-1], counts)
    num_words = [len(words) for words in words_of.values()]
    numbers = np.concatenate([np.arange(n, dtype=np.int32) for n in num_words])
    return _Contexts(
        numbers={context: number for number, context in enumerate(words_of)},
        word_splits=_find_splits(num_words),
        piece_splits=piece_splits,
        pieces=pieces[places + np.arange(piece_splits[-1])],
        piece_words=np.repeat(numbers, counts),
    )


def _find_answers(questions, contexts: _Contexts, tokenizer) -> np.ndarray:
    """Returns int64 [questions, 2], begin and end of each answer's pieces."""
    texts = [q.answers[0][0] if q.answers else "" for q in questions]
    ids, splits = _tokenize(texts, tokenizer)
    spans = np.full([len(questions), 2], _NOT_FOUND)
    for index, question in enumerate(questions):
        if question.is_impossible:
            spans[index] = _IMPOSSIBLE
            continue
        words = _find_answer_words(question)
        if words is None:
            continue
        first_word = contexts.word_splits[contexts.numbers[question.context]]
        begin, end = contexts.piece_splits[first_word + words + (0, 1)].tolist()
        if begin < end:  # Control characters alone make no pieces.
            answer = ids[splits[index] : splits[index + 1]]
            spans[index] = _narrow(contexts.pieces, begin, end, answer)
    return spans


def _find_answer_words(question: Question) -> tuple[int, int] | None:
    """Returns the first and last word of the answer; None if not there."""
    if not question.answers:
        return None
    text, start = question.answers[0]
    first, last = (
        bisect.bisect_right(question.word_offsets, place) - 1
        for place in (start, start + len(text) - 1)
    )
    wanted = " ".join(text.split())
    found = " ".join(question.words[max(first, 0) : last + 1])
    is_inside = first >= 0 and start + len(text) <= len(question.context)
    return (first, last) if is_inside and wanted and wanted in found else None


def _narrow(
    pieces: np.ndarray, begin: int, end: int, answer: np.ndarray
) -> tuple[int, int]:
    """Returns the first part of a span that equals the answer, or the span."""
    span, answer = pieces[begin:end].tolist(), answer.tolist()
    size = len(answer)
    for start in range(len(span) - size + 1 if size else 0):
        if span[start : start + size] == answer:
            return begin + start, begin + start + size
    return begin, end


def _report_skipped(questions: Sequence[Question], skipped: np.ndarray):
    if len(skipped):
        logging.warning(
            "Skipped %d of %d questions: their answers are not where the file "
            "says. The first is %s.",
            len(skipped),
            len(questions),
            questions[skipped[0]].id,
        )
    if len(skipped) == len(questions):
        raise UserError(
            f"None of the {len(questions)} answers is where the file says. Is "
            "answer_start counted in characters, from 0?"
        )


def _cut_contexts(
    questions, contexts: _Contexts, rooms, doc_stride: int, skipped
) -> np.ndarray:
    """Returns int32 [rows, 5]: the question and what `_cut` returns."""
    skipped = set(skipped)
    rows = []
    for index, question in enumerate(questions):
        if index in skipped:
            continue
        number = contexts.numbers[question.context]
        words = contexts.word_splits[number : number + 2]
        first, end = contexts.piece_splits[words].tolist()
        length = end - first
        for window in _cut(length, min(rooms[index], length), doc_stride):
            rows.append((index, *(first + place for place in window)))
    if not rows:
        raise UserError(
            f"The contexts of {len(questions)} questions hold no text. Is it "
            "the right file?"
        )
    return np.array(rows, np.int32)


@functools.lru_cache(maxsize=4096)
def _cut(
    num_pieces: int, room: int, doc_stride: int
) -> tuple[tuple[int, ...], ...]:
    """Cuts a context into windows.

    Args:
        num_pieces: int. Of the context.
        room: int. Pieces in the longest window; at most `num_pieces`.
        doc_stride: int. Pieces from window to window.

    Returns:
        For each window the pieces where it begins and ends (exclusive), and
        where those begin and end that see most context in this window: on
        their poorer side, and a little for the length of the window.
    """
    if not num_pieces:
        return ()
    step = min(room, doc_stride)
    num_windows = 1 + -(-(num_pieces - room) // step)
    begins = step * np.arange(num_windows)
    ends = np.minimum(begins + room, num_pieces)
    pieces = np.arange(num_pieces)
    context = np.minimum(
        pieces - begins[:, np.newaxis], ends[:, np.newaxis] - 1 - pieces
    )
    score = context + 0.01 * (ends - begins)[:, np.newaxis]
    # Of equal windows the first is best. So the best window of a piece never
    # comes before that of an earlier piece.
    best = np.where(context < 0, -np.inf, score).argmax(axis=0)
    best_begins = np.searchsorted(best, np.arange(num_windows))
    best_ends = np.searchsorted(best, np.arange(num_windows), "right")
    table = np.stack([begins, ends, best_begins, best_ends], axis=1)
    return tuple(map(tuple, table.tolist()))
