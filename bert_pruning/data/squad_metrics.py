"""Exact match and F1 of SQuAD, by the definitions of the official evaluations.

    evaluate_v1(questions, answers.texts)["f1"]
    evaluate_v2(questions, answers.texts, answers.null_odds)["best_f1"]

All figures are percentages. No TensorFlow in here.
"""

import collections
import re
import string
from collections.abc import Mapping
from collections.abc import Sequence

from absl import logging

from bert_pruning.data.squad import Question
from bert_pruning.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Leaves what the evaluations compare.

    Args:
        text: str.

    Returns:
        str. In lower case, without ASCII punctuation and English articles,
        with single spaces.

    Example:

    >>> normalize_answer("The  Eiffel-Tower!")
    'eiffeltower'
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """Returns 1 if two texts are equal when normalised, else 0.

    Example:

    >>> exact_match("the cat", "Cat.")
    1.0
    """
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the words of a prediction; 0 if there are no common words.

    Example:

    >>> token_f1("black cat", "the cat")
    0.6666666666666666
    """
    predicted = normalize_answer(prediction).split()
    expected = normalize_answer(answer).split()
    common = collections.Counter(predicted) & collections.Counter(expected)
    num_common = common.total()
    if not num_common:
        return 0.0
    precision, recall = num_common / len(predicted), num_common / len(expected)
    return 2 * precision * recall / (precision + recall)


def check_answers(questions):
    """Checks that `evaluate_v1` can score all questions.

    Args:
        questions: sequence of `Question`.

    Raises:
        UserError: a question has no answers to compare with.
    """
    for question in questions:
        if not question.answers:
            raise UserError(
                f"Question {question.id!r} has no answers to compare with. Is "
                "it from a test set, or of SQuAD v2.0 (--task_name=SQuAD2)?"
            )


def evaluate_v1(
    questions: Sequence[Question], predictions: Mapping[str, str]
) -> dict[str, float]:
    """Scores predictions as the evaluation of v1.1 does.

    The best match with any of a question's answers counts. A question without
    a prediction scores 0.

    Args:
        questions: sequence of `Question`.
        predictions: dict of texts by the questions' ids.

    Returns:
        dict of floats, in percent: `exact_match` and `f1`.

    Raises:
        UserError: a question has no answers to compare with.

    Example:

    ```python
    questions = read_squad("squad/dev-v1.1.json", needs_answers=False)
    print(evaluate_v1(questions, answers.texts)["f1"])
    ```

    Reference:
        - [Rajpurkar et al., 2016](https://arxiv.org/abs/1606.05250),
            section 6.1
    """
    check_answers(questions)
    exact, f1 = [], []
    for question in questions:
        golds = [text for text, _ in question.answers]
        if question.id in predictions:
            prediction = predictions[question.id]
            exact.append(max(exact_match(prediction, gold) for gold in golds))
            f1.append(max(token_f1(prediction, gold) for gold in golds))
    missing = len(questions) - len(exact)
    if missing:
        logging.warning(
            "%d of %d questions have no prediction and score 0.",
            missing,
            len(questions),
        )
    return {
        "exact_match": 100 * sum(exact) / len(questions),
        "f1": 100 * sum(f1) / len(questions),
    }


def evaluate_v2(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Scores predictions as the evaluation of v2.0 does.

    The answer to a question that has none is "".

    Args:
        questions: sequence of `Question`.
        predictions: dict of texts by the questions' ids; "" for no answer.
        null_odds: dict of floats by the questions' ids, or None. High where
            there seems to be no answer. They look for the threshold above
            which no answer is best; the other figures are of the predictions
            as they are.

    Returns:
        dict, in percent: `exact`, `f1` and their number of questions, `total`;
        the same of the questions with an answer (`HasAns_...`) and without
        one (`NoAns_...`), if there are any; and with `null_odds` the best
        scores and their thresholds, `best_exact`, `best_exact_thresh`,
        `best_f1` and `best_f1_thresh`.

    Raises:
        UserError: a question has no prediction or no odds.

    Example:

    ```python
    questions = read_squad("squad/dev-v2.0.json", needs_answers=False)
    results = evaluate_v2(questions, answers.texts, answers.null_odds)
    print(results["best_f1"], "above", results["best_f1_thresh"])
    ```

    Reference:
        - [Rajpurkar et al., 2018](https://arxiv.org/abs/1806.03822)
    """
    _check_ids(questions, predictions, "prediction")
    scores = {"exact": {}, "f1": {}}
    for question in questions:
        prediction = predictions[question.id]
        golds = [t for t, _ in question.answers if normalize_answer(t)] or [""]
        scores["exact"][question.id] = max(
            exact_match(prediction, gold) for gold in golds
        )
        scores["f1"][question.id] = max(
            # Of two texts without words, F1 is that they agree.
            token_f1(prediction, gold) or exact_match(prediction, gold)
            for gold in golds
        )
    groups = {
        "": [q.id for q in questions],
        "HasAns_": [q.id for q in questions if q.answers],
        "NoAns_": [q.id for q in questions if not q.answers],
    }
    results = {}
    for prefix, ids in groups.items():
        if ids:
            for name, values in scores.items():
                total = sum(values[key] for key in ids)
                results[prefix + name] = 100 * total / len(ids)
            results[f"{prefix}total"] = len(ids)
    if null_odds is not None:
        _check_ids(questions, null_odds, "odds of no answer")
        for name, values in scores.items():
            best, threshold = _find_best_threshold(
                questions, predictions, values, null_odds
            )
            results[f"best_{name}"] = 100 * best / len(questions)
            results[f"best_{name}_thresh"] = threshold
    return results


def _check_ids(
    questions: Sequence[Question], values: Mapping, what: str
) -> None:
    missing = [q.id for q in questions if q.id not in values]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(questions)} questions have no {what}, "
            f"{missing[0]!r} the first. Do both come from the same file?"
        )


def _find_best_threshold(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
) -> tuple[float, float]:
    """Returns the highest sum of scores, and the odds up to which we answer."""
    score = sum(not question.answers for question in questions)
    best, threshold = score, 0.0
    for question in sorted(questions, key=lambda q: null_odds[q.id]):
        if question.answers:
            score += scores[question.id]
        elif predictions[question.id]:
            score -= 1
        if score > best:
            best, threshold = score, null_odds[question.id]
    return best, threshold
