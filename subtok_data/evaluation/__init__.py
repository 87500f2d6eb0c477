"""Quality of boundaries and of tokens."""
