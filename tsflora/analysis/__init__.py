"""Records and shapes in; numbers, tables, figures and pages out. Nothing here changes a run."""
