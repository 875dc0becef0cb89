"""What other libraries would say in every process, and nobody needs to read.

Beside the command line and the ranks' entry point. Imports nothing heavy.
"""

import logging
import warnings


def quiet_deepspeed() -> None:
    """Lets only DeepSpeed's errors through.

    It warns of a machine without a GPU, of a missing hostfile and of an optimizer that it has not tested (ours, which
    we have). A filter, because it sets its own level when it is imported.
    """
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    # transformers 5.23 has renamed what PEFT still calls by the name that all of 5 has.
    warnings.filterwarnings(
        "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
    )
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
