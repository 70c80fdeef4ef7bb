"""One module per foreign system. None imports another, and `import mlkit` imports none of them."""
