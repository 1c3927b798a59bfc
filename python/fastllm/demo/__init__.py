"""The built-in demo model: where its text comes from and how it is trained."""
