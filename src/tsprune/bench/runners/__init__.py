"""Where jobs run. The folder is the registry: one file per place, with `run(tasks, handed, ...)` as in `processes`."""
