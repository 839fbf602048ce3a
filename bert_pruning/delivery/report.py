"""Counts what a checkpoint costs: zeros per matrix, parameters and bytes.

Each ratio names what it is over, because "95 % sparse" is true of the pruned
matrices and not of the model.
"""

import dataclasses
import math
import os
from collections.abc import Mapping

from bert_pruning.compression import costs
from bert_pruning.delivery import tables
from bert_pruning.delivery.latency import Latency
from bert_pruning.modeling import bert
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.quantization import as_stored
from bert_pruning.modeling.quantization import is_range

# Tokens for which operations are counted.
LENGTH = 128

# Weights become zero by rounding too, in half precision, but not so many.
_PRUNED_SHARE = 0.001


@dataclasses.dataclass(frozen=True)
class Report:
    """The costs of one checkpoint.

    Args:
        path: str. Where it was loaded from.
        config: BertConfig. The shape.
        matrices: dict from layer name to `costs.Count`, the encoder's kernels.
        others: dict from layer name to `costs.Count`, all other kernels of two
            dimensions: of the pooler and the heads.
        whole: costs.Count. Every weight, heads included.
        raw_bytes: int. All weights as float32.
        compressed_bytes: int. After gzip, those that compute in 8 bits as
            such.
        packed_bytes: int. Without gzip, but without the zeros of sparse
            matrices; see `costs.packed_bytes`.
        results: dict of floats. The run's `eval_results.txt`, if any.
        task: dict. The task as the checkpoint names it; empty if it does not.
        latencies: tuple of `latency.Latency`. Measured, if that was asked.
    """

    path: str
    config: BertConfig
    matrices: dict[str, costs.Count]
    others: dict[str, costs.Count]
    whole: costs.Count
    raw_bytes: int
    compressed_bytes: int
    packed_bytes: int
    results: dict[str, float]
    task: Mapping = dataclasses.field(default_factory=dict)
    latencies: tuple[Latency, ...] = ()

    @property
    def macs(self):
        """Multiply-accumulate operations of the encoder on LENGTH tokens."""
        return costs.encoder_macs(self.config, LENGTH)

    @property
    def bits(self):
        """Bits of a weight of the encoder's kernels, once exported."""
        return 8 if all(map(self.config.is_quantized, self.matrices)) else 32

    @property
    def compression(self):
        """The `costs.Compression` of the encoder."""
        return costs.compression(self.config, self.encoder.kept, self.bits)

    @property
    def encoder(self):
        """Count of all encoder kernels together."""
        return sum(self.matrices.values(), costs.Count(0, 0))

    @property
    def pruned(self):
        """Count of the pruned kernels together, the encoder's or not."""
        return sum(self.pruned_matrices.values(), costs.Count(0, 0))

    @property
    def pruned_matrices(self):
        """Those of `matrices` and `others` with more than stray zeros."""
        return {
            name: count
            for name, count in {**self.matrices, **self.others}.items()
            if count.sparsity > _PRUNED_SHARE
        }

    @property
    def listed(self):
        """The encoder's kernels, and the others that are pruned."""
        return {**self.matrices, **self.pruned_matrices}

    def to_dict(self):
        """Returns plain values, for JSON."""
        return {
            "path": self.path,
            "shape": {
                "name": self.config.short_name,
                "num_heads": list(self.config.num_heads),
                "intermediate_sizes": list(self.config.intermediate_sizes),
                "embedding_rank": self.config.embedding_rank,
            },
            f"encoder_macs_{LENGTH}": self.macs,
            "latencies": [each.to_dict() for each in self.latencies],
            "matrices": {
                name: _count_values(count)
                for name, count in self.listed.items()
            },
            "pruned_matrices": {
                **_count_values(self.pruned),
                "names": list(self.pruned_matrices),
            },
            "encoder_kernels": _count_values(self.encoder),
            "whole_model": _count_values(self.whole),
            "bits": self.bits,
            "compression": {
                name: value if math.isfinite(value) else None
                for name, value in dataclasses.asdict(self.compression).items()
            },
            "raw_bytes": self.raw_bytes,
            "compressed_bytes": self.compressed_bytes,
            "packed_bytes": self.packed_bytes,
            "results": self.results,
        }


def measure(checkpoint, results=None, latencies=()):
    """Measures one checkpoint.

    Args:
        checkpoint: checkpoints.Checkpoint.
        results: dict of floats or None. Its evaluation.
        latencies: sequence of `latency.Latency`.

    Returns:
        A `Report`.

    Example:

    ```python
    report = measure(load_checkpoint("runs/mrpc_x20"))
    report.encoder.sparsity, report.whole.sparsity  # 0.95, 0.737
    ```
    """
    arrays = {
        name: array
        for name, array in checkpoint.weights.items()
        if not is_range(name)
    }
    stored = [
        as_stored(name, array, checkpoint.config.quantization)
        for name, array in arrays.items()
    ]
    encoder = bert.encoder_kernels(checkpoint.config)
    others = [
        name
        for name, array in checkpoint.weights.items()
        if name.endswith("/kernel") and array.ndim == 2 and name not in encoder
    ]
    matrices, others = (
        {n.split("/")[0]: costs.count(checkpoint.weights[n]) for n in names}
        for names in (encoder, others)
    )
    return Report(
        path=checkpoint.path,
        config=checkpoint.config,
        matrices=matrices,
        others=others,
        whole=costs.total(arrays.values()),
        raw_bytes=sum(array.nbytes for array in arrays.values()),
        compressed_bytes=costs.stored_bytes(stored)[1],
        packed_bytes=costs.packed_bytes(arrays.values(), stored),
        results=dict(results or {}),
        task=checkpoint.task or {},
        latencies=tuple(latencies),
    )


