"""What report.json says of the graphs whose vectors heads read.

Owns that one part of the file; `contents` holds the others.
"""
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EmbeddingReport:
    """What the graph of an embedding did, whatever the number of heads and folds that read it.

    rows     rows that it made vectors of: each is one decoding and one run; a row that was neither kept in
             RAM nor on disk counts again
    passes   cuts that the graph read;  vectors: what it made of them;  failed: rows without vectors
    seconds  of front end and graph, all loader threads together
    path     how it ran;  nets: how many nets read it
    """

    rows: int
    passes: int
    vectors: int
    failed: int
    seconds: float
    path: str
    nets: int
