r"""Makes pre-training examples of plain text.

    python -m bert_pruning prepare --input=corpus --init_checkpoint=BERT \
        --max_seq_length=128 --output_dir=prepared

Then `train --task_name=pretraining --data_dir=prepared`. A document ends at a
blank line or at the end of its file; `--input=tfds:wikipedia/20230601.en` takes
a text of TensorFlow Datasets. The same examples come of the same text and seed
on any Apache Beam runner, with any number of workers. Without
--beam=--runner=NAME they are of this machine:

    --beam=--direct_num_workers=8 --beam=--direct_running_mode=multi_processing
"""

import json
import os
import shlex
import time

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

_TFDS = "tfds:"


def define_flags():
    """Defines the flags of `prepare`."""
    text, number, real = (
        flags.DEFINE_string,
        flags.DEFINE_integer,
        flags.DEFINE_float,
    )
    flags.DEFINE_list(
        "input", [], "Text files, folders or patterns; or tfds:NAME."
    )
    text("init_checkpoint", None, "The model whose vocabulary is used.")
    text("output_dir", None, "Receives the examples.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")
    number("max_seq_length", 128, "Longest pair, in tokens.")
    real(
        "short_seq_probability",
        0.1,
        "Of a document in shorter pairs.",
        0.0,
        1.0,
    )
    real(
        "nsp_probability", 0.5, "Of a second segment from elsewhere.", 0.0, 1.0
    )
    real(
        "dev_share",
        0.05,
        "Of the documents, held out: `train` needs some.",
        0.0,
        0.5,
    )
    number("shard_rows", 50_000, "Examples in a file, about.", 1)
    text(
        "language",
        "en",
        "Of the sentences; of one that the splitter does not know, as English.",
    )
    number("seed", 42, "Of all choices.", 0, 2**31 - 1)
    flags.DEFINE_enum(
        "format",
        "tokens",
        ["tokens", "official"],
        "tokens: masked when they are read, so anew in every epoch, and "
        "padded to the longest of a batch. official: masked and padded, as "
        "create_pretraining_data of the official BERT code writes them.",
    )
    number("dupe_factor", 10, "format=official: times each text is used.", 1)
    number("max_predictions_per_seq", 20, "format=official.", 1)
    real("masked_lm_prob", 0.15, "format=official.", 0.0, 1.0)
    flags.DEFINE_bool("do_whole_word_mask", False, "format=official.")
    flags.DEFINE_multi_string("beam", [], "Options of Apache Beam.")


_OFFICIAL = (
    *("dupe_factor", "max_predictions_per_seq", "masked_lm_prob"),
    "do_whole_word_mask",
)


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    shared.require("input", "init_checkpoint", "output_dir")
    shared.check_finite()
    shared.check_separate(FLAGS.output_dir, "init_checkpoint")
    if FLAGS.format != "official":
        for name in _OFFICIAL:
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --format=official.")
    folder = os.path.join(os.path.abspath(FLAGS.output_dir), "")
    for name in FLAGS.input:
        if os.path.isdir(name) and folder.startswith(
            os.path.join(os.path.abspath(name), "")
        ):
            raise UserError(
                f"--output_dir={FLAGS.output_dir} lies in --input={name}; its "
                "files would be read as text. Choose another."
            )
    named = [name for name in FLAGS.input if name.startswith(_TFDS)]
    if named and len(FLAGS.input) > 1:
        raise UserError(
            "--input takes one text of TensorFlow Datasets, or files. "
            f"Received: {','.join(FLAGS.input)}."
        )


