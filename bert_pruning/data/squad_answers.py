"""From the logits of all windows to the answers to SQuAD's questions.

The best spans of all windows of a question are ranked, and each is spelt as
the context has it. The rules are those of the official `run_squad.py`, and so
are the files.

    answers = find_answers(questions, windows, starts, ends, tokenizer)
    write_predictions("runs/squad", answers)
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_pruning.data.squad import Question
from bert_pruning.data.squad import is_version_2
from bert_pruning.data.squad_windows import Windows
from bert_pruning.errors import UserError
from bert_pruning.outputs import cannot_write
from bert_pruning.outputs import check_writable

# Of a question without a span: the official score before any was seen.
_NO_SPAN_ODDS = 1e6


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the best answers to a question.

    Args:
        text: str. As the context has it; "" is no answer.
        probability: float. Among the candidates of the question.
        start_logit: float.
        end_logit: float.
    """

    text: str
    probability: float
    start_logit: float
    end_logit: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to all questions, by the questions' ids.

    Args:
        texts: dict of str. The answers; "" is no answer.
        candidates: dict of tuples of `Candidate`, the best first.
        null_odds: dict of floats, or None in v1.1. The score of no answer
            less that of the best answer.
    """

    texts: Mapping[str, str]
    candidates: Mapping[str, tuple[Candidate, ...]]
    null_odds: Mapping[str, float] | None


def find_answers(
    questions: Sequence[Question],
    windows: Windows,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    tokenizer,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
    *,
    has_null: bool | None = None,
) -> Answers:
    """Finds the best answers to all questions.

    A span begins at one of the best starts of a window, where this window
    sees most context, and ends at one of its best ends. In v2.0 there is also
    no answer: [CLS], in the window where it scores lowest.

    Args:
        questions: sequence of `Question`.
        windows: `Windows` of these questions.
        start_logits: float array [rows, width]. For each position of the rows
            of `windows.dataset`. What is beyond the end of a row is not read:
            how far a batch was padded changes no answer.
        end_logits: float array [rows, width].
        tokenizer: `BertTokenizer` that made the windows.
        n_best_size: int. How many starts and ends of a window are combined,
            and how many candidates of a question are kept.
        max_answer_length: int. Longest answer, in pieces.
        null_score_diff_threshold: float. In v2.0: by how much no answer must
            score higher than the best answer to be chosen.
        has_null: bool or None. Whether there may be no answer, as in v2.0;
            None: the questions tell.

    Returns:
        `Answers`. A question without a span is answered by "" in v2.0, and
        by "empty" in v1.1, as in the official code.

    Raises:
        UserError: a logit is not finite, or a setting is less than 1.
        ValueError: the logits do not fit the rows.

    Example:

    ```python
    answers = find_answers(questions, windows, starts, ends, tokenizer)
    print(answers.texts[questions[0].id])
    ```

    Reference:
        - [Devlin et al., 2018](https://arxiv.org/abs/1810.04805), section 4
    """
    if min(n_best_size, max_answer_length) < 1:
        raise UserError(
            "--n_best_size and --max_answer_length must be at least 1. "
            f"Received: {n_best_size} and {max_answer_length}"
        )
    start_logits = _check_logits(windows, start_logits)
    end_logits = _check_logits(windows, end_logits)
    spell = _Speller(questions, windows, tokenizer)
    if has_null is None:
        has_null = is_version_2(questions)
    numbers = np.arange(len(questions) + 1)
    splits = np.searchsorted(windows.question_index, numbers).tolist()
    texts, candidates, null_odds = {}, {}, {}
    for question, begin, end in zip(
        questions, splits[:-1], splits[1:], strict=True
    ):
        spans = []
        for row in range(begin, end):
            logits = start_logits[row], end_logits[row]
            spans += _find_spans(
                windows, row, *logits, n_best_size, max_answer_length
            )
        null = None
        if has_null:
            null = _find_null(start_logits[begin:end], end_logits[begin:end])
            spans.append(null)
        # A sort that is stable: of equal spans the first found is better.
        spans.sort(key=lambda span: span.score, reverse=True)
        ranked = {}
        for span in spans:
            if len(ranked) == n_best_size:
                break
            ranked.setdefault(spell(span), span)
        if has_null:
            ranked.setdefault("", null)
        ranked = ranked or {"empty": _EMPTY}
        candidates[question.id] = _make_candidates(ranked)
        texts[question.id] = next(iter(ranked))
        if has_null:
            best = next(filter(None, ranked), "")
            odds = _NO_SPAN_ODDS
            if best:
                span = ranked[best]
                odds = null.score - span.start_logit - span.end_logit
            null_odds[question.id] = odds
            is_null = odds > null_score_diff_threshold
            texts[question.id] = "" if is_null else best
    return Answers(texts, candidates, null_odds if has_null else None)


def restore_text(text: str, original: str, basic: str) -> str:
    """Finds the part of a text that its tokens were made of.

    Args:
        text: str. What the tokens spell: lower case, no accents.
        original: str. Words of the context, with spaces between.
        basic: str. The same words, cleaned and split at punctuation as the
            tokenizer does it, with spaces between.

    Returns:
        str. The part of `original`, or all of it where `basic` does not hold
        the text or has other numbers of letters, so that they do not match
        one to one.

    Example:

    >>> restore_text("rene", "(Ren\u00e9's", "( rene ' s")
    'Ren\u00e9'
    """
    place = basic.find(text)
    letters = [i for i, letter in enumerate(original) if letter != " "]
    if place < 0 or len(letters) != _count_letters(basic):
        return original
    first = _count_letters(basic[:place])
    last = first + _count_letters(text) - 1
    return original[letters[first] : letters[last] + 1]


def write_predictions(
    output_dir: str | os.PathLike, answers: Answers
) -> list[str]:
    """Writes the answers as the official code does.

    `predictions.json` holds the text of each answer, and is what the official
    evaluation reads; `nbest_predictions.json` the candidates; and
    `null_odds.json`, in v2.0, the odds of no answer.

    Args:
        output_dir: path. Folder, made if need be.
        answers: `Answers`.

    Returns:
        list of str. The paths of the files.

    Raises:
        UserError: the folder cannot be written to.

    Example:

    ```python
    write_predictions("runs/squad", answers)
    ```
    """
    check_writable(output_dir)
    files = {
        "predictions.json": answers.texts,
        "nbest_predictions.json": {
            name: [dataclasses.asdict(candidate) for candidate in candidates]
            for name, candidates in answers.candidates.items()
        },
    }
    if answers.null_odds is not None:
        files["null_odds.json"] = answers.null_odds
    paths = []
    for name, content in files.items():
        path = os.path.join(output_dir, name)
        try:
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=4) + "\n")
            os.replace(f"{path}.tmp", path)
        except OSError as error:
            raise cannot_write(path, error) from error
        paths.append(path)
    return paths


class _Span(NamedTuple):
    """Positions of the first and last token in a row; 0 and 0: no answer."""

    row: int
    start: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


_EMPTY = _Span(0, 0, 0, 0.0, 0.0)


class _Speller:
    """Spells spans as the context has them."""

    def __init__(self, questions, windows: Windows, tokenizer):
        self._questions = questions
        self._windows = windows
        self._vocabulary = tokenizer.vocabulary
        words = list({word for q in questions for word in q.words})
        basic, _ = tokenizer.split_words(words)
        self._basic = {
            word: b" ".join(tokens).decode("utf-8")
            for word, tokens in zip(words, basic.to_list(), strict=True)
        }

    def __call__(self, span: _Span) -> str:
        if not span.start:
            return ""
        windows, dataset = self._windows, self._windows.dataset
        begin = dataset.offsets[span.row]
        tokens = dataset.token_ids[begin + span.start : begin + span.end + 1]
        text = " ".join([self._vocabulary[i] for i in tokens.tolist()])
        # The first piece may continue a word, too.
        text = text.replace(" ##", "").removeprefix("##")
        question = self._questions[windows.question_index[span.row]]
        piece = windows.first_piece[span.row] + (
            span.start - dataset.type_boundaries[span.row]
        )
        first = windows.piece_words[piece]
        last = windows.piece_words[piece + span.end - span.start]
        words = question.words[first : last + 1]
        basic = " ".join(filter(None, map(self._basic.get, words)))
        return restore_text(text, " ".join(words), basic)


def _check_logits(windows: Windows, logits: np.ndarray) -> np.ndarray:
    """Returns float64, since sums of float32 are rounded into ties."""
    lengths = windows.dataset.lengths
    logits = np.asarray(logits).astype(np.float64)
    if (
        logits.ndim != 2
        or len(logits) != len(lengths)
        or logits.shape[1] < lengths.max()
    ):
        raise ValueError(
            f"Expected logits for {len(lengths)} rows of up to "
            f"{lengths.max()} positions. Received: {list(logits.shape)}"
        )
    is_token = np.arange(logits.shape[1]) < lengths[:, np.newaxis]
    bad = np.flatnonzero((is_token & ~np.isfinite(logits)).any(axis=1))
    if len(bad):
        raise UserError(
            f"The logits of {len(bad)} of {len(logits)} windows are not "
            "finite. The model is broken; did its training diverge?"
        )
    return logits


def _find_spans(
    windows: Windows,
    row: int,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best_size: int,
    max_answer_length: int,
) -> list[_Span]:
    length = int(windows.dataset.lengths[row])
    first, stop = windows.max_context[row]
    start, end = np.meshgrid(
        np.argsort(-start_logits[:length], kind="stable")[:n_best_size],
        np.argsort(-end_logits[:length], kind="stable")[:n_best_size],
        indexing="ij",
    )
    is_answer = (first <= start) & (start < stop) & (start <= end)
    # The last token is [SEP].
    is_answer &= (end < length - 1) & (end - start < max_answer_length)
    return [
        _Span(
            row, start, end, float(start_logits[start]), float(end_logits[end])
        )
        for start, end in np.stack([start, end], -1)[is_answer].tolist()
    ]


def _find_null(start_logits: np.ndarray, end_logits: np.ndarray) -> _Span:
    """Returns [CLS] of the window where it scores lowest."""
    if not len(start_logits):
        return _EMPTY
    row = (start_logits[:, 0] + end_logits[:, 0]).argmin()
    logits = float(start_logits[row, 0]), float(end_logits[row, 0])
    return _Span(0, 0, 0, *logits)


def _make_candidates(ranked: dict[str, _Span]) -> tuple[Candidate, ...]:
    scores = np.array([span.score for span in ranked.values()])
    weights = np.exp(scores - scores.max())
    probabilities = (weights / weights.sum()).tolist()
    return tuple(
        Candidate(text, probability, span.start_logit, span.end_logit)
        for (text, span), probability in zip(
            ranked.items(), probabilities, strict=True
        )
    )


def _count_letters(text: str) -> int:
    return len(text) - text.count(" ")
