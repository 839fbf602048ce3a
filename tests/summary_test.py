"""The table of a sweep says what was best, and what failed."""

import pytest

from bert_pruning.delivery.summary import Failure
from bert_pruning.delivery.summary import TaskResults
from bert_pruning.delivery.summary import summarize


def run(value, **more):
    return {
        "eval_f1": value,
        "eval_accuracy": value / 2,
        "eval_loss": 0.5,
        "sparsity": 0.0,
        "train_time": 120.0,
        **more,
    }


def task(name="MRPC", pruned=(), **finetuned):
    return TaskResults(
        name,
        ("eval_f1", "eval_accuracy"),
        "eval_f1",
        {rate.replace("_", "-"): runs for rate, runs in finetuned.items()},
        pruned,
    )


def cells(text, *starts):
    """The cells of the one row that begins with these."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    (row,) = [row for row in rows if row[: len(starts)] == list(starts)]
    return row


def test_the_best_learning_rate_has_the_highest_primary_metric():
    results = task(**{"5e_5": [run(0.8)], "4e_5": [run(0.9)]})
    assert results.best_learning_rate == "4e-5"
    text = summarize([results])
    assert cells(text, "4e-5") == ["4e-5", "**90.00**"]
    assert cells(text, "5e-5") == ["5e-5", "80.00"]
    assert cells(text, "MRPC", "fine-tuned, 4e-5")[2:] == [
        *("0.0", "45.00", "90.00", "0.5000", "2.0")
    ]


def test_seeds_are_averaged_with_their_deviation():
    runs = [run(0.8), run(0.9, train_time=240.0)]
    text = summarize([task(**{"5e_5": runs})])
    assert cells(text, "5e-5")[1] == "**85.00 ± 7.07**"
    assert cells(text, "training min")[1] == "3.0"


def test_a_lucky_survivor_of_failed_seeds_is_not_the_best():
    results = task(**{"5e_5": [run(0.99)], "4e_5": [run(0.8), run(0.8)]})
    assert results.best_learning_rate == "4e-5"


def test_dense_and_sparse_stand_side_by_side():
    pruned = [run(0.7, sparsity=0.95, train_time=30.0)]
    text = summarize([task(pruned=pruned, **{"5e_5": [run(0.8)]})])
    assert cells(text, "MRPC", "pruned, distilled")[2:] == [
        *("95.0", "35.00", "70.00", "0.5000", "0.5")
    ]
    assert cells(text, "pruned, distilled")[1] == "70.00"
    assert cells(text, "pruned, distilled, min")[1] == "0.5"


@pytest.mark.parametrize(
    "sparsity, treatment", [(0.5, "pruned, distilled"), (0.0, "distilled")]
)
def test_rows_say_what_was_done(sparsity, treatment):
    pruned = [run(0.7, sparsity=sparsity)]
    results = task(pruned=pruned, **{"5e_5": [run(0.8)]})
    text = summarize([results])
    assert cells(text, "MRPC", treatment)[4] == "70.00"
    assert cells(text, treatment)[1] == "70.00"


def test_tasks_with_other_metrics_leave_columns_empty():
    other = TaskResults(
        "STS-B",
        ("eval_spearman", "eval_pearson"),
        "eval_spearman",
        {"5e-5": [run(0, eval_spearman=0.6, eval_pearson=0.7)]},
    )
    text = summarize([task(**{"5e_5": [run(0.8)]}), other])
    assert cells(text, "Task")[3:7] == [
        *("Accuracy", "F1", "Pearson", "Spearman")
    ]
    assert cells(text, "STS-B", "fine-tuned, 5e-5")[3:7] == [
        *("", "", "70.00", "60.00")
    ]


def test_mnli_shows_both_dev_sets():
    runs = [run(0.84, eval_f1_mismatched=0.83)]
    text = summarize([task("MNLI", **{"5e_5": runs})])
    assert cells(text, "5e-5")[1] == "**84.00 / 83.00**"


def test_failures_are_listed_and_do_not_hide_the_rest():
    results = [task(**{"5e_5": [run(0.8)], "4e_5": []}), task("RTE", a=[])]
    text = summarize(results, [Failure("RTE, pruning", "no data", "x/y.log")])
    assert "- RTE, pruning: no data (log: x/y.log)" in text
    assert cells(text, "4e-5") == ["4e-5", "-", "-"]
    assert cells(text, "RTE", "no result")


def test_every_row_is_as_wide_as_its_header():
    text = summarize([task(str(i), **{"5e_5": [run(0.8)]}) for i in range(3)])
    for table in text.split("###")[1:]:
        widths = {
            line.count("|")
            for line in table.splitlines()
            if line.startswith("|")
        }
        assert len(widths) == 1
