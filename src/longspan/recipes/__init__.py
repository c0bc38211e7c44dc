"""Configuration only: each recipe is a function that returns one complete, frozen configuration."""
