"""Writing and reading the zoo's checkpoints, as Hugging Face and PEFT directories in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from evomerge.zoo import draw, network, words

RANK: Final = 8
LORA_SCALE: Final = 2.0
LORA_TARGETS: Final = (
    r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
)
_PIXELS: Final = {"shortest_edge": draw.SIZE**2, "longest_edge": draw.SIZE**2}


def processor() -> Any:
    """The processor of every model of the zoo; it needs pillow, but no torchvision.

    transformers' Qwen2VLProcessor insists on a video processor, and that on torchvision.
    PaddleOCRVLProcessor does the same with pictures (one placeholder a picture, expanded to grid /
    merge² tokens) and knows no video.
    """
    from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessorPil

    half = [0.5, 0.5, 0.5]
    return PaddleOCRVLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=network.PATCH,
            merge_size=network.MERGE,
            temporal_patch_size=network.FRAMES,
            image_mean=half,
            image_std=half,
            size=dict(_PIXELS),
        ),
        tokenizer=words.tokenizer(),
        chat_template=words.CHAT_TEMPLATE,
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def for_every_reader(directory: Path) -> None:
    """Make the files of a checkpoint readable by every user of the machine."""
    for path in directory.iterdir():
        path.chmod(0o644)


def _add_video(directory: Path) -> None:
    """Declare the video processor, for readers (vLLM) that build a Qwen2VLProcessor from this
    directory.
    """
    path = directory / "processor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    pictures = content["image_processor"]
    content["video_processor"] = {
        **{k: v for k, v in pictures.items() if k != "image_processor_type"},
        "video_processor_type": "Qwen2VLVideoProcessor",
    }
    _write_json(path, content)


def save_model(model: Any, directory: Path) -> None:
    """Write a complete Hugging Face directory; `model` itself is rounded to bfloat16."""
    save_weights(model, directory, words.IDS, 4)
    processor().save_pretrained(directory)
    _add_video(directory)
    for_every_reader(directory)


def save_weights(model: Any, directory: Path, ids: Mapping[str, int], longest: int) -> None:
    """Write the weights, rounded to bfloat16 in `model` too, and how it generates: greedily, up to
    `longest` tokens.
    """
    from transformers import GenerationConfig

    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=ids[words.END],
        pad_token_id=ids[words.PAD],
    )
    model.save_pretrained(directory)


def load_model(directory: Path) -> Any:
    """A model of the zoo in float32 (its values are bfloat16's)."""
    from transformers import LlamaForCausalLM, Qwen2VLForConditionalGeneration

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kind = LlamaForCausalLM if config["model_type"] == "llama" else Qwen2VLForConditionalGeneration
    return kind.from_pretrained(directory, dtype=torch.float32)


def add_adapter(model: Any, seed: int) -> Any:
    """Give `model` a fresh LoRA adapter, in place; returns the PEFT model around it."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        from evomerge.errors import MissingDependency

        raise MissingDependency(
            "training the zoo's adapters needs peft: pip install 'evomerge[zoo]'"
        ) from error
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK,
        lora_alpha=int(RANK * LORA_SCALE),
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save_adapter(adapted: Any, directory: Path) -> None:
    """Write a PEFT directory in bfloat16."""
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    adapted.peft_config["default"].base_model_name_or_path = "zoo:base"
    adapted.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    for_every_reader(directory)


def adapter_change(directory: Path) -> dict[str, Tensor]:
    """What an adapter adds to each of the model's matrices: name -> float32 (rows, columns)."""
    from safetensors.torch import load_file

    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(directory / "adapter_model.safetensors")
    change = {}
    for name, low in tensors.items():
        if ".lora_A." in name:
            high = tensors[name.replace(".lora_A.", ".lora_B.")].float()
            key = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            change[key] = scale * high @ low.float()
    return change
