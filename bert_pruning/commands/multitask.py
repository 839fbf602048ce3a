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
from bert_pruning.commands import parts
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import quantization_flags
from bert_pruning.compression import costs
from bert_pruning.compression import tickets
from bert_pruning.compression.structure import Structure
from bert_pruning.data.mixture import Mixture
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.modeling import bert
from bert_pruning.training import multitask
from bert_pruning.training.run import Run

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
    checkpoint = quantization_flags.quantize(checkpoint)
    tokenizer = inputs.find_tokenizer(checkpoint)
    files = multitask_flags.find_tickets()
    structures = {
        task.name: Structure.load(files[task.name])
        if task.name in files
        else None
        for task in tasks
    }
    gates = multitask.Tickets(checkpoint.config, structures)
    pruning_flags.check_model(checkpoint)
    dev_sets = [assembly.read_dev_sets(task, tokenizer) for task in tasks]
    mixture = Mixture(
        [
            TrainBatches(
                inputs.read_train_set(task, tokenizer),
                **assembly.batch_options(),
            )
            for task in tasks
        ],
        FLAGS.seed,
        FLAGS.sampling_temperature,
    )
    plan = assembly.plan_for(mixture.num_batches)
    sparsity = pruning_flags.build_sparsity(checkpoint, plan.num_steps)
    sizes = _sizes(checkpoint.config, structures)
    for name, share in sizes.items():
        LOG.info("%s = %.2f", name, share)
    model = _build(checkpoint, tasks, gates, plan.num_steps, sparsity)
    # Whatever could be wrong has been looked at; now replace what was there.
    run.begin()
    for name, path in files.items():
        parts.keep_structure(run, f"ticket_{name}.json", structures[name], path)
    LOG.info("TensorBoard: tensorboard --logdir=%s", run.directory)
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

    counts = zip(gates.names, mixture.counts, strict=True)
    assembly.log_plan(
        plan, run, ", ".join(f"{name} {count}" for name, count in counts)
    )
    results = assembly.run_training(
        run,
        ",".join(gates.names),
        lambda: model,
        mixture,
        plan,
        evaluate=evaluate,
        primary_metric="eval_mean",
        save_model=assembly.saver(
            checkpoint, tokenizer.do_lower_case, tasks=about
        ),
    )
    run.finish({**results, **sizes})
    return run


def _build(checkpoint, tasks, gates, num_steps, sparsity):
    rate, rates = multitask_flags.classifier_dropouts()
    config = checkpoint.config
    if rate is not None:
        config = dataclasses.replace(config, classifier_dropout=rate)
    outputs = {task.name: task.num_outputs for task in tasks}
    student = bert.build_model(config, outputs, rates)
    heads = tuple(f"classifier_{name}" for name in outputs)
    assembly.start_weights(
        student, config, checkpoint.weights, (*checkpoint.new_layers, *heads)
    )
    return assembly.build_trained(
        student,
        multitask.MultiTaskModel,
        sparsity,
        num_steps,
        tickets=gates,
        config=config,
    )


def _sizes(config, structures):
    """Returns the share of the model that each task uses, in percent.

    Of all parameters but the classifiers', and of the encoder's layers alone;
    on average, and of what any task uses.
    """
    used = [structure for structure in structures.values() if structure]
    shapes = {
        name: config if structure is None else structure.shrink(config)
        for name, structure in structures.items()
    }
    shapes["all"] = config
    if len(used) == len(structures):
        shapes["all"] = functools.reduce(tickets.union, used).shrink(config)
    sizes = {}
    for title, count in (
        ("percent_left", costs.parameters),
        ("encoder_percent_left", costs.encoder_parameters),
    ):
        shares = {
            name: round(costs.percent_left(shape, config, count), 4)
            for name, shape in shapes.items()
        }
        union = shares.pop("all")
        sizes.update({f"{title}_{name}": x for name, x in shares.items()})
        sizes[f"{title}_mean"] = round(sum(shares.values()) / len(shares), 4)
        sizes[f"{title}_union"] = union
    return sizes