def main():
    """Prepares by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.training.run import Run

    beam, preparation = _import()
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    settings = _settings(preparation, str(run.path("checkpoint")))
    options = _beam_options()
    texts = _find_texts(preparation, options)
    run.begin()
    with run.writing():
        # Of a pipeline that was killed nothing is used again.
        for path in run.path("checkpoint").glob("*"):
            path.unlink()
        run.path("checkpoint").mkdir(exist_ok=True)
    started = time.monotonic()
    _run_pipeline(beam, options, preparation, texts, settings)
    index = _collect(run, settings)
    run.write_text("prepare.json", json.dumps(index, indent=2) + "\n")
    run.complete()
    seconds = time.monotonic() - started
    total = 0
    for split, files in index["splits"].items():
        rows = sum(file["rows"] for file in files.values())
        total += rows
        print(f"{split}: {rows} examples in {len(files)} files")
    print(f"{total / seconds:.0f} examples a second")
    print(f"Examples: {run.directory}")
    return 0


def _import():
    try:
        import apache_beam
        import sentencex  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"prepare needs {error.name}. Install it: pip install "
            "'bert_pruning[pretraining]'"
        ) from error

    from bert_pruning.data import preparation

    return apache_beam, preparation


def _settings(preparation, folder):
    from bert_pruning.data import pretraining
    from bert_pruning.modeling import checkpoints

    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    shared.check_length(checkpoint.config)
    masking, copies = None, 1
    if FLAGS.format == "official":
        copies = FLAGS.dupe_factor
        masking = pretraining.Masking(
            checkpoint.vocabulary,
            FLAGS.masked_lm_prob,
            FLAGS.do_whole_word_mask,
            FLAGS.max_predictions_per_seq,
        )
    return preparation.Preparation(
        checkpoint.vocabulary,
        checkpoints.resolve_do_lower_case(checkpoint, None),
        pretraining.PairOptions(
            FLAGS.max_seq_length,
            FLAGS.short_seq_probability,
            FLAGS.nsp_probability,
            cuts_both_ends=FLAGS.format == "official",
        ),
        folder,
        FLAGS.seed,
        FLAGS.dev_share,
        FLAGS.shard_rows,
        FLAGS.language,
        masking,
        copies,
    )


def _find_texts(preparation, options):
    from bert_pruning.data import corpus

    if FLAGS.input[0].startswith(_TFDS):
        name = FLAGS.input[0].removeprefix(_TFDS)
        return preparation.ReadDataset(
            name, preparation.fetch_dataset(name, options)
        )
    files = corpus.find_files(FLAGS.input)
    corpus.check_files(files)
    shared.LOG.info("%d files", len(files))
    return preparation.ReadFiles(files)


def _beam_options():
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.options.pipeline_options import WorkerOptions

    parsers = []
    try:
        arguments = [word for text in FLAGS.beam for word in shlex.split(text)]
        options = PipelineOptions(arguments)
        options.get_all_options(add_extra_args_fn=parsers.append)
    except (SystemExit, ValueError) as error:
        # Of a value that it cannot read, and of a quotation without an end.
        raise UserError(
            f"--beam holds what Apache Beam does not take: {FLAGS.beam}."
        ) from error
    standard = options.view_as(StandardOptions)
    if (standard.runner or "direct").lower() in ("direct", "directrunner"):
        # The job server of another runner may know more of them.
        _, unknown = parsers[0].parse_known_args(arguments)
        if unknown:
            raise UserError(
                f"--beam holds what Apache Beam does not take: {unknown}."
            )
        # Its DirectRunner would first download a program and try that.
        standard.runner = "FnApiRunner"
        workers = options.view_as(WorkerOptions)
        if workers.default_sdk_harness_log_level is None:
            # Each process tells its own start and end otherwise.
            workers.default_sdk_harness_log_level = "WARNING"
    return options


def _run_pipeline(beam, options, preparation, texts, settings):
    try:
        with beam.Pipeline(options=options) as pipeline:
            preparation.build_pipeline(pipeline, texts, settings)
    except UserError:
        raise
    except Exception as error:
        # Beam has its own for each runner, with the traceback as text.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"The pipeline failed: {lines[-1]}") from error


def _collect(run, settings):
    """Puts the finished files in place; returns what is in them."""
    from bert_pruning.data import examples

    found = {}
    for path in sorted(run.path("checkpoint").glob("*.json")):
        found[path.name.removesuffix(".json")] = json.loads(path.read_text())
    splits = {
        split: {
            name: about
            for name, about in found.items()
            if name.startswith(f"{split}-")
        }
        for split in ("train", "dev")
    }
    if not splits["train"]:
        raise UserError(
            "No examples came of the corpus: it needs at least two documents "
            "that are not held out. Lower --dev_share or give more text."
        )
    if not splits["dev"] and FLAGS.dev_share and FLAGS.format == "tokens":
        raise UserError(
            "No examples are held out, and `train` needs some: less than two "
            f"documents are of --dev_share={FLAGS.dev_share:g}. Give more "
            "text, or raise --dev_share or change --seed, with --overwrite."
        )
    with run.writing():
        for name in found:
            os.replace(run.path("checkpoint", name), run.path(name))
    return {
        "format": FLAGS.format,
        "max_seq_length": FLAGS.max_seq_length,
        **examples.describe_vocabulary(
            settings.vocabulary, settings.do_lower_case
        ),
        "splits": splits,
    }
