"""Serving a bundle: a live catalogue over a durable store, an HTTP interface, and a page to look inside."""
