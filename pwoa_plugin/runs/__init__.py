"""A run's folder and what is made of it."""
