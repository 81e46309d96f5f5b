"""HTTP client of an OpenAI-compatible server, and vLLM's log-probs of a prompt."""
