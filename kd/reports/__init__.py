"""Reports: a run's page and the readiness check's page, each one HTML file."""
