"""The masked optimizer in the Hugging Face Trainer, under DeepSpeed.

    deepspeed examples/masked_hf_trainer.py MODEL neurons.safetensors LANGUAGE TEXT_FILE

The Trainer drops an optimizer that is handed to it when it starts DeepSpeed, and makes its own: give it ours by
`create_optimizer`, and a DeepSpeed configuration that names none.
"""

import sys
from pathlib import Path

import deepspeed
import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from lape_ds.languages import find_language
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.subnetwork.masked import MaskedOptimizer, masked_config

CONFIG = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
}


class SubnetworkTrainer(Trainer):
    """Trains `neurons` and nothing else; everything else is the Trainer's."""

    neurons: torch.Tensor

    def create_optimizer(self, model=None):
        """Called twice: when DeepSpeed's set-up asks for an optimizer, and by the Trainer itself."""
        if self.optimizer is None:
            settings = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer = MaskedOptimizer(self.model, self.neurons, torch.optim.AdamW, **settings)
        return self.optimizer


def main(model_path: str, neurons_path: str, language: str, text_path: str) -> None:
    # On a CPU DeepSpeed would first compile a C++ extension for its collectives: half a minute, and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    arguments = TrainingArguments(
        output_dir="masked-trainer",
        learning_rate=1e-4,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=10,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        deepspeed=masked_config(CONFIG),
    )
    text = load_dataset("text", data_files=text_path, split="train")
    tokens = text.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=["text"]
    )
    trainer = SubnetworkTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=arguments,
        train_dataset=tokens.filter(lambda row: len(row["input_ids"]) > 1),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.neurons = NeuronSet.load(Path(neurons_path)).neurons(find_language(language).code)
    trainer.train()
    trainer.save_model("masked-trainer/model")


if __name__ == "__main__":
    # The launcher adds --local_rank=N in front.
    main(*(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")))
