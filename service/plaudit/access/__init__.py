"""Who may call: keys, tokens, roles, encryption of the ports, limits. Knows requests only by tenant and domain."""
