"""The exact engines: they see a traced function's switching values and nothing else."""
