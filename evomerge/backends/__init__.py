"""Where a candidate model runs. Import the module of one backend; each loads its own library."""
