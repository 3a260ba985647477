"""What a grid is for. The folder is the registry: one file per recipe, with `RECIPE`, a `Recipe`."""
