"""Builds what the flags of `train` say of several tasks, and trains it.

Imports TensorFlow, so `train` imports it late, after the flags are read.
"""

import dataclasses
import functools

from absl import flags

from bert_pruning.commands import assembly
from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.commands import multitask_flags
from bert_pruning.commands import pruning_flags
from bert_pruning.compression import costs
from bert_pruning.compression import pruning
from bert_pruning.compression import tickets
from bert_pruning.compression.structure import Structure
from bert_pruning.data.mixture import Mixture
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training import multitask
from bert_pruning.training import trainer
from bert_pruning.training.run import Run
from bert_pruning.training.summaries import Summaries

FLAGS = flags.FLAGS
LOG = shared.LOG


def train():
    """Trains one model on several tasks by the flags.

    Returns:
        The finished `Run`.

    Raises:
        UserError: for wrong input, before any long work.
        trainer.Interrupted: after Ctrl-C, with the state saved.
    """
    assembly.prepare_device()
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    tasks = multitask_flags.find_tasks()
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    tokenizer = inputs.find_tokenizer(checkpoint)
    files = multitask_flags.find_tickets()
    structures = {
        task.name: Structure.load(files[task.name])
        if task.name in files
        else None
        for task in tasks
    }
    gates = multitask.Tickets(checkpoint.config, structures)
    pruning_flags.check_model(checkpoint.config)
    dev_sets = [assembly.read_dev_sets(task, tokenizer) for task in tasks]
    mixture = Mixture(
        [
            TrainBatches(
                inputs.read_encoded(task, "train", tokenizer)[1],
                **assembly.batch_options(),
            )
            for task in tasks
        ],
        FLAGS.seed,
        FLAGS.sampling_temperature,
    )
    plan = assembly.plan_for(mixture)
    sparsity = pruning_flags.build_sparsity(plan.num_steps)
    _tell_costs(checkpoint.config, structures)
    run.begin()
    LOG.info("TensorBoard: tensorboard --logdir=%s", run.directory)
    model = _build(checkpoint, tasks, gates, plan.num_steps, sparsity)
    evaluator = multitask.MultiTaskEvaluator(model, tasks)
    about = {
        task.name: {
            "task": task.to_dict(),
            "structure": structures[task.name]
            and structures[task.name].to_dict(),
        }
        for task in tasks
    }

    def evaluate(model):
        return evaluator.evaluate(dev_sets, FLAGS.eval_batch_size)

    def save_model(model, directory):
        checkpoints.save_huggingface(
            directory,
            model.config,
            bert.get_weights(model.student),
            checkpoint.vocabulary,
            tokenizer.do_lower_case,
            tasks=about,
        )

    LOG.info(
        "%d steps of %d examples, %d steps an epoch: %s%s",
        plan.num_steps,
        FLAGS.train_batch_size,
        plan.steps_per_epoch,
        ", ".join(
            f"{task.name} {count}"
            for task, count in zip(tasks, mixture.counts, strict=True)
        ),
        ", resumed" if run.is_resumed else "",
    )
    title = ",".join(gates.names)
    with Summaries(
        run.path("events"),
        shared.flags_as_text(),
        assembly.hyperparameters(title),
    ) as summaries:
        results = trainer.Trainer(
            *(model, mixture, plan, run, summaries, evaluate),
            *("eval_mean", save_model),
        ).train()
    run.finish(results)
    return run


def _build(checkpoint, tasks, gates, num_steps, sparsity):
    rate, rates = multitask_flags.classifier_dropouts()
    config = checkpoint.config
    if rate is not None:
        config = dataclasses.replace(config, classifier_dropout=rate)
    outputs = {task.name: task.num_outputs for task in tasks}
    student = bert.build_model(config, outputs, rates)
    heads = tuple(f"classifier_{name}" for name in outputs)
    new = bert.set_weights(
        student, checkpoint.weights, (*checkpoint.new_layers, *heads)
    )
    bert.draw_weights(student, new, config.initializer_range, FLAGS.seed)
    LOG.info("New weights: %s", ", ".join(new))
    pruner = None
    if sparsity is not None:
        student = pruning.wrap(student, sparsity)
        pruner = pruning.Pruner(student, sparsity)
    model = multitask.MultiTaskModel(
        student,
        gates,
        pruner=pruner,
        seed=FLAGS.seed,
        jit_compile=FLAGS.jit_compile,
        config=config,
    )
    model.compile(assembly.build_optimizer(student, num_steps))
    return model


def _tell_costs(config, structures):
    """Says how large each task's part of the model is, and all together."""
    whole = costs.parameters(config)
    parts = {
        name: config if structure is None else structure.shrink(config)
        for name, structure in structures.items()
    }
    sizes = {name: costs.parameters(part) for name, part in parts.items()}
    for name, size in sizes.items():
        LOG.info(
            "%s uses %s of %s parameters, %.2f %%: %d heads, %d blocks",
            name,
            f"{size:,}",
            f"{whole:,}",
            100 * size / whole,
            sum(parts[name].num_heads),
            sum(size > 0 for size in parts[name].intermediate_sizes),
        )
    used = [structure for structure in structures.values() if structure]
    together = config
    if len(used) == len(structures):
        together = functools.reduce(tickets.union, used).shrink(config)
    LOG.info(
        "On average a task uses %.2f %%, all tasks together %.2f %% (the "
        "whole model is stored)",
        100 * sum(sizes.values()) / len(sizes) / whole,
        100 * costs.parameters(together) / whole,
    )
