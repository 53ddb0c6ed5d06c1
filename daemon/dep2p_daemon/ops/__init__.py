"""Configuration, logging, the state store and sd_notify."""
