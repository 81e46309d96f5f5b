"""CAWS: working specs, policy and waivers of a project; their checks, and the context that a model sees."""
