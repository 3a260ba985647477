"""What a job of a grid may do. The folder is the registry: one file per kind, with `run(spec, job, place)`."""
