"""BFCL's rules: allowed values, optional arguments, types and their coercions, order of parallel calls, error names."""