def as_text(reports):
    """Formats full reports, one after the other, for a terminal."""
    return "\n\n".join(_text(report) for report in reports)


def as_markdown(reports):
    """Formats a comparison, one row per checkpoint."""
    return tables.as_markdown(*table(reports))


def table(reports):
    """Compares checkpoints.

    Args:
        reports: sequence of Report.

    Returns:
        A header, and a list of a row for each checkpoint, all lists of str.
    """
    metrics = list(
        dict.fromkeys(
            name
            for report in reports
            for name in report.results
            if name.startswith("eval_") and name != "eval_time"
        )
    )
    packs = any(map(_is_packed, reports))
    header = [
        "checkpoint",
        "shape",
        "parameters",
        f"encoder MMACs at {LENGTH}",
        "zeros in pruned matrices",
        "zeros in encoder kernels",
        "zeros in whole model",
        "MB raw",
        "MB gzipped",
        *(("MB packed", "encoder kernels, times smaller") if packs else ()),
        *(each.setting.title for each in reports[0].latencies),
        *metrics,
    ]
    rows = []
    for report in reports:
        pruned = report.pruned
        rows.append(
            [
                os.path.normpath(report.path),
                report.config.short_name,
                f"{report.whole.size:,}",
                f"{report.macs / 1e6:.1f}",
                f"{pruned.sparsity:.4f}" if pruned.size else "none",
                f"{report.encoder.sparsity:.4f}",
                f"{report.whole.sparsity:.4f}",
                f"{report.raw_bytes / 1e6:.1f}",
                f"{report.compressed_bytes / 1e6:.1f}",
                *_packed_cells(report, packs),
                *(f"{each.milliseconds:.1f} ms" for each in report.latencies),
                *(
                    f"{report.results[name]:.4f}"
                    if name in report.results
                    else ""
                    for name in metrics
                ),
            ]
        )
    return header, rows


def _is_packed(report):
    """Whether the encoder's kernels could be stored in less."""
    return report.encoder.zeros > 0 or report.bits < 32


def _packed_cells(report, packs):
    if not packs:
        return []
    return [
        f"{report.packed_bytes / 1e6:.1f}",
        f"{report.compression.kernels:.1f}",
    ]


def _text(report):
    width = max(map(len, report.listed), default=0)
    lines = [report.path]
    for name, count in report.listed.items():
        lines.append(
            f"  {name:{width}}  {count.size:>11,} weights  "
            f"{count.kept:>11,} kept  sparsity {count.sparsity:.6f}"
        )
    pruned = f"the {len(report.pruned_matrices)} pruned matrices"
    others = [name for name in report.others if name in report.pruned_matrices]
    if others:
        pruned += f", {', '.join(others)} among them"
    names = (
        (pruned, report.pruned),
        (f"all {len(report.matrices)} encoder kernels", report.encoder),
        ("the whole model", report.whole),
    )
    for name, count in names:
        if count.size:
            lines.append(
                f"Over {name}: {count.zeros:,} of {count.size:,} weights are "
                f"zero, sparsity {count.sparsity:.7f}, ratio "
                f"x{count.ratio:.2f}"
            )
    lines.append(
        f"Stored: {report.raw_bytes:,} bytes raw, "
        f"{report.compressed_bytes:,} gzipped "
        f"(x{report.raw_bytes / report.compressed_bytes:.2f})"
    )
    if _is_packed(report):
        lines.append(_compression_text(report))
    lines.append(
        f"Shape: {report.config.short_name}; heads by layer "
        f"{' '.join(map(str, report.config.num_heads))}; neurons "
        f"{' '.join(map(str, report.config.intermediate_sizes))}"
    )
    lines.append(
        f"Encoder: {report.macs:,} multiply-accumulate operations on "
        f"{LENGTH} tokens"
    )
    lines.extend(
        f"Latency, {each.setting.title}: {each.milliseconds:.2f} ms, "
        f"{each.examples_per_second:.1f} examples/s"
        for each in report.latencies
    )
    lines.extend(
        f"{name} = {value}" for name, value in sorted(report.results.items())
    )
    return "\n".join(lines)


def _compression_text(report):
    found = report.compression
    return (
        f"Smaller than the dense float32 encoder, weights of {report.bits} "
        f"bits: x{found.kernels:.1f} its kernels, as papers count; "
        f"x{found.layers:.1f} with biases and norms; x{found.indexed:.1f} with "
        f"a bit for each weight that says whether it is kept; "
        f"x{found.model:.1f} with float32 embeddings instead, "
        f"x{found.model_int8:.1f} with 8-bit ones. Packed, pooler and heads "
        "too, each weight in its bits, with one more in sparse matrices: "
        f"{report.packed_bytes:,} bytes, "
        f"x{report.raw_bytes / report.packed_bytes:.2f}"
    )


def _count_values(count):
    return {
        "size": count.size,
        "zeros": count.zeros,
        "sparsity": count.sparsity,
        "ratio": count.ratio if count.kept else None,
    }
