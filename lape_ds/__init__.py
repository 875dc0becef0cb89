"""lape-ds: find the neurons of one language and fine-tune only those, under DeepSpeed."""

__version__ = "0.1.0"
