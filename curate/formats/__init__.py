"""File formats, each with its writer and its reader in one module."""
