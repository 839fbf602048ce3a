"""Tests of SQuAD's metrics, by values worked out by hand."""

import pytest
from absl import logging

from bert_pruning.data.squad import Question
from bert_pruning.data.squad_metrics import evaluate_v1
from bert_pruning.data.squad_metrics import evaluate_v2
from bert_pruning.data.squad_metrics import exact_match
from bert_pruning.data.squad_metrics import normalize_answer
from bert_pruning.data.squad_metrics import token_f1
from bert_pruning.errors import UserError


def ask(name, *answers):
    answers = tuple((text, 0) for text in answers)
    return Question(name, "q", "", (), (), answers, not answers)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Cat", "cat"),
        ("an apple a day", "apple day"),
        ("  two \t words\n", "two words"),
        ("U.S.", "us"),
        ("well-known", "wellknown"),
        # Punctuation goes before articles do.
        ("a.m.", "am"),
        ("the-", ""),
        ("theatre another", "theatre another"),
        # Only ASCII punctuation goes.
        ("1880\u20131890 \u00c9T\u00c9", "1880\u20131890 \u00e9t\u00e9"),
        ("", ""),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    "prediction, answer, exact, f1",
    [
        ("the cat", "cat", 1, 1),
        ("Cat!", "a cat", 1, 1),
        ("black cat", "cat", 0, 2 / 3),
        ("cat", "black cat", 0, 2 / 3),
        ("cat black", "black cat", 0, 1),
        ("dog", "cat", 0, 0),
        # One of three words is common, and counts once.
        ("cat cat cat", "cat", 0, 1 / 2),
        ("cat cat dog", "cat cat", 0, 4 / 5),
        ("", "cat", 0, 0),
        ("the", "a", 1, 0),
    ],
)
def test_exact_match_and_f1(prediction, answer, exact, f1):
    assert exact_match(prediction, answer) == exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


class TestVersion1:
    def test_the_best_of_all_answers_counts(self):
        questions = [ask("1", "dog", "black cat"), ask("2", "x y", "z")]
        predictions = {"1": "cat", "2": "the z"}
        assert evaluate_v1(questions, predictions) == {
            "exact_match": 50.0,
            "f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        }

    def test_exact_match_and_f1_may_come_from_different_answers(self):
        # Of an answer without words v1.1 calls even the right F1 0.
        results = evaluate_v1([ask("1", "the", "b")], {"1": "a"})
        assert results == {"exact_match": 100.0, "f1": 0.0}

    def test_missing_predictions_score_0(self, caplog):
        logging.get_absl_logger().propagate = True
        questions = [ask("1", "x"), ask("2", "y")]
        results = evaluate_v1(questions, {"2": "y", "other": "x"})
        assert results == {"exact_match": 50.0, "f1": 50.0}
        assert "1 of 2 questions have no prediction" in caplog.text

    def test_questions_without_answers(self):
        with pytest.raises(UserError, match="'2' has no answers"):
            evaluate_v1([ask("1", "x"), ask("2")], {"1": "x", "2": "x"})


class TestVersion2:
    QUESTIONS = (ask("1", "black cat"), ask("2", "y"), ask("3"), ask("4"))

    def test_answers_and_none(self):
        predictions = {"1": "cat", "2": "", "3": "", "4": "x"}
        assert evaluate_v2(self.QUESTIONS, predictions) == {
            "exact": 25.0,
            "f1": pytest.approx(100 * (2 / 3 + 0 + 1 + 0) / 4),
            "total": 4,
            "HasAns_exact": 0.0,
            "HasAns_f1": pytest.approx(100 / 3),
            "HasAns_total": 2,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
        }

    def test_only_the_groups_that_there_are(self):
        results = evaluate_v2([ask("1", "x")], {"1": "x"})
        assert results["HasAns_exact"] == 100.0
        assert "NoAns_total" not in results
        results = evaluate_v2([ask("1")], {"1": "x"})
        assert results["NoAns_f1"] == 0.0
        assert "HasAns_total" not in results

    @pytest.mark.parametrize("prediction, score", [("", 100), ("the", 100)])
    def test_no_words_are_no_answer(self, prediction, score):
        results = evaluate_v2([ask("1")], {"1": prediction})
        assert results["exact"] == results["f1"] == score

    def test_answers_without_words_do_not_count(self):
        questions = [ask("1", "the", "cat")]
        assert evaluate_v2(questions, {"1": ""})["f1"] == 0.0
        assert evaluate_v2(questions, {"1": "cat"})["f1"] == 100.0
        # With no others there is nothing to answer.
        results = evaluate_v2([ask("1", "the")], {"1": ""})
        assert results["HasAns_f1"] == 100.0

    def test_best_thresholds(self):
        predictions = {"1": "cat", "2": "y", "3": "x", "4": "x"}
        odds = {"1": -2.0, "2": -3.0, "3": 0.5, "4": -4.0}
        results = evaluate_v2(self.QUESTIONS, predictions, odds)
        # Two are right if nothing is answered. x at -4 costs one, y at -3
        # gains one, cat at -2 gains 2/3 of F1, x at 0.5 costs one.
        assert results["best_exact"] == 50.0
        assert results["best_exact_thresh"] == 0.0
        assert results["best_f1"] == pytest.approx(100 * (2 + 2 / 3) / 4)
        assert results["best_f1_thresh"] == -2.0
        assert results["exact"] == 25.0

    def test_predicted_no_answers_cost_nothing(self):
        predictions = {"1": "black cat", "2": "y", "3": "", "4": ""}
        odds = {"1": 2.0, "2": 3.0, "3": 1.0, "4": -1.0}
        results = evaluate_v2(self.QUESTIONS, predictions, odds)
        assert results["best_exact"] == results["best_f1"] == 100.0
        assert results["best_f1_thresh"] == 3.0

    def test_answering_nothing_may_be_best(self):
        predictions = {"1": "x", "2": "x", "3": "x", "4": "x"}
        odds = {"1": -1.0, "2": -2.0, "3": -3.0, "4": -4.0}
        results = evaluate_v2(self.QUESTIONS, predictions, odds)
        assert results["best_exact"] == results["best_f1"] == 50.0
        assert results["best_exact_thresh"] == 0.0

    def test_missing_predictions_and_odds(self):
        predictions = dict.fromkeys("134", "x")
        with pytest.raises(UserError, match="1 of 4 .* no prediction, '2'"):
            evaluate_v2(self.QUESTIONS, predictions)
        everything = dict.fromkeys("1234", "x")
        with pytest.raises(UserError, match="3 of 4 .* no odds .*, '2'"):
            evaluate_v2(self.QUESTIONS, everything, {"1": 0.0})
