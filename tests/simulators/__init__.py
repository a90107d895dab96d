"""Stand-ins for services of others, on real sockets: identity providers, and what can go wrong with them."""
