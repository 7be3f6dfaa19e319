"""Runtime: one process of the mesh."""
