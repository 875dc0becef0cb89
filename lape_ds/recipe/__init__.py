"""The recipe: every setting of a run, from YAML and `key=value` overrides, validated before anything loads.

First room on the data's way: `load_recipe` at the start of every stage, `freeze_recipe` before it writes.
"""

from lape_ds.recipe.base import Section
from lape_ds.recipe.fields import LanguageCode, TokenBudget
from lape_ds.recipe.freezing import check_frozen, first_difference, freeze_recipe, to_yaml
from lape_ds.recipe.loading import identify_section, load_recipe
from lape_ds.recipe.matrix_section import (
    Matrix,
    MatrixLanguage,
    MatrixModel,
    MatrixSection,
    load_matrix,
)
from lape_ds.recipe.rewriting import rewrite_recipe
from lape_ds.recipe.sections import (
    CLDRSource,
    CorpusSection,
    CreateSection,
    DeepSpeedSection,
    EvalSection,
    FilesSource,
    HubSource,
    IdentifySection,
    LanguagesSection,
    LaunchSection,
    ModelSection,
    Recipe,
    Source,
)
from lape_ds.recipe.sweep_runs import SweepRun, sweep_runs
from lape_ds.recipe.sweep_section import SweepSection, SweepVariant, rate_label
from lape_ds.recipe.train_section import (
    NEURON_METHODS,
    AnchorSection,
    HeldOutSection,
    LoRASection,
    OptimizerSection,
    ReplaySection,
    ScheduleSection,
    TrainSection,
)

__all__ = [
    "NEURON_METHODS",
    "AnchorSection",
    "CLDRSource",
    "CorpusSection",
    "CreateSection",
    "DeepSpeedSection",
    "EvalSection",
    "FilesSource",
    "HeldOutSection",
    "HubSource",
    "IdentifySection",
    "LanguageCode",
    "LanguagesSection",
    "LaunchSection",
    "LoRASection",
    "Matrix",
    "MatrixLanguage",
    "MatrixModel",
    "MatrixSection",
    "ModelSection",
    "OptimizerSection",
    "Recipe",
    "ReplaySection",
    "ScheduleSection",
    "Section",
    "Source",
    "SweepRun",
    "SweepSection",
    "SweepVariant",
    "TokenBudget",
    "TrainSection",
    "check_frozen",
    "first_difference",
    "freeze_recipe",
    "identify_section",
    "load_matrix",
    "load_recipe",
    "rate_label",
    "rewrite_recipe",
    "sweep_runs",
    "to_yaml",
]
