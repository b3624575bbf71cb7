"""What server, nodes and simulations must agree on: configuration, wire format, backbones, data, privacy."""
