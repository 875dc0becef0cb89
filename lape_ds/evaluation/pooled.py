"""A group or tag of the harness as one task: the documents of all its members, each prompted and scored by its own.

In the evaluation room, between the harness's tasks and `tasks.py`. MMLU's 57 subjects are one line of a table, one file of
samples and one unit of a comparison. Every document weighs alike, as in the harness's groups with `weight_by_size`, its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig

from lape_ds.errors import UserError

MEMBER = "harness_task"  # the key of a document that names its member

Document = dict[str, Any]


class PooledTask(Task):
    """Tasks of one form as one.

    Documents stand in turns, one of each member, so that the first few are of all.

    Args:
        name: Of the whole.
        members: At least one.
        where: What an error begins with.

    Raises:
        UserError: They answer in different ways, or have different metrics or differently named filters.
    """

    def __init__(self, name: str, members: Sequence[Task], *, where: str) -> None:
        first = members[0]
        for other in members[1:]:
            if other.OUTPUT_TYPE != first.OUTPUT_TYPE or _metrics(other) != _metrics(first):
                raise UserError(
                    f"{where}: {name} has tasks of different forms: {first.task_name} ({first.OUTPUT_TYPE}; "
                    f"{', '.join(_metrics(first))}) and {other.task_name} ({other.OUTPUT_TYPE}; {', '.join(_metrics(other))}); "
                    "name its parts one by one"
                )
            if (name_of := other._filters[0].name) != first._filters[0].name:
                raise UserError(
                    f"{where}: {name} has tasks of different forms: {first.task_name} (filter {first._filters[0].name}) and "
                    f"{other.task_name} (filter {name_of}); give it a filter that all have, or name its parts one by one"
                )
        self.OUTPUT_TYPE = first.OUTPUT_TYPE
        self.VERSION = first.VERSION
        self.UNSAFE_CODE = any(getattr(member, "UNSAFE_CODE", False) for member in members)
        self.members = {member.task_name: member for member in members}
        # Not the base class's own constructor, which downloads.
        shared = {key: first.get_config(key) for key in ("output_type", "num_fewshot", "generation_kwargs")}
        self._config = TaskConfig(task=name, **shared)
        self._filters = first._filters  # whose name is that of every member's
        self._instances = None
        rows = ([dict(row) | {MEMBER: member.task_name} for row in member.eval_docs] for member in members)
        self._documents: list[Document] = [
            row for row in chain.from_iterable(zip_longest(*rows)) if row is not None
        ]

    def has_training_docs(self) -> bool:
        """No: each member has its own examples."""
        return False

    def has_validation_docs(self) -> bool:
        """No: what a member scores is the whole's test part."""
        return False

    def has_test_docs(self) -> bool:
        """Yes."""
        return True

    def test_docs(self) -> list[Document]:
        """All documents, with the member of each under `MEMBER`."""
        return self._documents

    def set_config(self, key: str, value: Any, update: bool = False) -> None:
        """Of the whole and, but for the name, of every member."""
        super().set_config(key, value, update)
        if key != "task":
            for member in self.members.values():
                member.set_config(key, value, update)

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        """Of every member."""
        for member in self.members.values():
            member.set_fewshot_seed(seed)

    def doc_to_text(self, doc: Document) -> Any:
        """The question, as its member writes it."""
        member, own = self._member(doc)
        return member.doc_to_text(own)

    def doc_to_target(self, doc: Document) -> Any:
        """The answer, as its member writes it."""
        member, own = self._member(doc)
        return member.doc_to_target(own)

    def doc_to_prefix(self, doc: Document) -> Any:
        """How the answer begins, as its member writes it."""
        member, own = self._member(doc)
        return member.doc_to_prefix(own)

    def fewshot_context(self, doc: Document, *arguments: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The prompt, with its member's description and examples."""
        member, own = self._member(doc)
        return member.fewshot_context(own, *arguments, **options)

    def construct_requests(self, doc: Document, ctx: Any, **options: Any) -> Any:
        """What the model is asked."""
        member, own = self._member(doc)
        return member.construct_requests(own, ctx, **options)

    def apply_filters(self) -> None:
        """Reads each answer as its member does: filters of one name differ in what they look for."""
        answers: dict[str, list[Instance]] = {}
        for one in self.instances:
            assert one.doc_id is not None
            answers.setdefault(self._documents[one.doc_id][MEMBER], []).append(one)
        for member, own in answers.items():
            self.members[member]._filters[0].apply(own)

    def process_results(self, doc: Document, results: Any) -> Any:
        """A document's value of each metric."""
        member, own = self._member(doc)
        return member.process_results(own, results)

    def aggregation(self) -> Any:
        """Metric -> how values of documents become one."""
        return next(iter(self.members.values())).aggregation()

    def higher_is_better(self) -> Any:
        """Metric -> whether more is better."""
        return next(iter(self.members.values())).higher_is_better()

    def _member(self, doc: Document) -> tuple[Task, Document]:
        """Whose document it is, and the document as that one knows it."""
        return self.members[doc[MEMBER]], {key: value for key, value in doc.items() if key != MEMBER}


def _metrics(task: Task) -> dict[str, bool]:
    return dict(task.higher_is_better() or {})
