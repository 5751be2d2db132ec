"""What the data holds, by split: sizes, lengths, duplicates, and targets that the profile gives away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rest_pg.config import RetrievalParams
from rest_pg.method.retrieval import count_short_profiles
from rest_pg.pipelines.data_ingestion.copies import count_near_copies
from rest_pg.pipelines.data_ingestion.examples import SPLITS
from rest_pg.records import Example
from rest_pg.text import count_words


def describe_data(examples: Sequence[Example], retrieval: RetrievalParams) -> pd.DataFrame:
    """Describe each split, and each task in it: one row, with medians and 90th percentiles of sizes and lengths.

    ``duplicates`` counts references that occur more than once in the split, and ``near_copies``
    examples whose profile holds most of their reference: both would flatter a system that copies.
    ``copies_left_out`` counts the documents that would have been such copies, and ``short_profiles`` the
    examples that have fewer documents than are retrieved.
    """
    rows = []
    tasks = sorted({example.task for example in examples})
    for split, task in [(s, t) for s in SPLITS for t in tasks]:
        own = [example for example in examples if (example.split, example.task) == (split, task)]
        if not own:
            continue
        references = [" ".join(e.reference.split()) for e in own]
        row: dict[str, object] = {
            "split": f"{split}:{task}" if task else split,
            "users": len({e.user_id for e in own}),
            "examples": len(own),
            "duplicates": len(references) - len(set(references)),
            "near_copies": count_near_copies(own),
            "copies_left_out": sum(e.copies_left_out for e in own),
            "short_profiles": count_short_profiles(own, retrieval.k),
        }
        sizes = {
            "profile_documents": [len(e.profile) for e in own],
            "profile_words": [sum(count_words(d.text) for d in e.profile) for e in own],
            "reference_words": [count_words(e.reference) for e in own],
            "input_words": [count_words(e.input) for e in own],
        }
        for name, values in sizes.items():
            for suffix, share in (("median", 0.5), ("p90", 0.9)):
                row[f"{name}_{suffix}"] = round(float(np.quantile(values, share)), 1)
        rows.append(row)
    return pd.DataFrame(rows)
