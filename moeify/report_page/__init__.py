"""The page that `moeify report` writes: facts of a converted folder in, one HTML file out that needs nothing else."""
