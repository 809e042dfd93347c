"""From a function to its switching values: the only room that touches jax.extend."""
