"""Preflight: readiness of data and of a run, and the plan of its memory and time, before anything is trained."""
