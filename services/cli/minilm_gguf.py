"""Converts all-MiniLM-L6-v2 to GGUF, the form that llama.cpp loads.

Written after llama.cpp's own converter for BERT; the same input gives the same bytes.
"""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_TENSORS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}

# Small or sensitive: half precision saves nothing here and costs accuracy.
_KEPT_F32 = ("position_embd.weight", "token_types.weight")


def convert(source: Path, target: Path) -> None:
    """Writes the model in half precision.

    Args:
        source: Folder with `config.json`, `vocab.txt` and `model.safetensors`.
        target: The file to write.
    """
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, (source / "vocab.txt").read_text("utf-8").rstrip("\n").split("\n"))
    _add_tensors(writer, source / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, words: list[str]) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list([_token(word) for word in words])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if word in _SPECIAL else gguf.TokenType.NORMAL for word in words]
    )
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_mask_token_id(words.index("[MASK]"))


def _token(word: str) -> str:
    """Returns a word piece as llama.cpp writes it: it marks beginnings, BERT marks the rest."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _add_tensors(writer: gguf.GGUFWriter, path: Path) -> None:
    # safetensors: the header's length as 8 bytes, the header as JSON, then the numbers.
    data = np.memmap(path, dtype=np.uint8, mode="r")
    header_end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:header_end].tobytes())
    for name, entry in header.items():
        if name == "__metadata__" or name.endswith("position_ids") or name.startswith("pooler."):
            continue
        begin, end = (header_end + offset for offset in entry["data_offsets"])
        values: npt.NDArray[np.float32] = data[begin:end].view("<f4").reshape(entry["shape"])
        target = _tensor_name(name)
        if values.ndim == 1 or target in _KEPT_F32:
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(target, values.astype(np.float16))


def _tensor_name(name: str) -> str:
    layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        return f"blk.{layer[1]}.{_TENSORS[layer[2]]}.{layer[3]}"
    if name in _TENSORS:
        return _TENSORS[name]
    stem, _, kind = name.rpartition(".")
    return f"{_TENSORS[stem]}.{kind}"
