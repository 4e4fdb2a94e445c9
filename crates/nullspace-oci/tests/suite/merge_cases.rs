//! Merges pinned by data: each folder of `tests/cases` has layers as text and the tree that must come out.
