"""What an ablation found: a table on the terminal, a picture, and every number in its folder.

The last step of `lape-ds neurons ablate`, after the scores (specificity.py).
"""

from __future__ import annotations

from pathlib import Path

from lape_ds.analysis.neurons.ablation_pictures import draw_ablation
from lape_ds.analysis.neurons.ablation_tables import as_json, lines
from lape_ds.analysis.neurons.pictures import write_picture
from lape_ds.analysis.neurons.specificity import Specificity
from lape_ds.identification.ablation import Ablation
from lape_ds.writing import told_if_unwritable, write_json


def report_ablation(ablation: Ablation, folder: Path, *, picture: Path | None = None) -> Specificity:
    """Writes `ablation.json` and `ablation.png`, and prints the table.

    Args:
        ablation: As measured.
        folder: Of the ablation.
        picture: Also drawn there: `.png` or `.svg`.

    Raises:
        UserError: A file cannot be written, or is no such picture.
    """
    scores = Specificity.of(ablation)
    figure = draw_ablation(ablation, scores)
    with told_if_unwritable(f"the ablation's results in {folder}", kept="finished rows"):
        write_json(folder / "ablation.json", as_json(ablation, scores))
        for path in (folder / "ablation.png", *([] if picture is None else [picture])):
            write_picture(figure, path)
    print("\n".join(lines(ablation, scores)))
    return scores
