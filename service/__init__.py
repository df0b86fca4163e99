"""The domain: what a hotline does, without HTTP, templates or a telephone provider."""
