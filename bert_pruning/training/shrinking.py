"""Cuts a model smaller while it trains: new graph, weights and optimizer.

All in one process and in memory. The shape is a function of the step, so a
killed run resumes in the middle.
"""

import numpy as np

from bert_pruning.compression import surgery
from bert_pruning.compression.importance import taylor_scores
from bert_pruning.compression.structure import keep_top
from bert_pruning.modeling import bert
from bert_pruning.training import optimization


class IterativeShrinking:
    """Carries out a `Shrinkage` on a `DistillationModel`.

    Heads and neurons are chosen by first-order Taylor importance, from the
    gradients of all steps since the cut before.

    Args:
        shrinkage: shrinkage.Shrinkage.
        build: function of a BertConfig, weights by canonical name (None: any)
            and the step at which the optimizer starts, which returns a
            compiled `DistillationModel`.
        carry_optimizer: bool. Keep the optimizer's state of what is kept,
            instead of starting it anew at each cut, as ROSITA does. Embedding
            factors, whose basis changes, start anew in any case.

    Example:

    ```python
    shrinking = IterativeShrinking(shrinkage, build)
    if shrinking.is_due(step):
        model = shrinking.cut(model, step)
    ```

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """

    def __init__(self, shrinkage, build, carry_optimizer=False):
        self.shrinkage = shrinkage
        self.build = build
        self.carry_optimizer = carry_optimizer
        self.is_due = shrinkage.is_due
        self.is_final = shrinkage.is_final

    def model_at(self, step):
        """Builds a model of the shape due, its weights still to be restored."""
        return self._build(step, None)

    def cut(self, model, step):
        """Returns the smaller model that training goes on with.

        Args:
            model: step.DistillationModel. It is of no more use.
            step: int. Optimizer steps done.
        """
        config = self.shrinkage.shape_at(step - 1)
        target = self.shrinkage.shape_at(step)
        weights = bert.get_weights(model.student)
        scores = None
        if model.magnitudes is not None:
            scores = taylor_scores(config, weights, model.magnitudes.numpy())
        structure = keep_top(
            config,
            scores,
            target.num_layers,
            target.num_heads[0] if scores else None,
            target.intermediate_sizes[0] if scores else None,
        )
        config, cut = surgery.shrink(config, weights, structure)
        if target.embedding_rank != config.embedding_rank:
            config, cut = surgery.factorize_embeddings(
                config, cut, target.embedding_rank
            )
        smaller = self._build(step, cut)
        smaller.steps_done.assign(step)
        if self.carry_optimizer:
            self._carry(model, smaller, structure, step)
        return smaller

    def _build(self, step, weights):
        cuts = self.shrinkage.cuts_at(step)
        start = 0 if self.carry_optimizer else cuts * self.shrinkage.interval
        return self.build(self.shrinkage.shape_at(step), weights, start)

    def _carry(self, model, smaller, structure, step):
        before = self.shrinkage.shape_at(step - 1)
        after = self.shrinkage.shape_at(step)
        changed = ()
        if before.embedding_rank != after.embedding_rank:
            changed = ("word_embeddings/embeddings",)
            changed += ("embedding_projection/kernel",)
        theirs = optimization.slots_of(smaller.optimizer, smaller.student)
        ours = optimization.slots_of(model.optimizer, model.student)
        for slot, variables in ours.items():
            arrays = {name: v.numpy() for name, v in variables.items()}
            _, arrays = surgery.shrink(before, arrays, structure)
            for name, variable in theirs[slot].items():
                if name not in changed:
                    variable.assign(np.asarray(arrays[name]))
        smaller.optimizer.iterations.assign(model.optimizer.iterations)
