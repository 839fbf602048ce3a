"""SQuAD v1.1 and v2.0: questions about contexts, as their JSON files have them.

    questions = read_squad("train-v1.1.json", needs_answers=True)

The rules are those of the official `run_squad.py`.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator
from collections.abc import Sequence

from bert_pruning.errors import UserError
from bert_pruning.modeling.files import complaints_about
from bert_pruning.modeling.files import read_json

_WORD = re.compile("[^ \t\r\n\u202f]+")
_KINDS = {str: "a text", list: "a list", int: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a context.

    Args:
        id: str. The file's own id.
        question: str.
        context: str. The text that holds the answer.
        words: tuple of str. The context, split at space, tab, CR, LF and
            U+202F.
        word_offsets: tuple of int. Where each word begins, in characters.
        answers: tuple of (text, character where it begins). One for
            training, often several in a dev set, none in a test set.
        is_impossible: bool, or None in v1.1. True: the context has no answer.
    """

    id: str
    question: str
    context: str
    words: tuple[str, ...]
    word_offsets: tuple[int, ...]
    answers: tuple[tuple[str, int], ...] = ()
    is_impossible: bool | None = None


def read_squad(path: str, needs_answers: bool) -> list[Question]:
    """Reads a file of SQuAD v1.1 or v2.0.

    Args:
        path: str. The JSON file.
        needs_answers: bool. True for training: each question must have
            exactly one answer or be impossible.

    Returns:
        list of `Question`, in the order of the file.

    Raises:
        UserError: the file is missing, is no JSON, is no SQuAD file, has no
            questions, repeats an id, or lacks answers that are needed.

    Example:

    ```python
    questions = read_squad("squad/dev-v1.1.json", needs_answers=False)
    print(questions[0].question, questions[0].answers)
    ```

    Reference:
        - [Rajpurkar et al., 2016](https://arxiv.org/abs/1606.05250)
        - [Rajpurkar et al., 2018](https://arxiv.org/abs/1806.03822), v2.0
    """
    content = read_json(path)
    with complaints_about(path):
        questions = list(_parse(content, needs_answers))
        if not questions:
            raise UserError("The file has no questions. Download it again.")
        counts = collections.Counter(question.id for question in questions)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise UserError(
                f"{count} questions have the id {name!r}. Give each question "
                "an id of its own."
            )
    return questions


def is_version_2(questions: Sequence[Question]) -> bool:
    """Returns whether questions may be impossible to answer, as in v2.0."""
    return any(question.is_impossible is not None for question in questions)


def _parse(content: dict, needs_answers: bool) -> Iterator[Question]:
    for article, article_place in _items(content, "data", ""):
        for paragraph, place in _items(article, "paragraphs", article_place):
            context = _get(paragraph, "context", str, place)
            matches = list(_WORD.finditer(context))
            words = tuple(match.group() for match in matches)
            offsets = tuple(match.start() for match in matches)
            for qa, qa_place in _items(paragraph, "qas", place):
                question = Question(
                    id=_get(qa, "id", str, qa_place),
                    question=_get(qa, "question", str, qa_place),
                    context=context,
                    words=words,
                    word_offsets=offsets,
                    answers=_parse_answers(qa, qa_place),
                    is_impossible=_get(qa, "is_impossible", bool, qa_place)
                    if "is_impossible" in qa
                    else None,
                )
                count = len(question.answers)
                if needs_answers and not question.is_impossible and count != 1:
                    raise UserError(
                        f"Question {question.id!r} has {count} answers, but "
                        "training needs exactly one. Is it a dev or test set?"
                    )
                yield question


def _parse_answers(qa: dict, place: str) -> tuple[tuple[str, int], ...]:
    if "answers" not in qa:
        return ()
    return tuple(
        (_get(answer, "text", str, at), _get(answer, "answer_start", int, at))
        for answer, at in _items(qa, "answers", place)
    )


def _items(node, key: str, place: str) -> Iterator[tuple[object, str]]:
    """Yields the items of a list with their places in the file."""
    for index, item in enumerate(_get(node, key, list, place)):
        yield item, f"{place}.{key}[{index}]"


def _get(node, key: str, kind: type, place: str):
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        raise UserError(
            f"This is no SQuAD file: {place or 'it'} must have {key!r}, "
            f"{_KINDS[kind]}. Received: {json.dumps(node):.80}"
        )
    return value
