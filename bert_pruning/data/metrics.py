"""Scores of a whole data set's predictions, from scikit-learn and SciPy.

Nothing is averaged over batches: the Spearman correlation of the TF1
BERT-Pruning repository ranked within batches of eight and came out 0.1 too
low. No TensorFlow in here.

    results = compute_metrics(task, labels, logits)
    results[task.primary_metric]
"""

import warnings

import numpy as np
import scipy.stats
import sklearn.metrics

from bert_pruning.data.task import Task
from bert_pruning.errors import UserError


def compute_metrics(
    task: Task, labels: np.ndarray, logits: np.ndarray
) -> dict[str, float]:
    """Scores predictions by the metrics of their task.

    What is undefined is 0: F1 without positives, and the Matthews, Pearson
    and Spearman correlations of a constant. F1 is that of class 1.

    Args:
        task: `Task`.
        labels: array [examples]. Classes or scores.
        logits: array [examples, task.num_outputs]. Of a regression also
            [examples].

    Returns:
        dict of floats, keyed by `task.metrics`.

    Raises:
        UserError: a logit is not finite, or there are no examples.
        ValueError: the shapes do not fit.

    Example:

    >>> from bert_pruning.data.tasks import get_task
    >>> compute_metrics(get_task("SST-2"), [0, 1], [[2.0, 1.0], [0.5, 0.1]])
    {'eval_accuracy': 0.5}
    """
    labels = np.asarray(labels)
    logits = np.asarray(logits).astype(np.float64)
    if task.is_regression:
        logits = logits.reshape(len(logits), -1)
    if logits.shape != (len(labels), task.num_outputs):
        raise ValueError(
            f"Expected logits [{len(labels)}, {task.num_outputs}] for "
            f"{task.name}. Received: {list(logits.shape)}"
        )
    if not len(labels):
        raise UserError(f"There are no examples of {task.name} to score.")
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=-1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(labels)} predictions are not finite, the "
            f"first at example {bad[0]}: {logits[bad[0]]}. The model is "
            "broken; did its training diverge?"
        )
    predictions = logits[:, 0] if task.is_regression else logits.argmax(-1)
    return {
        name: float(METRICS[name](labels, predictions)) for name in task.metrics
    }


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1; 0 if nothing is in it and nothing is predicted to be."""
    return sklearn.metrics.f1_score(
        labels == 1, predictions == 1, zero_division=0.0
    )


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation of any number of classes; 0 for a constant."""
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return sklearn.metrics.matthews_corrcoef(labels, predictions)


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson correlation; 0 for a constant."""
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    with warnings.catch_warnings():
        # Of a nearly constant input, which an untrained head may give.
        warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
        return scipy.stats.pearsonr(labels, predictions).statistic


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman correlation, ties ranked by their mean; 0 for a constant."""
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return scipy.stats.spearmanr(labels, predictions).statistic


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


METRICS = {
    "eval_accuracy": sklearn.metrics.accuracy_score,
    "eval_f1": f1,
    "eval_mcc": matthews,
    "eval_pearson": pearson,
    "eval_spearman": spearman,
}
