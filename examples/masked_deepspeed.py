"""The masked optimizer in a DeepSpeed loop of your own.

    deepspeed examples/masked_deepspeed.py MODEL neurons.safetensors LANGUAGE TEXT_FILE

Any Hugging Face causal language model of a supported architecture, any ZeRO stage: change CONFIG. Nothing else of
lape-ds is needed for training; `engine.save_checkpoint` and `load_checkpoint` work on the same number of ranks.
"""

import sys
from pathlib import Path

import deepspeed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lape_ds.languages import find_language
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.subnetwork.masked import MaskedOptimizer, masked_config

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
}


def main(model_path: str, neurons_path: str, language: str, text_path: str) -> None:
    # On a CPU DeepSpeed would first compile a C++ extension for its collectives: half a minute, and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    neurons = NeuronSet.load(Path(neurons_path)).neurons(find_language(language).code)

    # The two lines that make it subnetwork training.
    optimizer = MaskedOptimizer(model, neurons, torch.optim.AdamW, lr=1e-4, weight_decay=0.01)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=masked_config(CONFIG))

    lines = [line for line in Path(text_path).read_text(encoding="utf-8").splitlines() if line.strip()]
    # Every rank takes as many: one that had a backward pass more would wait for the others for ever.
    whole = len(lines) // engine.world_size * engine.world_size
    for number, line in enumerate(lines[engine.global_rank : whole : engine.world_size]):
        ids = tokenizer(line, return_tensors="pt", truncation=True, max_length=512).input_ids.to(
            engine.device
        )
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        if engine.global_rank == 0 and number % 10 == 0:
            print(f"line {number}: loss {loss.item():.3f}", flush=True)
    engine.save_checkpoint("masked-checkpoint")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # The launcher adds --local_rank=N in front.
    main(*(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")))
