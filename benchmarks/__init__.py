"""Measurements that anyone can repeat: ``apprentice bench NAME``."""
