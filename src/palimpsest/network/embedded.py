"""The embedded model, unpacked from its GGUF file into a folder of the cache that is checked at every use."""

import shutil
import stat
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from palimpsest import resources
from palimpsest.cache import stands
from palimpsest.files import file_sha256, locked, new_folder, sweep
from palimpsest.network.sources import EMBEDDED
from palimpsest.paths import cache_dir


def unpacked_model() -> Path:
    """Folder of the embedded model as float32 safetensors, converted from the GGUF file once.

    A folder that was changed since is made again, with a line that says so.

    Raises:
        ResourceError: if the resource cannot be fetched or the folder cannot be written.
    """
    pin = resources.PINS[EMBEDDED]
    folder = cache_dir() / "models" / f"{EMBEDDED}-{pin.sha256[:12]}"
    seal, weights = folder / "sha256.txt", folder / "model.safetensors"

    def whole() -> bool:
        if not seal.is_file() or not stands(weights, seal.read_text("utf-8", errors="replace")):
            return False
        sealed = {path.with_suffix("") for path in folder.glob("*.sha256")}
        files = {path for path in folder.iterdir() if path.suffix != ".sha256"}
        return all(stands(path) for path in sealed | files - {seal, weights})

    if not whole():
        with locked(folder):
            if not whole():
                source = resources.fetch(EMBEDDED)
                if folder.exists():
                    print(f"palimpsest: {folder} is not as it was written; made again", file=sys.stderr)
                    shutil.rmtree(folder, ignore_errors=True)
                sweep(folder)
                _unpack_gguf(source, folder)
                weights.chmod(stat.S_IMODE(seal.stat().st_mode))  # written for their owner only
    return folder


def _unpack_gguf(source: Path, folder: Path) -> None:
    file = resources.MODEL_FILE
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, gguf_file=file))
    net.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    with new_folder(folder) as staging:
        net.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / "sha256.txt").write_text(file_sha256(staging / "model.safetensors"))
