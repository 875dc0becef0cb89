"""The masked optimizer in the Hugging Face Trainer, under DeepSpeed.

    deepspeed examples/masked_hf_trainer.py MODEL neurons.safetensors LANGUAGE TEXT_FILE

The Trainer takes an optimizer of yours together with a DeepSpeed configuration that names none.
"""

import sys

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    get_constant_schedule,
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


def main(model_path: str, neurons_path: str, language: str, text_path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    arguments = TrainingArguments(
        output_dir="masked-trainer",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=10,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        deepspeed=masked_config(CONFIG),
    )
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    neurons = NeuronSet.load(neurons_path).neurons(find_language(language).code)
    optimizer = MaskedOptimizer(model, neurons, torch.optim.AdamW, lr=1e-4, weight_decay=0.01)

    text = load_dataset("text", data_files=text_path, split="train")
    tokens = text.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=["text"]
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=tokens.filter(lambda row: len(row["input_ids"]) > 1),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        optimizers=(optimizer, get_constant_schedule(optimizer)),
    )
    trainer.train()
    trainer.save_model("masked-trainer/model")


if __name__ == "__main__":
    main(*(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")))
